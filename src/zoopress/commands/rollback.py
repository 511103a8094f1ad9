"""The command `zoopress rollback`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from zoopress.commands.arguments import JsonOption, print_json


def rollback(
    repo: Annotated[str, typer.Argument(help="Repository on the Hub: org/name.")],
    to: Annotated[
        str | None,
        typer.Option(
            help="Tag or commit to bring back; by default the newest that holds another model.",
            show_default=False,
        ),
    ] = None,
    branch: Annotated[str, typer.Option(help="Branch that is rolled back.")] = "main",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring back an earlier version of a published model, by one commit, verified.

    Nothing is rewritten: whoever has pinned a commit keeps it. The model that was taken back is not
    published there again unasked, by `zoopress nightly` say.

    Examples:

        zoopress rollback my-org/minilm-small

        zoopress rollback my-org/minilm-small --to v1
    """
    from zoopress.hub.client import Hub
    from zoopress.publishing.rollback import roll_back

    done = roll_back(Hub(), repo, to, branch, dry_run)
    if as_json:
        print_json({**asdict(done), "dry_run": dry_run})
        return
    if not done.changed:
        print(f"{done.repo_id}: nothing to do; it holds the files of {done.to} already")
        return
    print(f"{done.repo_id}: {'would be ' if dry_run else ''}back at the files of {done.to}")
    for name in done.changed:
        print(f"  ~ {name}")
    if not dry_run:
        print(f"commit  {done.commit}\npage    {done.url}")
