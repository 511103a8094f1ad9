"""What share of a model a stage reached, and what it left and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LEAST_SHARE = 0.5
"""Of the bytes, that a stage which promises fewer should reach unless told where to work."""


@dataclass(frozen=True)
class KindCoverage:
    """What was reached of one kind of parameters.

    Attributes:
        kind: such as "linear layers"; see `zoopress.evaluation.coverage`.
        parameters: how many numbers, tied ones once.
        bytes: that they took before the stage.
        reached: how many of the numbers the stage changed, or what they are stored as.
        reached_bytes: how many of the bytes.
        left: why others were not, by name; the largest ones.
        unnamed: how many more were not.
        named: the largest that were reached, of kinds that say little by themselves.
    """

    kind: str
    parameters: int
    bytes: int
    reached: int
    reached_bytes: int
    left: dict[str, str] = field(default_factory=dict)
    unnamed: int = 0
    named: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Coverage:
    """What a stage reached.

    Attributes:
        kinds: of all parameters that the model had before it, largest first.
        selects: whether the technique works on weights one by one, rather than on what it removes.
        narrowed: whether the recipe says on which weights the stage is to work.
        packed_bytes: of the bytes, those that an earlier stage had packed and this one left.
    """

    kinds: list[KindCoverage]
    narrowed: bool = False
    selects: bool = True
    packed_bytes: int = 0

    @property
    def share(self) -> float:
        """Share of the parameters that were reached."""
        return _share(sum(k.reached for k in self.kinds), sum(k.parameters for k in self.kinds))

    @property
    def byte_share(self) -> float:
        """Share of the bytes that were reached."""
        return _share(sum(k.reached_bytes for k in self.kinds), sum(k.bytes for k in self.kinds))

    @property
    def is_short(self) -> bool:
        """Whether it is much less than a stage promises that was not told where to work.

        What was packed before is not its to reach.
        """
        open_bytes = sum(k.bytes for k in self.kinds) - self.packed_bytes
        reached = sum(k.reached_bytes for k in self.kinds)
        return self.selects and not self.narrowed and _share(reached, open_bytes) < LEAST_SHARE

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Coverage:
        """Rebuild from `dataclasses.asdict`, also after it was JSON."""
        return cls(**{**data, "kinds": [KindCoverage(**each) for each in data["kinds"]]})


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
