"""Losses of a recipe, and their teachers, as terms of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoopress.errors import StageError
from zoopress.training.loss import INPUT, LossChoice
from zoopress.training.loss_term import LossTerm, Weighted, make_term

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress.tasks import Task
    from zoopress.techniques.technique import Context


def chosen_terms(context: Context, model: Model, chosen: Sequence[LossChoice]) -> list[LossTerm]:
    """Return the terms that a config's `losses` ask for, one for each teacher.

    Raises:
        StageError: if a loss cannot be made, or does not fit the model.
    """
    grouped: dict[tuple[bool, str | None], list[Weighted]] = {}
    for choice in chosen:
        loss = choice.make(context.plugins)
        reason = choice.fitting(type(loss))
        if reason:
            raise StageError(reason)
        grouped.setdefault((loss.taught, choice.teacher), []).append((loss, choice.weight))
    return [
        taught(context, model, losses, teacher)
        if by_teacher
        else make_term(
            *(model, _task(context), losses, context.batches()[0], context.call, context.seed)
        )
        for (by_teacher, teacher), losses in grouped.items()
    ]


def taught(
    context: Context, model: Model, losses: Sequence[Weighted], teacher: str | None
) -> LossTerm:
    """Return a term of losses that learn from one teacher.

    Args:
        context: of the stage.
        model: what is trained.
        losses: what is summed, in this order.
        teacher: a card, "input", or None for the original.

    Raises:
        StageError: if the teacher does not fit, or there is none here.
    """
    if context.teacher is None:
        raise StageError("There is no teacher to learn from here; leave out losses that need one.")
    context.progress("fetching the teacher")
    module = context.teacher(teacher)
    context.progress("comparing student and teacher")
    return make_term(
        *(model, _task(context), losses, context.batches()[0], context.call, context.seed),
        *(module, teacher_name(teacher), teacher in (None, INPUT)),
    )


def teacher_name(teacher: str | None) -> str:
    """Return how people are told of a teacher."""
    return {None: "the original", INPUT: "the stage's input"}.get(teacher, str(teacher))


def _task(context: Context) -> Task:
    assert context.task is not None, "a stage's context has a task"
    return context.task
