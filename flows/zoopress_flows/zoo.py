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
from pathlib import Path
from typing import Any

import zoopress_flows.quiet  # noqa: F401  # isort: skip

from prefect import flow, task
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from zoopress.errors import ZoopressError
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
from zoopress_flows.attempts import run_for_command, work
from zoopress_flows.living import living
from zoopress_flows.repositories import repository_name
from zoopress_flows.runners import started_runner
from zoopress_flows.watching import FlowLog, ProgressArtifact, artifact_key

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
    cell_timeout: str | None = None,
    retries: int | None = None,
    on_failure: str | None = None,
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
        cell_timeout: how long a cell may compute, as 2h; what the matrix' file says, or no limit.
        retries: how often is tried again what may pass; by default once, if a worker died.
        on_failure: command that is run if not every cell is done; what the matrix' file says by
            default.

    Returns:
        The leaderboard. The run's state is named SomeCellsFailed if some did, and is Failed if none
        is done.
    """
    # Clusters get flow and task by value, with all that they name; the rest is imported over there.
    given = (matrix, out, store, workers, memory, runner, quiet, cell_timeout, retries, on_failure)
    return _run(ZooRequest(tuple(cards or ()), tuple(recipes or ()), *given))


def _run(request: ZooRequest) -> Any:
    repository = repository_name(Path(request.matrix).parent if request.matrix else Path.cwd())

    @contextmanager
    def carried(executor: LocalExecutor, workers: int) -> Iterator[Submit]:
        on_threads = request.runner in (None, "threads")
        token = _executor.set(executor if on_threads else None)
        try:
            with started_runner(request.runner, workers) as started:

                def submit(job: Job) -> Any:
                    given = {"job": job.as_dict(), "memory_bytes": request.memory_bytes}
                    return started.submit(do_job, {**given, "repository": repository})

                yield submit
        finally:
            _executor.reset(token)

    with living(), work() as attempt:
        board = run_zoo(request, load_plugins(), carried)
        attempt.result = board
    _show(board, repository)
    states = [cell.state for cell in board.cells]
    if "done" not in states:
        return Failed(message=f"{board.summary}\n{_reasons(board)}", data=board.as_dict())
    if set(states) == {"done"}:
        return board.as_dict()
    message = f"{board.summary}\n{_reasons(board)}"
    return Completed(name="SomeCellsFailed", message=message, data=board.as_dict())


def _reasons(board: Leaderboard) -> str:
    return "\n".join(f"{cell.name}: {cell.reason_line}" for cell in board.unfinished[:20])


@task(
    name="job",
    task_run_name="{job[kind]} {job[title]}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
def do_job(job: dict[str, Any], memory_bytes: int | None, repository: str = "") -> dict[str, Any]:
    """Do one job of a zoo run, here or in a worker process."""
    return _do_job(job, memory_bytes, repository)


def _do_job(job: dict[str, Any], memory_bytes: int | None, repository: str) -> dict[str, Any]:
    the_job, executor = Job.from_dict(job), _executor.get()
    progress, log = ProgressArtifact(the_job.title, repository), FlowLog()

    def tell(event: dict[str, Any]) -> None:
        progress.tell(event)
        log.tell(event)

    if executor is not None:
        answer = executor.run(the_job, tell)
    else:
        answer = run_here(the_job, MemoryBudget(memory_bytes), tell)
    log.tell({"event": "said", "text": answer.get("said")})
    if "result" in answer:
        report = Report.from_dict(answer["result"]["report"])
        with suppress(Exception):  # an artifact is to look at; the work is done
            create_markdown_artifact(markdown(report), key=_key("report", repository, the_job))
    return answer


def _key(what: str, repository: str, job: Job) -> str:
    return artifact_key(what, repository, job.title)


def _show(board: Leaderboard, repository: str) -> None:
    """Keep the leaderboard in Prefect, to look at."""
    with suppress(Exception):
        rows = [
            {"card": cell.card, "recipe": cell.recipe, "state": cell.state, **_figures(cell)}
            for cell in board.cells
        ]
        create_table_artifact(rows, key=f"leaderboard-{repository}", description=board.summary)
        create_markdown_artifact(leaderboard_markdown(board), key=f"leaderboard-page-{repository}")
        picture = base64.b64encode(pareto_svg(board).encode()).decode()
        create_image_artifact(
            f"data:image/svg+xml;base64,{picture}", key=f"pareto-front-{repository}"
        )


def _figures(cell: Any) -> dict[str, Any]:
    figures = cell.as_dict().get("figures") or {}
    return {name: value for name, value in figures.items() if isinstance(value, int | float)}


def run_zoo_in_flow(request: ZooRequest, plugins: Plugins, chosen: bool = False) -> Leaderboard:
    """Run the flow for the command line; if Prefect itself fails on the way, finish without it.

    Raises:
        ZoopressError: if the request is wrong, a cluster that was named cannot be reached, or
            Prefect was `chosen` and cannot begin.
    """

    def flow() -> Leaderboard:
        state: Any = zoo_flow(**asdict(request), return_state=True)
        # Only what is a board ended by itself; a state of Prefect's own is its failure, or ours.
        data = state.result(raise_on_failure=False)
        if isinstance(data, BaseException):
            raise data
        return Leaderboard.from_dict(data)

    def without() -> Leaderboard:
        if request.runner not in (None, "threads"):
            raise ZoopressError(
                f"Prefect failed, and without it nothing runs on {request.runner!r}, which was "
                "asked for. Finished stages are in the store: run the same command again."
            )
        return run_zoo(request, plugins)

    return run_for_command(flow, without, request.quiet, chosen)
