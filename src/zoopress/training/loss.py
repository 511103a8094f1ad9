"""A loss that training adds to the task's own, chosen in a recipe by name.

    recovery:
      technique: fine_tuning
      epochs: 1
      losses:
        - {loss: kl_divergence, weight: 0.5, teacher: input, temperature: 4}
        - {loss: l1, weight: 1.0e-5}

A loss sees what the student puts out, what its teacher does, hidden states of both, the targets,
and the parameters; it need not look at all. Importing its file must not import torch, so that a
recipe is checked in no time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import Field

from zoopress.choice import Choice, NoOptions
from zoopress.config import Config
from zoopress.errors import StageError
from zoopress.plugins import Plugins, Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoopress.models.model import Model
    from zoopress.tasks import Batch, Task

OptionsT = TypeVar("OptionsT", bound=Config)

INPUT = "input"
"""As a teacher's name: the model as it entered the stage."""

Pair = tuple[str, "str | None"]
"""Paths of a module of the student and of one of the teacher, None where there is no teacher."""


@dataclass(frozen=True)
class Seen:
    """What a loss sees of one batch.

    Attributes:
        task: what runs the model.
        batch: inputs and targets; these are None without labels, and in `Loss.prepare`.
        output: what the student puts out, [samples, …], with gradients.
        expected: what the teacher puts out; None without one.
        states: hidden states of the pairs that `Loss.layers` names, the student's with gradients
            and the teacher's.
        parameters: what is trained, by name; in `Loss.prepare` every parameter.
        start: their values as training began, if `Loss.remembers`.
        teacher: how errors call the teacher.
    """

    task: Task
    batch: Batch
    output: Tensor
    expected: Tensor | None = None
    states: Sequence[tuple[Tensor, Tensor | None]] = ()
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    start: Mapping[str, Tensor] = field(default_factory=dict)
    teacher: str = ""
    shared: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    """What the losses of one batch compute once."""

    def rows(self, tensor: Tensor) -> Tensor:
        """Return a batch's tensor as float32 rows [positions, features], without padding."""
        return rows(tensor, _real_tokens(self.batch.inputs)).float()

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """The outputs of student and teacher as rows [positions, features]."""
        assert self.expected is not None, "a loss that is taught has a teacher"
        if "pair" not in self.shared:
            self.shared["pair"] = self.rows(self.output), self.rows(self.expected)
        return self.shared["pair"]


class Loss(ABC, Generic[OptionsT]):
    """Something that training lowers besides, or instead of, the task's loss.

    Class attributes:
        name: what recipes call it, a noun in snake_case.
        config_type: the class of its options, a subclass of `Config`; `NoOptions` if it has none.
            The names `loss`, `weight` and `teacher` are taken.
        taught: whether it learns from a teacher.
        remembers: whether it has to know what parameters were as training began.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[Config]] = NoOptions
    taught: ClassVar[bool] = False
    remembers: ClassVar[bool] = False

    def __init__(self, config: OptionsT) -> None:
        self.config = config

    def layers(self, student: Model, teacher: nn.Module | None, same: bool) -> Sequence[Pair]:
        """Return the modules whose outputs it wants as hidden states.

        Args:
            student: what is trained.
            teacher: what it learns from.
            same: whether the teacher is what the student was made from.

        Raises:
            StageError: if they do not have them.
        """
        return ()

    def prepare(self, seen: Seen) -> nn.Module | None:
        """Check that it can work, on a first batch, and return what it learns of its own.

        What is returned, such as an adapter between hidden states of different widths, is trained
        and checkpointed with the model, and gone when training ends.

        Raises:
            StageError: if outputs or parameters do not fit.
        """
        return None

    @abstractmethod
    def value(self, seen: Seen, learned: nn.Module | None) -> Tensor:
        """Return the loss of a batch, a scalar with gradients; the smaller, the better.

        Args:
            seen: what there is to see.
            learned: what `prepare` returned.

        Raises:
            StageError: if it lacks something, such as targets.
        """


class LossChoice(Choice):
    """A loss with its weight, and whom it learns from."""

    registry: ClassVar[Registry] = "losses"
    key: ClassVar[str] = "loss"

    weight: float = Field(default=1.0, gt=0, description="what the loss is multiplied by")
    teacher: str | None = Field(
        default=None,
        description="a card, or 'input': the model as it entered the stage; by default the model "
        "that was compressed, as it came",
    )

    def fitting(self, kind: Any) -> str | None:
        """Refuse a teacher for what has none."""
        if self.teacher is not None and not kind.taught:
            return f"the loss {self.name!r} learns from no teacher; leave 'teacher' out."
        return None

    def make(self, plugins: Plugins | None = None) -> Loss[Any]:
        """Return the loss, with its options."""
        loss: Loss[Any] = super().make(plugins)
        return loss


def alike(seen: Seen) -> None:
    """Check that student and teacher put out tensors of one shape.

    Raises:
        StageError: if they do not.
    """
    assert seen.expected is not None, "a loss that is taught has a teacher"
    if seen.output.shape != seen.expected.shape:
        raise StageError(
            f"The student puts out {list(seen.output.shape)}, the teacher {seen.teacher} "
            f"{list(seen.expected.shape)}; to be compared they must be alike. Choose a teacher of "
            "the same task."
        )


def rows(tensor: Tensor, real: Tensor | None = None) -> Tensor:
    """Return hidden states or scores as rows [positions, features].

    Args:
        tensor: [samples, features], [samples, tokens, features], or with more axes
            [samples, features, …] as convolutions have it.
        real: bool [samples, tokens]: which tokens are no padding.
    """
    if tensor.ndim == 1:
        return tensor[:, None]
    if real is not None and tensor.ndim == 3 and tensor.shape[:2] == real.shape:
        return tensor[real]
    moved = tensor.movedim(1, -1) if tensor.ndim > 3 else tensor
    return moved.reshape(-1, moved.shape[-1])


def _real_tokens(inputs: Any) -> Tensor | None:
    """Return which tokens are no padding, bool [samples, tokens], if the inputs tell."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if getattr(mask, "ndim", 0) == 2 else None  # type: ignore[union-attr]
