"""The nightly refresh as a Prefect flow: each step a task, the zoo a flow of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import zoopress_flows.quiet  # noqa: F401  # isort: skip

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed

from zoopress.orchestration.nightly import NightlyOptions, refresh
from zoopress.orchestration.nightly_summary import nightly_markdown
from zoopress.orchestration.request import ZooRequest
from zoopress.plugins import load_plugins
from zoopress.progress import terminal
from zoopress_flows.attempts import as_task
from zoopress_flows.living import living
from zoopress_flows.repositories import repository_name
from zoopress_flows.watching import FlowLog
from zoopress_flows.zoo import run_zoo_in_flow


@flow(name="nightly")
def nightly_flow(
    repository: str = ".",
    store: str | None = None,
    workers: int | None = None,
    memory: str | None = None,
    runner: str | None = None,
    push_git: bool = False,
    publish: bool = True,
    quiet: bool = False,
    cell_timeout: str | None = None,
    retries: int | None = None,
    on_failure: str | None = None,
) -> Any:
    """Refresh a repository of models: follow what moved, recompress, version, publish.

    Args:
        repository: folder with params.yaml and dvc.yaml, under git.
        store: where stage results are kept; the user's own by default.
        workers: how many jobs run at once; one a core by default, 8 at most.
        memory: what jobs on one machine share, as 24GB; 80 % of its memory by default.
        runner: threads, dask, ray, dask=ADDRESS or ray=ADDRESS.
        push_git: whether to push commits to the branch's upstream.
        publish: whether to publish, where params.yaml says where to.
        quiet: whether to print nothing.
        cell_timeout: how long a cell may compute, as 2h; what params.yaml says, or no limit.
        retries: how often is tried again what may pass; by default once, if a worker died.
        on_failure: command that is run if not all is done; what params.yaml says by default.

    Returns:
        What was done. The run's state is named SomeCellsFailed if only cells failed, and is Failed
        if all did, or if something is not versioned, pushed or published that should be.
    """

    plugins = load_plugins()
    name = repository_name(Path(repository))

    def run_zoo(cards: Sequence[str], matrix: str, out: str) -> dict[str, Any]:
        how = (store, workers, memory, runner, quiet, cell_timeout, retries, "")
        return run_zoo_in_flow(ZooRequest(tuple(cards), (), matrix, out, *how), plugins).as_dict()

    with living():
        summary = refresh(
            Path(repository),
            NightlyOptions(push_git, publish, store, on_failure),
            plugins,
            run_zoo,
            terminal(quiet, [FlowLog().tell]),
            _execute,
        )
    with suppress(Exception):  # an artifact is to look at; the work is done
        create_markdown_artifact(nightly_markdown(summary), key=f"nightly-{name}")
    if summary.problems:
        message = "\n".join(summary.problems)
        return Failed(message=message, data=summary.as_dict())
    if summary.failed:
        message = f"Failed: {', '.join(summary.failed)}."
        if not summary.done:
            return Failed(message=message, data=summary.as_dict())
        return Completed(name="SomeCellsFailed", message=message, data=summary.as_dict())
    return summary.as_dict()


def _execute(name: str, work: Callable[[], Any]) -> Any:
    """Run a step as a task, but for the zoo, which is a flow."""
    return work() if name == "zoo" else as_task(name, work)
