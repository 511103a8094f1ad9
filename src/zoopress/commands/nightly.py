"""The command `zoopress nightly`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoopress.commands.arguments import (
    CellTimeoutOption,
    JsonOption,
    MemoryOption,
    OnFailureOption,
    QuietOption,
    RetriesOption,
    StoreOption,
    WorkersOption,
    loaded_plugins,
    note,
    print_json,
)

if TYPE_CHECKING:
    from zoopress.orchestration.nightly_summary import NightlySummary

RepositoryOption = Annotated[
    Path, typer.Option("--repository", help="Folder with params.yaml and dvc.yaml, under git.")
]


def nightly(
    repository: RepositoryOption = Path(),
    store: StoreOption = None,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    cell_timeout: CellTimeoutOption = None,
    retries: RetriesOption = None,
    on_failure: OnFailureOption = None,
    push_git: Annotated[
        bool, typer.Option("--push-git", help="Push the commits to the branch's upstream.")
    ] = False,
    publish: Annotated[
        bool, typer.Option("--publish/--no-publish", help="Publish, if params.yaml says where to.")
    ] = True,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Refresh a repository of models: follow what moved, recompress, version, publish.

    Asks the Hub whether the branch of each pinned card moved, computes what changed, runs `dvc
    repro`, commits, pushes and publishes. Killed anywhere, the next one goes on from there. The
    exit status is 0 if everything is up to date then, else 1.

    Examples:

        zoopress nightly

        zoopress nightly --repository /srv/models --push-git --json
    """
    from zoopress.orchestration.nightly import NightlyOptions, refresh
    from zoopress.orchestration.request import ZooRequest, run_zoo
    from zoopress.progress import terminal

    silent, plugins = quiet or as_json, loaded_plugins()

    def run(cards: Sequence[str], matrix: str, out: str) -> dict[str, Any]:
        how = (store, workers, memory, None, silent, cell_timeout, retries, "")
        return run_zoo(ZooRequest(tuple(cards), (), matrix, out, *how), plugins).as_dict()

    try:
        summary = refresh(
            repository,
            NightlyOptions(push_git, publish, store, on_failure),
            plugins,
            run,
            terminal(silent),
        )
    except KeyboardInterrupt:
        note("Interrupted. What is finished stays; the same command goes on from there.")
        raise typer.Exit(130) from None
    if as_json:
        print_json(summary.as_dict())
    elif not quiet:
        print("\n".join(_lines(summary)))
    if not summary.complete:
        raise typer.Exit(1)


def _lines(summary: NightlySummary) -> list[str]:
    """Return a summary as lines for people."""
    lines = [f"moved      {c.name}: {c.before} → {c.after}" for c in summary.cards if c.moved]
    lines += [f"computed   {name}" for name in summary.computed]
    lines += [f"failed     {name}: {reason}" for name, reason in summary.failed.items()]
    lines += [f"problem    {text}" for text in summary.problems]
    lines += [f"committed  {commit}" for commit in (summary.commit, summary.record) if commit]
    lines += [f"pushed     {place}" for place in summary.pushed]
    lines += [f"removed    {summary.removed} results from the store"] if summary.removed else []
    lines += [f"{p.state:<10} {p.url}" for p in summary.published if p.state != "failed"]
    return lines or ["Nothing to do: every model is up to date."]
