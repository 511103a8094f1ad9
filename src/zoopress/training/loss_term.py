"""Losses as a term of the training loop: who runs the teacher and looks at hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.errors import StageError, nearest
from zoopress.models.edits import submodule
from zoopress.models.model import Model
from zoopress.models.stacks import watched
from zoopress.tasks import Batch, Task
from zoopress.training.loss import Loss, Pair, Seen
from zoopress.training.term import Term
from zoopress.training.workplace import workplace

Weighted = tuple[Loss[Any], float]
"""A loss and what it is multiplied by."""


class LossTerm(Term):
    """Losses that share a teacher, which runs once a batch; or that have none.

    Args:
        task: runs both.
        losses: what is summed, in this order.
        pairs: for each, the modules whose outputs it wants.
        learned: for each, what it learns of its own.
        teacher: in evaluation mode; not changed.
        teacher_name: how errors call it.
    """

    def __init__(
        self,
        task: Task,
        losses: Sequence[Weighted],
        pairs: Sequence[Sequence[Pair]],
        learned: Sequence[nn.Module | None],
        teacher: nn.Module | None = None,
        teacher_name: str = "",
    ) -> None:
        super().__init__("losses" if teacher is None else "teacher")
        self._task, self._losses, self._pairs = task, losses, pairs
        self._teacher_name = teacher_name
        # In a tuple: as a submodule it would be trained.
        self._teacher = (teacher,)
        self._own = [module is not None for module in learned]
        self.learned = nn.ModuleList(module or nn.Identity() for module in learned)
        self.settings = repr(
            [(loss.name, weight, loss.config.model_dump_json()) for loss, weight in losses]
        )
        self._student_states: dict[str, Tensor] = {}
        self._teacher_states: dict[str, Tensor] = {}
        self._parameters_now: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}

    def forward(self, batch: Batch, output: Tensor) -> Tensor:
        """Return the weighted sum of all losses."""
        expected = None
        if self._teacher[0] is not None:
            expected = self._task.call(self._teacher[0], batch.inputs)
            if len(expected) != len(output):
                raise StageError(
                    f"In training mode the student's output is {list(output.shape)}, its "
                    f"teacher's {list(expected.shape)}: not as many samples. Let the model return "
                    "in training mode first what it returns in evaluation mode."
                )
        parts = []
        shared: dict[str, tuple[Tensor, Tensor]] = {}
        for (loss, weight), pairs, own, learned in zip(
            self._losses, self._pairs, self._own, self.learned, strict=True
        ):
            seen = Seen(
                task=self._task,
                batch=batch,
                output=output,
                expected=expected,
                states=states_of(pairs, self._student_states, self._teacher_states),
                parameters=self._parameters_now,
                start=self._start if loss.remembers else {},
                teacher=self._teacher_name,
                shared=shared,
            )
            value = loss.value(seen, learned if own else None)
            if value.ndim:
                raise StageError(
                    f"the loss {loss.name!r} returned {list(value.shape)} numbers instead of one; "
                    "this is a bug in the loss. It should return a mean or a sum."
                )
            parts.append(weight * value)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Take the teacher to the student's device, and look at the hidden states of both."""
        device = next(module.parameters()).device
        trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self._parameters_now.update(trained)
        if any(loss.remembers for loss, _ in self._losses):
            self._start.update({n: p.detach().clone() for n, p in trained.items()})
        pairs = [pair for some in self._pairs for pair in some]
        teacher = self._teacher[0]
        own = [one for one, _ in pairs]
        try:
            with states_in(module, own, self._student_states):
                if teacher is None:
                    yield
                    return
                others = [other for _, other in pairs if other is not None]
                with (
                    workplace(teacher, device, ()),
                    states_in(teacher, others, self._teacher_states),
                ):
                    yield
        finally:
            for held in (
                *(self._student_states, self._teacher_states),
                *(self._parameters_now, self._start),
            ):
                held.clear()


def make_term(
    model: Model,
    task: Task,
    losses: Sequence[Weighted],
    inputs: Any,
    call: Callable[[nn.Module, Any], Tensor],
    seed: int,
    teacher: nn.Module | None = None,
    teacher_name: str = "",
    same: bool = False,
) -> LossTerm:
    """Prepare losses for a training of a model.

    Args:
        model: what is trained.
        task: runs it.
        losses: what is summed.
        inputs: a batch to look at before training.
        call: runs a module on it without gradients.
        seed: of what losses learn of their own.
        teacher: in evaluation mode; never changed.
        teacher_name: how errors call it.
        same: whether the teacher is what the model was made from.

    Raises:
        StageError: if the teacher does not fit, or a loss lacks something.
    """
    pairs = [list(loss.layers(model, teacher, same)) for loss, _ in losses]
    every = [pair for some in pairs for pair in some]
    _check_paths(model.module, [one for one, _ in every], "student")
    own: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    with states_in(model.module, [one for one, _ in every], own):
        output = call(model.module, inputs)
    expected = None
    if teacher is not None:
        wanted = [other for _, other in every if other is not None]
        _check_paths(teacher, wanted, "teacher")
        with states_in(teacher, wanted, others):
            try:
                expected = call(teacher, inputs)
            except StageError as error:
                raise StageError(
                    f"The teacher {teacher_name} cannot run on the student's inputs; it must take "
                    f"the same. {error}"
                ) from error
    parameters = dict(model.module.named_parameters())
    learned = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # adapters start at random
        for (loss, _), some in zip(losses, pairs, strict=True):
            states = states_of(some, own, others)
            seen = Seen(
                *(task, Batch(inputs), output, expected, states, parameters, parameters),
                teacher_name,
            )
            learned.append(loss.prepare(seen))
    return LossTerm(task, losses, pairs, learned, teacher, teacher_name)


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


def states_of(
    pairs: Sequence[Pair], own: dict[str, Tensor], others: dict[str, Tensor]
) -> list[tuple[Tensor, Tensor | None]]:
    """Return the hidden states of pairs.

    Raises:
        StageError: if a module put out none.
    """
    for one, other in pairs:
        if one not in own or (other is not None and other not in others):
            missing = f"student's {one!r}" if one not in own else f"teacher's {other!r}"
            raise StageError(
                f"The {missing} puts out no tensor on the task's inputs, so it has no hidden state "
                "to learn from. Name another module."
            )
    return [(own[one], None if other is None else others[other]) for one, other in pairs]


def _check_paths(module: nn.Module, paths: Sequence[str], whose: str) -> None:
    there = dict(module.named_modules(remove_duplicate=False))
    for path in paths:
        if path not in there:
            raise StageError(f"The {whose} has no module {path!r}.{nearest(path, there)}")
