"""What a teacher adds to the loss of training: its outputs, and hints from its hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.models.edits import Keep, submodule
from zoopress.models.model import Model
from zoopress.models.stacks import Stack, find_stacks, is_stack, outermost, watched
from zoopress.tasks import Batch, Task
from zoopress.training.term import Term
from zoopress.training.workplace import workplace
from zoopress_plugins.distillation.losses import hint_loss, rows

Respond = Callable[[Tensor, Tensor], Tensor]
"""Returns the loss of a student's outputs against a teacher's, both as rows."""


class Teaching(Term):
    """The teacher's outputs and hidden states as what the student's should be.

    Args:
        task: runs both.
        teacher: in evaluation mode; not changed.
        respond: the loss of outputs.
        response_weight: what that is multiplied by.
        hints: pairs of modules, the student's path and the teacher's.
        hint_weight: what the mean loss of all pairs is multiplied by.
        widths: for each pair, features of the student's hidden state and of the teacher's. Where
            they differ, a linear adapter is learned.
    """

    def __init__(
        self,
        task: Task,
        teacher: nn.Module,
        respond: Respond,
        response_weight: float = 1.0,
        hints: Sequence[tuple[str, str]] = (),
        hint_weight: float = 1.0,
        widths: Sequence[tuple[int, int]] = (),
    ) -> None:
        super().__init__("teacher")
        self._task, self._respond, self._hints = task, respond, tuple(hints)
        self._response_weight, self._hint_weight = response_weight, hint_weight
        # In a tuple: as a submodule it would be trained.
        self._teacher = (teacher,)
        self._student_states: dict[str, Tensor] = {}
        self._teacher_states: dict[str, Tensor] = {}
        self.adapters = nn.ModuleList(
            nn.Identity() if student == wanted else nn.Linear(student, wanted)
            for student, wanted in widths
        )

    def forward(self, batch: Batch, output: Tensor) -> Tensor:
        """Return the weighted sum of both losses."""
        with torch.no_grad():
            expected = self._task.forward(self._teacher[0], batch.inputs)
        real = _real_tokens(batch.inputs)
        loss = self._response_weight * self._respond(
            rows(output, real).float(), rows(expected, real).float()
        )
        for adapter, (student, teacher) in zip(self.adapters, self._hints, strict=True):
            got = adapter(rows(self._student_states[student], real).float())
            wanted = rows(self._teacher_states[teacher], real).float()
            loss = loss + self._hint_weight / len(self._hints) * hint_loss(got, wanted)
        return loss

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Take the teacher to the student's device, and look at the hidden states of both."""
        teacher = self._teacher[0]
        device = next(module.parameters()).device
        with (
            workplace(teacher, device, ()),
            states_in(module, [student for student, _ in self._hints], self._student_states),
            states_in(teacher, [wanted for _, wanted in self._hints], self._teacher_states),
        ):
            yield
        self._student_states.clear()
        self._teacher_states.clear()


@contextmanager
def states_in(
    module: nn.Module, paths: Sequence[str], states: dict[str, Tensor]
) -> Iterator[dict[str, Tensor]]:
    """Keep what modules put out in their last run, by path."""

    def keep(path: str, before: Tensor | None, after: Tensor | None) -> None:
        if after is not None:
            states[path] = after

    with watched({path: submodule(module, path) for path in paths}, keep):
        yield states


def paired_layers(student: Model, teacher: nn.Module, same: bool) -> list[tuple[str, str]]:
    """Pair the layers of a student's stacks with those of a teacher's.

    A layer's hidden state should be what the next layer is used to. So where layers were removed,
    each is paired with the teacher's layer before the one that the student's next layer was; the
    last with the last. Where that is not known, they are spread evenly in this way.

    Args:
        student: what is trained.
        teacher: what it learns from.
        same: whether the teacher is what the student was made from.

    Returns:
        Paths of the student's layer and the teacher's; empty if either has no stack.
    """
    pairs: list[tuple[str, str]] = []
    taught = _longest(teacher)
    for stack in taught:
        path, size = stack.path, len(stack.blocks)
        count = _layers(student.module, path)
        if not count and len(taught) == 1:
            for own in _longest(student.module)[:1]:
                path, count = own.path, len(own.blocks)
        fewer = min(count, size)
        ends = [
            (part * count // fewer - 1, part * size // fewer - 1) for part in range(1, fewer + 1)
        ]
        origin = _origin(student, path, size) if same else []
        if origin and len(origin) == count:
            ends = list(enumerate(following - 1 for following in [*origin[1:], size]))
        start = f"{path}." if path else ""
        pairs += [(f"{start}{one}", stack.block_path(other)) for one, other in ends]
    return pairs


def _longest(module: nn.Module) -> list[Stack]:
    stacks = outermost(find_stacks(module))
    most = max((len(stack.blocks) for stack in stacks), default=0)
    return [stack for stack in stacks if len(stack.blocks) == most]


def _layers(module: nn.Module, path: str) -> int:
    """Return how many layers a module has under a path, 0 if there is no list of any."""
    try:
        found = submodule(module, path)
    except ValueError:
        return 0
    return len(found._modules) if is_stack(found) else 0


def _origin(student: Model, path: str, size: int) -> list[int]:
    """Return which of `size` layers each layer of a student was."""
    origin = list(range(size))
    for edit in student.edits:
        if isinstance(edit, Keep) and edit.module == path:
            origin = [origin[index] for index in edit.indices]
    return origin


def _real_tokens(inputs: Any) -> Tensor | None:
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
