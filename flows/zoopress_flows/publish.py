"""Publish many runs as a Prefect flow: each that passed its gates, and none stops another."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import zoopress_flows.quiet  # noqa: F401  # isort: skip

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.states import Failed

from zoopress.cells.selection import select_cells
from zoopress.errors import InputError
from zoopress.orchestration.publishing import Publication, publish_runs
from zoopress.plugins import Plugins, load_plugins
from zoopress.progress import terminal
from zoopress.publishing.publish import PushOptions
from zoopress_flows.living import living
from zoopress_flows.repositories import repository_name
from zoopress_flows.watching import FlowLog


@flow(name="publish")
def publish_flow(
    repo: str,
    folders: list[str] | None = None,
    matrix: str | None = None,
    out: str = "models",
    private: bool | None = None,
    tag: str | None = None,
    branch: str = "main",
    permission: str | None = None,
    allow_low_quality: bool = False,
    allow_worse: bool = False,
    quiet: bool = False,
) -> Any:
    """Publish every run that passed its gates and is like its original.

    Args:
        repo: where to, as my-org/{card}-{recipe}.
        folders: of runs.
        matrix: a file whose matrix names the runs in OUT/CARD/RECIPE; instead of folders.
        out: where the matrix' results are.
        private: whether new repositories are private; the Hub's default if not said.
        tag: of the versions, as v1.
        branch: to commit to.
        permission: where the owner allows what the original's licence does not; for every run.
        allow_low_quality: whether to publish models that are unlike their original, too.
        allow_worse: whether to replace published models that are better.
        quiet: whether to print nothing.

    Returns:
        How publishing each ended. The run's state is Failed if one was not published.
    """
    plugins, reporter = load_plugins(), terminal(quiet, [FlowLog().tell])
    options = PushOptions(
        private=private,
        branch=branch,
        tag=tag,
        permission=permission,
        allow_low_quality=allow_low_quality,
        allow_worse=allow_worse,
    )
    runs = _runs(folders, matrix, Path(out), plugins)
    done: list[Publication] = []
    with living():
        for item in publish_runs(runs, repo, options, plugins, reporter):
            done.append(item)
            if item.state == "failed":
                reporter.warn(f"{item.folder} was not published: {item.reason}")
            else:
                reporter.line(f"{item.state}: {item.url}")
    failed = [item for item in done if item.state == "failed"]
    summary = f"{len(done) - len(failed)} of {len(done)} are on the Hub"
    key = f"published-{repository_name(Path(matrix).parent if matrix else Path.cwd())}"
    with suppress(Exception):  # an artifact is to look at; the work is done
        create_table_artifact([_row(i) for i in done], key=key, description=summary)
    result = {"published": [item.as_dict() for item in done]}
    if failed:
        reasons = [f"{item.folder}: {item.reason}" for item in failed]
        return Failed(message="\n".join([summary, *reasons]), data=result)
    return result


def _runs(folders: list[str] | None, matrix: str | None, out: Path, plugins: Plugins) -> list[Path]:
    if (folders is None) == (matrix is None):
        raise InputError("Say what to publish: either 'folders' of runs, or a 'matrix'.")
    if folders is not None:
        return [Path(folder) for folder in folders]
    cells = select_cells([], [], matrix, plugins).cells()
    return [out / card.name / recipe.name for card, recipe in cells]


def _row(item: Publication) -> dict[str, Any]:
    page = f"[{item.repo_id}]({item.url})" if item.url else item.repo_id
    return {
        "run": item.folder,
        "repository": page,
        "state": item.state,
        "commit": item.commit,
        "reason": item.reason,
    }
