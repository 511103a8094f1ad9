"""A task as techniques see it: without its test split, which is for what is reported alone.

What a technique chose by looking at the test split would be reported as better than it is, and
nobody could tell. The view guards against a slip, not against intent: it is the task itself in all
else, its class included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from zoopress.errors import StageError
from zoopress.tasks.task import Task

OF_A_SPLIT = frozenset(
    {
        "batches",
        "examples",
        "groups",
        "make_samples",
        "rewritten",
        "rows",
        "samples",
        "show",
    }
)
"""Methods of tasks whose first argument is a split."""


def without_test(task: Task) -> Task:
    """Return a task that refuses to give anything of its test split.

    Its methods raise StageError where they are asked for it; the task that is given does not change
    and shares what it has read with the view.
    """
    return cast("Task", _LearningView(task))


class _LearningView:
    """Hands everything on to a task, but for the test split."""

    def __init__(self, task: Task) -> None:
        object.__setattr__(self, "_task", task)

    def __getattribute__(self, name: str) -> Any:
        found = getattr(object.__getattribute__(self, "_task"), name)
        return _guarded(name, found) if name in OF_A_SPLIT else found

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_task"), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(object.__getattribute__(self, "_task"), name)


def _guarded(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def ask(*args: Any, **options: Any) -> Any:
        if options.get("split", args[0] if args else None) == "test":
            raise StageError(
                f"A technique asked for the test split, with {name}('test'). It is kept for what "
                "is reported, so that figures are honest; a technique looks at 'calibration', "
                "trains on 'training' and chooses by 'validation'."
            )
        return method(*args, **options)

    return ask
