"""Whether a model's own code failed, and where: such a failure is no bug of zoopress."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zoopress.errors import StageError, ZoopressError

_OF_KEPT_TENSORS = (
    *("backward through the graph a second time", "modified by an inplace operation"),
    *("is not part of the autograd graph", "Inference tensors cannot"),
)
_OURS = frozenset({"zoopress", "zoopress_plugins", "zoopress_zoo", "zoopress_flows"})


def place_in_model(error: BaseException) -> str | None:
    """Return the line of a model's code at which an error arose, None if it is none of its.

    What torch raises counts as raised by what called torch.
    """
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("torch", "functools", "contextlib"):
            file = Path(frame.f_code.co_filename).name
            return None if package in _OURS else f"{file}, line {line}, in {frame.f_code.co_name}"
    return None


@contextmanager
def failing(when: str, remedy: str) -> Iterator[None]:
    """Say that a model failed by its own code, and what to do.

    Args:
        when: as "in training mode".
        remedy: a sentence.

    Raises:
        StageError: instead of what the model's code raised.
    """
    try:
        yield
    except ZoopressError:
        raise
    except Exception as error:  # a model's code may raise anything
        place = place_in_model(error)
        if place is None:
            raise
        raise StageError(
            f"The model's own code fails {when}: {type(error).__name__}: {error} ({place}). "
            f"{remedy}"
        ) from error


@contextmanager
def differentiating(remedy: str) -> Iterator[None]:
    """Say that no gradients can be taken through what a model's own code made.

    Args:
        remedy: a sentence.

    Raises:
        StageError: instead of what torch, or the model's code, raises then.
    """
    try:
        yield
    except Exception as error:  # a backward pass of a model's own may raise anything
        place = place_in_model(error)
        if place is not None:
            raise StageError(
                f"The model's own code fails when gradients are taken: {type(error).__name__}: "
                f"{error} ({place}). {remedy}"
            ) from error
        if not any(sign in str(error) for sign in _OF_KEPT_TENSORS):
            raise
        raise StageError(
            f"No gradients can be taken through the model: {str(error).splitlines()[0]} Its own "
            "code keeps tensors of one forward pass for the next, or changes them in place. "
            f"{remedy}"
        ) from error
