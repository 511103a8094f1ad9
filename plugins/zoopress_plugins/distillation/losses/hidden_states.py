"""Hints: hidden states of the student should be those of the teacher.

Source: Romero et al. 2014, FitNets, arXiv:1412.6550, eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from zoopress.config import Config
from zoopress.errors import StageError
from zoopress.training.loss import Loss, Seen

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoopress.models.model import Model


class HiddenStatesConfig(Config):
    """Which hidden states."""

    layers: Literal["auto"] | tuple[tuple[str, str], ...] = Field(
        default="auto",
        description="pairs of modules, [student's, teacher's]; auto: the layers of the stacks that "
        "both have, those that were removed left out",
    )


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of hidden states, each relative to the teacher's norm.

    Relative, since hidden states of one model may differ in size by orders of magnitude.

    Args:
        student: [positions, features], a hidden state each.
        teacher: the same.
    """
    import torch

    size = teacher.square().sum(-1)
    apart = (student - teacher).square().sum(-1)
    return (apart / size.clamp_min(torch.finfo(size.dtype).tiny)).mean()


class HiddenStates(Loss[HiddenStatesConfig]):
    """Let the student think as the teacher does on the way; the mean over all pairs of layers.

    Where the two have other widths, a linear adapter is learned.
    """

    name = "hidden_states"
    config_type = HiddenStatesConfig
    taught = True

    def layers(
        self, student: Model, teacher: nn.Module | None, same: bool
    ) -> Sequence[tuple[str, str]]:
        """Return the pairs that were named, or those of the stacks.

        Raises:
            StageError: if there are none.
        """
        from zoopress_plugins.distillation.paired_layers import paired_layers

        if self.config.layers != "auto":
            return self.config.layers
        assert teacher is not None, "a loss that is taught has a teacher"
        found = paired_layers(student, teacher, same)
        if not found:
            raise StageError(
                "'hidden_states': student and teacher have no lists of equal layers that could be "
                "paired. Name pairs of modules: 'layers: [[student's, teacher's]]'; in "
                "distillation, 'hints: {layers: [[student's, teacher's]]}'."
            )
        return found

    def prepare(self, seen: Seen) -> nn.Module | None:
        """Return an adapter for each pair.

        Raises:
            StageError: if hidden states have other positions.
        """
        from torch import nn

        adapters = nn.ModuleList()
        for (own, other), (student, teacher) in zip(seen.states, _rows(seen), strict=True):
            assert other is not None, "a loss that is taught has a teacher"
            if len(student) != len(teacher):
                raise StageError(
                    f"'hidden_states': the student's is {list(own.shape)}, the teacher's "
                    f"{list(other.shape)}; they must be alike but for the features. Pair other "
                    "layers."
                )
            width, wanted = student.shape[1], teacher.shape[1]
            adapters.append(nn.Identity() if width == wanted else nn.Linear(width, wanted))
        return adapters

    def value(self, seen: Seen, learned: nn.Module | None) -> Tensor:
        """Return the mean over all pairs."""
        import torch
        from torch import nn

        assert isinstance(learned, nn.ModuleList)
        losses = [
            hint_loss(adapter(student), teacher)
            for adapter, (student, teacher) in zip(learned, _rows(seen), strict=True)
        ]
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def _rows(seen: Seen) -> list[tuple[Tensor, Tensor]]:
    return [(seen.rows(own), seen.rows(other)) for own, other in seen.states if other is not None]
