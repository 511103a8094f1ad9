"""Which parameters a loss looks at."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pydantic import Field

from zoopress.config import Config
from zoopress.errors import StageError

if TYPE_CHECKING:
    from torch import Tensor


class SelectedParameters(Config):
    """Which parameters."""

    include: tuple[str, ...] = Field(
        default=("*",), description="shell patterns; a parameter's name must match one"
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="shell patterns; a parameter's name must match none"
    )

    def select(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters with two axes or more that match; biases and norms are left out.

        Raises:
            StageError: if there are none.
        """
        found = {
            name: tensor
            for name, tensor in parameters.items()
            if tensor.ndim > 1
            and any(fnmatchcase(name, pattern) for pattern in self.include)
            and not any(fnmatchcase(name, pattern) for pattern in self.exclude)
        }
        if not found:
            there = [name for name, tensor in parameters.items() if tensor.ndim > 1]
            raise StageError(
                f"No weight that is trained matches include {list(self.include)}, exclude "
                f"{list(self.exclude)}. There are {there[:6] or 'none'}."
            )
        return found
