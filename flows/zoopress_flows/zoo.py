"""A whole zoo as a Prefect flow: every job a task run, on threads, Dask or Ray.

With threads each job is done by a worker process of this machine; on a cluster, by the cluster's
own processes, which find each other's results in the store.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import zoopress_flows.quiet  # noqa: F401  # isort: skip

from prefect import flow, task
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from zoopress.errors import ZoopressError
from zoopress.orchestration.budget import MemoryBudget
from zoopress.orchestration.charts import pareto_svg
from zoopress.orchestration.executors import LocalExecutor, run_here, share_cores
from zoopress.orchestration.jobs import Job
from zoopress.orchestration.leaderboard import Leaderboard
from zoopress.orchestration.selection import Selection, select_cells
from zoopress.orchestration.zoo_run import ZooOptions, ZooRun, write_leaderboard
from zoopress.plugins import load_plugins
from zoopress.progress import terminal, zoo_board
from zoopress.units import parse_bytes
from zoopress_flows.runners import make_runner

_LONG_SECONDS = 10.0
_executor: ContextVar[LocalExecutor | None] = ContextVar("executor", default=None)


@flow(name="zoo", validate_parameters=True)
def zoo_flow(
    cards: list[str] | None = None,
    recipes: list[str] | None = None,
    matrix: str | None = None,
    out: str = "out",
    store: str | None = None,
    workers: int | None = None,
    memory: str | None = None,
    runner: str | None = None,
    quiet: bool = False,
) -> Any:
    """Run every card with every recipe, side by side, and rank the results.

    Args:
        cards: names, files, patterns or folders of cards.
        recipes: names or files of recipes, or sections such as params.yaml#recipes.
        matrix: a file whose `matrix` names the cards and recipes that are not given.
        out: results go to OUT/CARD/RECIPE, the leaderboard to OUT.
        store: where stage results are kept; the user's own by default.
        workers: how many jobs run at once; one a core by default, 8 at most.
        memory: what jobs on one machine share, as 24GB; 80 % of its memory by default.
        runner: threads, dask, ray, dask=ADDRESS or ray=ADDRESS.
        quiet: whether to print nothing.

    Returns:
        The leaderboard. The run's state is named SomeCellsFailed if some did.
    """
    # Clusters get flow and task by value, with all that they name; the rest is imported over there.
    return _run_zoo(
        select_cells(cards or [], recipes or [], matrix, load_plugins()),
        ZooOptions(Path(out), store),
        workers,
        parse_bytes(memory) if memory else None,
        runner,
        quiet,
    )


def _run_zoo(
    selection: Selection,
    options: ZooOptions,
    workers: int | None,
    memory_bytes: int | None,
    runner: str | None,
    quiet: bool,
) -> Any:
    total = len(selection.cards) * len(selection.recipes)
    count, threads = share_cores(workers, total)
    options = replace(options, threads=threads)
    chosen = make_runner(runner, count)
    with zoo_board(total, quiet=quiet) as shown:
        with LocalExecutor(count, MemoryBudget(memory_bytes), shown.tell) as executor:
            token = _executor.set(executor if runner in (None, "threads") else None)
            try:
                with chosen as started:

                    def submit(job: Job) -> Any:
                        given = {"job": job.as_dict(), "memory_bytes": memory_bytes}
                        return started.submit(do_job, given)

                    board = ZooRun(selection, options, submit, shown.tell).run()
            finally:
                _executor.reset(token)
        write_leaderboard(board, options.out)
    _show(board)
    if all(cell.state == "done" for cell in board.cells):
        return board.as_dict()
    return Completed(name="SomeCellsFailed", message=board.summary, data=board.as_dict())


@task(
    name="job",
    task_run_name="{job[kind]} {job[title]}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def do_job(job: dict[str, Any], memory_bytes: int | None) -> dict[str, Any]:
    """Do one job of a zoo run, here or in a worker process."""
    return _do_job(job, memory_bytes)


def _do_job(job: dict[str, Any], memory_bytes: int | None) -> dict[str, Any]:
    the_job, executor = Job.from_dict(job), _executor.get()
    progress = _ProgressArtifact(the_job.title)
    if executor is not None:
        answer = executor.run(the_job, progress.tell)
    else:
        answer = run_here(the_job, MemoryBudget(memory_bytes), progress.tell)
    if "result" in answer:
        from zoopress.report import Report, markdown

        report = Report.from_dict(answer["result"]["report"])
        with suppress(Exception):  # an artifact is to look at; the work is done
            create_markdown_artifact(markdown(report), key=_key("report", the_job.title))
    return answer


class _ProgressArtifact:
    """Shows in Prefect how far a job is, once it has taken long.

    Args:
        title: of the job.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._artifact: Any = None
        self._due = time.monotonic() + _LONG_SECONDS

    def tell(self, event: dict[str, Any]) -> None:
        """Take an event of the job."""
        fraction = event.get("fraction")
        if fraction is None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _LONG_SECONDS / 2
        with suppress(Exception):
            about = f"{self.title}: {event.get('text', '')}"
            if self._artifact is None:
                self._artifact = create_progress_artifact(
                    100 * fraction, key=_key("progress", self.title), description=about
                )
            else:
                update_progress_artifact(self._artifact, 100 * fraction, about)


def _show(board: Leaderboard) -> None:
    """Keep the leaderboard in Prefect, to look at."""
    with suppress(Exception):
        rows = [
            {"card": cell.card, "recipe": cell.recipe, "state": cell.state, **_figures(cell)}
            for cell in board.cells
        ]
        create_table_artifact(rows, key="leaderboard", description=board.summary)
        create_markdown_artifact(board.markdown(), key="leaderboard-page")
        picture = base64.b64encode(pareto_svg(board).encode()).decode()
        create_image_artifact(f"data:image/svg+xml;base64,{picture}", key="pareto-front")


def _figures(cell: Any) -> dict[str, Any]:
    figures = cell.as_dict().get("figures") or {}
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


def _key(*parts: str) -> str:
    """Return a key as Prefect's artifacts have it."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def run_zoo_in_flow(
    cards: list[str],
    recipes: list[str],
    matrix: str | None,
    out: str,
    store: str | None,
    workers: int | None,
    memory: str | None,
    runner: str | None,
    quiet: bool,
    without: Callable[[], Leaderboard],
) -> Leaderboard:
    """Run the flow for the command line; if Prefect itself fails, finish without it.

    Raises:
        ZoopressError: if the input is wrong.
    """
    try:
        data: Any = zoo_flow(cards, recipes, matrix, out, store, workers, memory, runner, quiet)
        return Leaderboard.from_dict(data)
    except ZoopressError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        terminal(quiet).line(f"the Prefect flow failed ({reason}); going on without Prefect")
        return without()
