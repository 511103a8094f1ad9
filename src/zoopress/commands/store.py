"""The commands `zoopress store …`: what is kept, whether it is intact, and what may go."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoopress.commands.arguments import JsonOption, StoreOption, note, print_json

if TYPE_CHECKING:
    from zoopress.store.collect import Collected, Stored

store_app = typer.Typer(help="See, check and clean the store of results.", no_args_is_help=True)


@store_app.command("list")
def list_results(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List results: what made them, their size, and when they were last used.

    Examples:

        zoopress store list

        zoopress store list --store s3://my-bucket/zoo --json
    """
    from zoopress.store import Store
    from zoopress.store.upkeep import list_stored

    opened = Store(store)
    found = sorted(list_stored(opened), key=lambda one: (one.seconds_unused, one.key))
    if as_json:
        print_json([_as_dict(one) for one in found])
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from zoopress.units import show_bytes, show_seconds

    table = Table("key", "result", box=box.SIMPLE)
    table.add_column("size", justify="right")
    table.add_column("last used", justify="right")
    for one in found:
        used = f"{show_seconds(one.seconds_unused)} ago"
        table.add_row(one.key[:16], Text(_title(one)), show_bytes(one.bytes), used)
    console = Console()
    console.print(table)
    console.print(_summary(found, opened.address), highlight=False, soft_wrap=True)


@store_app.command()
def size(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show how many results the store has and how many bytes they take.

    Examples:

        zoopress store size

        zoopress store size --store s3://my-bucket/zoo
    """
    from zoopress.store import Store
    from zoopress.store.collect import total_bytes
    from zoopress.store.upkeep import list_stored

    opened = Store(store)
    found = list(list_stored(opened))
    if as_json:
        figures = {"store": opened.address, "results": len(found), "bytes": total_bytes(found)}
        print_json({**figures, "folder": str(opened.root)})
        return
    print(_summary(found, opened.address))
    if opened.shared is not None:
        print(f"What this machine has of it is a store of its own: {opened.root}")


@store_app.command()
def check(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Read every file and compare it with its SHA-256; set aside what is damaged.

    What is damaged is computed again when it is needed. Ends with status 1 if there was any.

    Examples:

        zoopress store check

        zoopress store check --store s3://my-bucket/zoo --json
    """
    import sys

    from rich.console import Console
    from rich.progress import track

    from zoopress.store import Store, upkeep

    opened = Store(store)
    console = Console(file=sys.stderr)
    total = sum(1 for _ in upkeep.list_stored(opened))
    checked = track(
        upkeep.check(opened),
        "checking",
        total=total,
        console=console,
        disable=as_json or not console.is_terminal,
    )
    intact = dict(checked)
    damaged = sorted(key for key, right in intact.items() if not right)
    if as_json:
        print_json({"store": opened.address, "checked": len(intact), "damaged": damaged})
    else:
        for key in damaged:
            print(f"✗ {key}: damaged, and set aside")
        print(f"{len(intact)} results checked in {opened.address}: {len(damaged)} damaged.")
    if damaged:
        raise typer.Exit(1)


@store_app.command()
def gc(
    max_age: Annotated[
        str | None,
        typer.Option("--max-age", help="Remove what was not used for so long: 30d, 12h, 2w."),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(
            "--max-size", help="Then remove the longest unused until the rest fits: 20GB, 500MB."
        ),
    ] = None,
    keep: Annotated[
        list[Path] | None,
        typer.Option(
            "--keep-reachable-from",
            help="Keep what any report.json names, in this folder and in all branches and tags of "
            "its git repository. May be repeated; the current repository by default, if it has a "
            "dvc.lock.",
            show_default=False,
        ),
    ] = None,
    grace: Annotated[
        str, typer.Option(help="Keep what was used in this time, whatever the limits.")
    ] = "1h",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Remove nothing, say what would be.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove results that nothing needs; never what a run that lives now uses.

    Without limits, only what the dead left is removed: half-written and damaged results, and old
    checkpoints.

    Examples:

        zoopress store gc --max-age 30d --dry-run

        zoopress store gc --max-size 20GB --keep-reachable-from ~/zoo --keep-reachable-from ~/other
    """
    from zoopress.store import Store
    from zoopress.store.collect import Policy
    from zoopress.store.reachable import reachable_keys
    from zoopress.store.upkeep import collect
    from zoopress.units import parse_bytes, parse_duration

    opened = Store(store)
    folders = keep or _current_repository()
    policy = Policy(
        max_age_s=None if max_age is None else parse_duration(max_age),
        max_size_bytes=None if max_size is None else parse_bytes(max_size),
        keep=frozenset().union(*map(reachable_keys, folders)),
        grace_s=parse_duration(grace),
    )
    done = collect(opened, policy, dry_run)
    over = policy.max_size_bytes is not None and done.left_bytes > policy.max_size_bytes
    if as_json:
        asked = {"store": opened.address, "dry_run": dry_run, "over_max_size": over}
        print_json({**asked, **asdict(done)})
        return
    _print_collected(done, dry_run, [str(folder) for folder in folders])
    if over:
        note(
            "note: that is more than --max-size; the rest is referred to, in use, or was used "
            "just now (see --grace)."
        )


def _current_repository() -> list[Path]:
    from zoopress.store.reachable import repository_of

    top = repository_of(Path.cwd())
    here = top is not None and any((folder / "dvc.lock").is_file() for folder in (top, Path.cwd()))
    return [top] if top is not None and here else []


def _print_collected(done: Collected, dry_run: bool, folders: list[str]) -> None:
    from zoopress.units import show_bytes

    verb = "Would remove" if dry_run else "Removed"
    print(
        f"{verb} {len(done.removed)} results ({show_bytes(done.removed_bytes)}) and "
        f"{done.leftovers} leftovers."
    )
    places = f" from {', '.join(folders)}" if folders else ""
    print(
        f"{done.left} results ({show_bytes(done.left_bytes)}) stay, {done.reachable} of them "
        f"referred to{places}, {done.in_use} in use."
    )


def _summary(found: list[Stored], address: str) -> str:
    from zoopress.store.collect import total_bytes
    from zoopress.units import show_bytes

    return f"{len(found)} results, {show_bytes(total_bytes(found))}, in {address}"


def _as_dict(one: Stored) -> dict[str, Any]:
    return {
        "key": one.key,
        "result": _title(one),
        "bytes": one.bytes,
        "seconds_unused": round(one.seconds_unused, 1),
    }


def _title(one: Stored) -> str:
    """Say what made a result, as far as its record tells."""
    record = one.record
    if "technique" in record:
        return str(record["technique"])
    if "statistic" in record:
        return f"statistic {record['statistic']}"
    try:
        return f"report of {record['card']['name']} × {record['recipe']['name']}"
    except (LookupError, TypeError):
        return "unknown" if record else "damaged"
