"""A whole zoo as a Prefect flow: every job a task run, on threads, Dask or Ray.

With threads each job is done by a worker process of this machine; on a cluster, by the cluster's
own processes, which find each other's results in the store.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict
from typing import Any

import zoopress_flows.quiet  # noqa: F401  # isort: skip

from prefect import flow, task
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from zoopress.estimates.budget import MemoryBudget
from zoopress.orchestration.executors import LocalExecutor, run_here
from zoopress.orchestration.jobs import Job
from zoopress.orchestration.request import ZooRequest, run_zoo
from zoopress.orchestration.zoo_run import Submit
from zoopress.plugins import Plugins, load_plugins
from zoopress.reports.leaderboard import Leaderboard
from zoopress.reports.leaderboard_charts import pareto_svg
from zoopress.reports.leaderboard_table import leaderboard_markdown
from zoopress.reports.report import markdown
from zoopress.results import Report
from zoopress_flows.runners import make_runner
from zoopress_flows.watching import ProgressArtifact, artifact_key, or_without_prefect

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
    given = (matrix, out, store, workers, memory, runner, quiet)
    return _run(ZooRequest(tuple(cards or ()), tuple(recipes or ()), *given))


def _run(request: ZooRequest) -> Any:
    @contextmanager
    def carried(executor: LocalExecutor, workers: int) -> Iterator[Submit]:
        on_threads = request.runner in (None, "threads")
        token = _executor.set(executor if on_threads else None)
        try:
            with make_runner(request.runner, workers) as started:

                def submit(job: Job) -> Any:
                    given = {"job": job.as_dict(), "memory_bytes": request.memory_bytes}
                    return started.submit(do_job, given)

                yield submit
        finally:
            _executor.reset(token)

    board = run_zoo(request, load_plugins(), carried)
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
    progress = ProgressArtifact(the_job.title)
    if executor is not None:
        answer = executor.run(the_job, progress.tell)
    else:
        answer = run_here(the_job, MemoryBudget(memory_bytes), progress.tell)
    if "result" in answer:
        report = Report.from_dict(answer["result"]["report"])
        with suppress(Exception):  # an artifact is to look at; the work is done
            create_markdown_artifact(markdown(report), key=artifact_key("report", the_job.title))
    return answer


def _show(board: Leaderboard) -> None:
    """Keep the leaderboard in Prefect, to look at."""
    with suppress(Exception):
        rows = [
            {"card": cell.card, "recipe": cell.recipe, "state": cell.state, **_figures(cell)}
            for cell in board.cells
        ]
        create_table_artifact(rows, key="leaderboard", description=board.summary)
        create_markdown_artifact(leaderboard_markdown(board), key="leaderboard-page")
        picture = base64.b64encode(pareto_svg(board).encode()).decode()
        create_image_artifact(f"data:image/svg+xml;base64,{picture}", key="pareto-front")


def _figures(cell: Any) -> dict[str, Any]:
    figures = cell.as_dict().get("figures") or {}
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


def run_zoo_in_flow(request: ZooRequest, plugins: Plugins) -> Leaderboard:
    """Run the flow for the command line; if Prefect itself fails, finish without it.

    Raises:
        ZoopressError: if the request is wrong.
    """

    def flow() -> Leaderboard:
        return Leaderboard.from_dict(zoo_flow(**asdict(request)))

    return or_without_prefect(flow, lambda: run_zoo(request, plugins), request.quiet)
