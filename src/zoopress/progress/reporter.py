"""Telling what is going on, to people and to machines.

A `Reporter` turns what happens into events, plain dicts, and hands them to listeners. Listeners
are displays (a live picture on a terminal, plain lines elsewhere, JSON for machines) or whatever
else wants to know, such as an engine's progress bar.

    event        other keys                       meaning
    stage        step, text                       a step begins; text is its title
    progress     step, text, fraction             an item of the step is done; text names it
    stage_ended  step, text, seconds, failed      the step is over
    line         text                             worth a line that stays
    warning      text, loud                       the same, of something that is not right; `loud`
                                                  is there, and true, where nobody may miss it

`step` is a number that is one step's own; `fraction` is None or how much of the step is done, 0 to
1. Every event has the key `cell` if its reporter was given one. A listener may meet further
events and keys in later versions, and must ignore what it does not know.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    pass

Event = dict[str, Any]
Listener = Callable[[Event], None]

_steps = itertools.count(1)


class Progress(Protocol):
    """What a step calls with each finished item, and how much of the step is done if it knows."""

    def __call__(self, item: str, /, fraction: float | None = None) -> None: ...


class Reporter:
    """Hands events to listeners; any number of threads may use one.

    Args:
        listeners: one that fails is left out from then on; the work goes on.
        cell: named in every event.
    """

    def __init__(self, listeners: Sequence[Listener] = (), cell: str | None = None) -> None:
        self._listeners = tuple(listeners)
        self._common: Event = {} if cell is None else {"cell": cell}

    def line(self, text: str) -> None:
        """Tell something worth a line."""
        self._emit("line", text=text)

    def warn(self, text: str, loud: bool = False) -> None:
        """Tell something that is not right, but does not stop the work.

        Args:
            text: what.
            loud: whether nobody may miss it.
        """
        self._emit("warning", text=text, **({"loud": True} if loud else {}))

    @contextmanager
    def step(self, title: str, closing_line: bool = True) -> Iterator[Progress]:
        """Tell that something is under way; call what it yields with each finished item.

        Args:
            title: what is being done.
            closing_line: False if a line on the result follows anyway.
        """
        number, start = next(_steps), time.perf_counter()
        self._emit("stage", step=number, text=title)

        def progress(item: str, /, fraction: float | None = None) -> None:
            self._emit("progress", step=number, text=item, fraction=fraction)

        failed = True
        try:
            yield progress
            failed = False
        finally:
            self._emit(
                "stage_ended",
                step=number,
                text=title,
                seconds=time.perf_counter() - start,
                failed=failed,
                closing_line=closing_line,
            )

    def _emit(self, event: str, **details: Any) -> None:
        for listener in self._listeners:
            try:
                listener({"event": event, **self._common, **details})
            except Exception as error:
                self._listeners = tuple(one for one in self._listeners if one is not listener)
                self.warn(f"a listener to progress failed: {type(error).__name__}: {error}")
