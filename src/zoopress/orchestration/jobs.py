"""The jobs that a zoo run is made of. Each is plain data, so any process on any machine can do it.

    open     find a card's files; for each recipe its keys, and what is in the store already
    prefix   compute the first stages of a recipe that other recipes begin with as well
    stages   compute the rest, and hold every stage to the recipe's targets
    finish   compare the result with its original, and write it to its folder

A job relies on nothing but the store: whatever a job before it did is found there.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoopress.cards import Card, load_card
from zoopress.cells.cell import Cell, Original, open_original
from zoopress.cells.plan import make_plan
from zoopress.cells.start import start_of
from zoopress.errors import ZoopressError
from zoopress.observers.watch import NOBODY, Sender
from zoopress.pipeline.compress import Result, deliver, find_finished, run_stages
from zoopress.plugins import Plugins, load_plugins
from zoopress.progress import Listener, Reporter
from zoopress.recipes import load_recipe
from zoopress.resources import usable_cores
from zoopress.store import Store

if TYPE_CHECKING:
    from zoopress.pipeline.workbench import Workbench

Kind = Literal["open", "prefix", "stages", "finish"]
_KEPT_BYTES = 200_000_000
"""An original larger than this is let go after each job, for the memory's sake."""


@dataclass(frozen=True)
class Job:
    """Something to do for one card.

    Attributes:
        kind: see above.
        title: for people.
        card: reference of the card.
        recipes: references of recipes: one, but for "open" all that the card goes with.
        folders: where the result of each recipe goes.
        store: where results are kept; None for the user's own.
        memory_bytes: what it claims of the memory budget; None for the machine alone.
        count: for "prefix", how many stages.
        threads: how many torch computes with; None for all.
        made_in: the commit that the run belongs to, as `provenance.git_state` says it.
        number: of the job in its run, which its stages' news name.
        quiet: whether nothing shall run beside it, if that can be had in time.
        final: whether its report is kept also if something ran beside it.
        beside: what runs beside it although nothing should.
        timeout_s: its worker is ended after so long; None for no limit.
        retries: how often what may pass is tried again: a worker that died or took too long, a
            network or a disk that failed. None: once if its worker died, otherwise not at all.
    """

    kind: Kind
    title: str
    card: str
    recipes: tuple[str, ...]
    folders: tuple[str, ...]
    store: str | None = None
    memory_bytes: int | None = None
    count: int | None = None
    threads: int | None = None
    made_in: dict[str, str] = field(default_factory=dict)
    number: int = 0
    quiet: bool = False
    final: bool = True
    beside: tuple[str, ...] = ()
    timeout_s: float | None = None
    retries: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Job:
        """Rebuild from `as_dict`, also after JSON made lists of its tuples."""
        lists = {key: tuple(data[key]) for key in ("recipes", "folders", "beside")}
        return cls(**{**data, **lists})


def perform(data: dict[str, Any], tell: Listener) -> dict[str, Any]:
    """Do a job, given as plain data.

    Args:
        data: a `Job`.
        tell: gets events of its progress.

    Returns:
        Plain data: for "open", `{"cells": […]}` with, for each recipe, either `result`, `failure`,
        or `missing` and `memory_bytes`, and of what could be opened `card`, `recipe`, `keys` and
        `report_key`; else `computed` and `news`, which were told as events too, and for "finish"
        the `result` and what was `beside` it. Of all, `seconds` and `cpu_seconds`, those of its
        threads and child processes.

    Raises:
        ZoopressError: if it fails for a reason that a user can act on.
    """
    with _desk.lock:  # techniques share torch's random state and threads
        start, cpu_start = time.perf_counter(), cpu_seconds()
        answer = _desk.perform(Job.from_dict(data), tell)
        took = {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - cpu_start}
        return {**answer, **took}


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class _Desk:
    """What a process keeps from job to job: plugins, and the card that it worked on last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._plugins: Plugins | None = None
        self._opened: tuple[str, Card, Original] | None = None
        self._bench: Workbench | None = None
        self._most_threads = 0

    @property
    def plugins(self) -> Plugins:
        if self._plugins is None:
            self._plugins = load_plugins()
            self._plugins.check()
        return self._plugins

    def perform(self, job: Job, tell: Listener) -> dict[str, Any]:
        if job.kind == "open":
            return {"cells": self._open(job, tell)}
        cell = self._cell(job, 0)
        bench = self._workbench(cell, Reporter(listeners=[tell]), job.threads)
        try:
            sender = Sender(tell, job.number)
            # What is finished passed its stages in a job before, which told of them.
            watch = NOBODY if job.kind == "finish" else sender
            with cell.store.using(cell.store_keys):
                done = run_stages(bench, count=job.count, watch=watch)
                answer: dict[str, Any] = {"computed": list(done.computed), "news": sender.sent}
                if job.kind == "finish":
                    keep = job.final or not job.beside
                    report = bench.evaluate(done.last, done.results, keep, job.beside)
                    given = (Path(job.folders[0]), done.computed, job.made_in, bench.reporter)
                    answer["result"] = _plain(deliver(cell, report, done.last, *given))
                    answer["beside"] = list(job.beside)
        finally:
            if cell.original.files.size_bytes() > _KEPT_BYTES:
                self._bench = None
        return answer

    def _open(self, job: Job, tell: Listener) -> list[dict[str, Any]]:
        """Return what is known of each cell of a card before anything is computed."""
        self._opened = None  # a branch may have moved since
        self._original(job)
        found = []
        for index, folder in enumerate(job.folders):
            known: dict[str, Any] = {}
            try:
                cell = self._cell(job, index)
                known.update(card=cell.original.card.as_dict(), recipe=cell.recipe.as_dict())
                known.update(keys=list(cell.keys), report_key=cell.report_key)
                state = self._state(cell, Path(folder), job.made_in, tell)
            except ZoopressError as error:
                state = {"failure": str(error)}
            found.append({**known, **state})
        return found

    def _state(
        self, cell: Cell, folder: Path, made_in: dict[str, str], tell: Listener
    ) -> dict[str, Any]:
        from zoopress.estimates.memory import memory_bytes

        with cell.store.using(cell.store_keys):
            finished = find_finished(cell)
            if finished is not None:
                reporter = Reporter([tell], cell=cell.title)
                result = deliver(cell, *finished, folder, made_in=made_in, reporter=reporter)
                return {"result": _plain(result)}
        return {
            "missing": [key for key in cell.keys if cell.store.find(key) is None],
            "memory_bytes": memory_bytes(cell),
        }

    def _cell(self, job: Job, index: int) -> Cell:
        recipe = load_recipe(job.recipes[index], self.plugins)
        original = self._original(job)
        make_plan(original.card, recipe, start_of(original.model.manifest, self.plugins))
        return Cell(original, recipe, self.plugins, Store(job.store))

    def _original(self, job: Job) -> Original:
        card = load_card(job.card, self.plugins)
        if self._opened is None or self._opened[:2] != (job.card, card):
            self._opened = job.card, card, open_original(card, self.plugins)
        return self._opened[2]

    def _workbench(self, cell: Cell, reporter: Reporter, threads: int | None) -> Workbench:
        import torch

        from zoopress.pipeline.workbench import Workbench

        self._most_threads = self._most_threads or min(torch.get_num_threads(), usable_cores())
        torch.set_num_threads(min(threads or self._most_threads, self._most_threads))
        self._bench = Workbench(cell, reporter, like=self._bench)
        return self._bench


_desk = _Desk()


def _plain(result: Result) -> dict[str, Any]:
    return {"folder": str(result.folder), "report": result.report.as_dict()}
