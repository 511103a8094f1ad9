"""The command `zoopress init`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoopress.commands.arguments import JsonOption, completion, loaded_plugins, note, print_json

if TYPE_CHECKING:
    from zoopress.scaffolds.zoo import Initialized


def init(
    folder: Annotated[Path, typer.Argument(help="Where; made if missing.")] = Path(),
    card: Annotated[
        str | None,
        typer.Option(
            help="The first card: example, a registered card, ORG/NAME on the Hub, or a folder of "
            "a model. By default minilm if its weights are installed, else example.",
            autocompletion=completion("cards"),
            show_default=False,
        ),
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(help="Folder or address of a DVC remote, such as s3://bucket/zoo."),
    ] = None,
    no_commit: Annotated[
        bool, typer.Option("--no-commit", help="Write files only; commit nothing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be done; do nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a repository for a zoo of your own: git, DVC, a card, a recipe, and CI.

    What is there already is left as it is; a second time changes nothing.

    Examples:

        zoopress init my-zoo

        zoopress init my-zoo --card google-bert/bert-base-uncased --remote s3://my-bucket/zoo
    """
    from zoopress.scaffolds.zoo import init_zoo

    done = init_zoo(folder, loaded_plugins(), card, remote, not no_commit, dry_run)
    if as_json:
        print_json({**asdict(done), "folder": str(done.folder)})
        return
    _print(done, dry_run)


def _print(done: Initialized, dry_run: bool) -> None:
    written = [path for path, state in done.files.items() if state == "written"]
    there = [path for path, state in done.files.items() if state == "there"]
    verb = "would be written" if dry_run else "written"
    print(f"{done.folder}: {len(written)} files {verb}, {len(there)} were there")
    for path in written:
        print(f"  {path}")
    if there and written:
        print(f"Left as they are: {', '.join(there)}")
        print("To get one of them anew, move it away and run this again.")
    if done.remote:
        print(f"DVC remote: {done.remote}")
    if done.commit:
        print(f"Committed as {done.commit[:7]}.")
    for text in done.notes:
        note(f"note: {text}")
    if not dry_run and written:
        print(f"Next: cd {done.folder} && dvc repro")
