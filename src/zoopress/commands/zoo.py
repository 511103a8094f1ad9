"""The commands `zoopress zoo …`: make, list, show, fetch and check cards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoopress.commands.arguments import (
    CardArgument,
    JsonOption,
    completion,
    loaded_plugins,
    note,
    print_json,
)
from zoopress.errors import InputError, ZoopressError

if TYPE_CHECKING:
    from zoopress.cards import Card
    from zoopress.cards.add import Added
    from zoopress.plugins import Plugins

zoo_app = typer.Typer(
    help="Make, list, show, fetch and check cards; run all of them.", no_args_is_help=True
)


CardsArgument = Annotated[
    list[str], typer.Argument(help="Names or files of cards.", autocompletion=completion("cards"))
]


@zoo_app.command("list")
def list_cards(
    cards: Annotated[
        Path, typer.Option("--cards", help="Folder of your own cards.", show_default=True)
    ] = Path("cards"),
    as_json: JsonOption = False,
) -> None:
    """List every card that can be given by name: those of plugins, and your own in cards/.

    Examples:

        zoopress zoo list

        zoopress zoo list --cards ~/my-zoo --json
    """
    from zoopress.cards import local_cards

    plugins = loaded_plugins()
    rows = [_row(name, path, plugins, "plugin") for name, path in sorted(plugins.cards.items())]
    for name, path in local_cards(cards).items():
        known = name if cards == Path("cards") and name not in plugins.cards else str(path)
        rows.append(_row(known, path, plugins, str(cards)))
    if as_json:
        print_json(rows)
        return
    if not rows:
        print("There are no cards. Make some: zoopress zoo add ORG/NAME")
        return
    keys = ("card", "task", "license", "source", "description")
    sound = [row for row in rows if "broken" not in row]
    for row in sound:
        row["source"] = re.sub("@([0-9a-f]{7})[0-9a-f]{33}$", r"@\1", row["source"])
    _table(
        ("card", "task", "licence", "source", "description"),
        [[str(row[key] or "–") for key in keys] for row in sound],
    )
    for row in rows:
        if "broken" in row:
            print(f"✗ {row['card']} is broken: {row['broken']}")


@zoo_app.command()
def show(card: CardArgument, as_json: JsonOption = False) -> None:
    """Show a card in full, where its files come from, and what is told of its architecture.

    Weights are not fetched.

    Example:

        zoopress zoo show minilm
    """
    from zoopress.cards import find_card, load_card
    from zoopress.cards.check import megabytes
    from zoopress.cards.maker import as_yaml, card_maker

    plugins = loaded_plugins()
    path, the_card = find_card(card, plugins), load_card(card, plugins)
    shown: dict[str, Any] = {"path": str(path), "card": the_card.as_dict()}
    maker = card_maker(the_card.scheme, plugins)
    try:
        if maker is not None:
            listing = maker.listing(the_card, ["config"])
            shown["place"], shown["revision"] = listing.place, listing.files.revision
            shown["files"] = [
                {"name": n, "bytes": listing.sizes.get(n), "here": n in listing.present}
                for n in listing.files.all
            ]
            shown["folder"] = str(listing.files.folder)
            shown["architecture"] = _architecture(the_card, listing.files, plugins)
    except ZoopressError as error:
        shown["problem"] = str(error)
    if as_json:
        print_json(shown)
        return
    print(f"{path}\n")
    print(as_yaml(shown["card"]), end="")
    if "files" in shown:
        total = sum(file["bytes"] or 0 for file in shown["files"])
        print(f"\n{shown['place']} at {shown['revision']}: {megabytes(total)}")
        for file in shown["files"]:
            size = megabytes(file["bytes"]) if file["bytes"] is not None else "unknown"
            print(f"  {size:>14}  {'here' if file['here'] else 'to fetch':<8}  {file['name']}")
        if any(file["here"] for file in shown["files"]):
            print(f"Those here are in {shown['folder']}")
    if "architecture" in shown:
        arguments = ", ".join(f"{k}: {v}" for k, v in shown["architecture"]["arguments"].items())
        print(f"architecture {shown['architecture']['name']} ({arguments})")
    if "problem" in shown:
        print(f"problem: {shown['problem']}")


@zoo_app.command()
def add(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="ORG/NAME, ORG/NAME@REVISION or an address of the Hub; or a folder of a model, "
            "or of many.",
            default_factory=list,
            show_default=False,
        ),
    ],
    author: Annotated[
        str | None, typer.Option(help="Add all models of an author on the Hub.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="With --author: at most so many, most popular first.")
    ] = None,
    collection: Annotated[
        str | None, typer.Option(help="Add all models of a collection: its slug or address.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Folder for the cards.")] = Path("cards"),
    name: Annotated[str | None, typer.Option(help="The card's name; the model's by default.")] = (
        None
    ),
    task: Annotated[str | None, typer.Option(help="The card's task, not an inferred one.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="The card's data, not inferred: text=FILE, file=FILE, inputs=FILE.py:F."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace cards that are there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cards, write nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make cards of models on the Hub or on disk. Weights are not fetched, and no code is run.

    Examples:

        zoopress zoo add sentence-transformers/all-MiniLM-L6-v2

        zoopress zoo add --author google --limit 20 --to cards/google

        zoopress zoo add ~/models/my-model --data text=sentences.txt
    """
    from zoopress.cards.add import CardWriter, Place, check_wish, find_places, parse_data
    from zoopress.cards.maker import Wish

    plugins = loaded_plugins()
    wish = Wish(to, task, parse_data(data, to) if data is not None else None)
    check_wish(wish, plugins)
    if not (sources or author or collection):
        raise InputError(
            "Say which models: as ORG/NAME, as a folder, with --author or with --collection."
        )
    if limit is not None and not author:
        raise InputError("--limit goes with --author.")
    places = find_places(sources, author, limit, collection, plugins)
    if name is not None and len(places) > 1:
        raise InputError(f"--name {name!r} is for one model, and these are {len(places)}.")
    writer = CardWriter(plugins, wish, force, dry_run)
    done = []
    for place in places:
        done.append(writer.add(place, name) if isinstance(place, Place) else place)
        if not as_json:
            _print_added(done[-1], position=len(done), count=len(places))
    failed = sum(item.state == "failed" for item in done)
    if as_json:
        print_json([{**asdict(i), "path": i.path and str(i.path)} for i in done])
    elif not dry_run:
        made = [item for item in done if item.state == "written"]
        same = sum(item.state == "unchanged" for item in done)
        print(f"{len(made)} written, {same} unchanged, {failed} failed", end="")
        print(f". Next: zoopress zoo check {_named(made)}" if made else ".")
    if failed:
        raise typer.Exit(1)


@zoo_app.command()
def pull(cards: CardsArgument, as_json: JsonOption = False) -> None:
    """Fetch the files of cards; what was interrupted goes on, and every file is verified.

    Example:

        zoopress zoo pull minilm
    """
    from zoopress.cards import load_card
    from zoopress.cards.check import megabytes
    from zoopress.sources import pull as fetch

    plugins = loaded_plugins()
    done: list[dict[str, Any]] = []
    for name in cards:
        try:
            files = fetch(load_card(name, plugins), plugins)
        except ZoopressError as error:
            done.append({"card": name, "problem": str(error)})
            note(f"✗ {name}: {error}")
            continue
        sizes = {file: (files.folder / file).stat().st_size for file in files.all}
        done.append({"card": name, "folder": str(files.folder), "files": sizes})
        if not as_json:
            print(f"{name}: {len(sizes)} files, {megabytes(sum(sizes.values()))}, {files.folder}")
            for file, size in sizes.items():
                print(f"  {megabytes(size):>14}  {file}")
    if as_json:
        print_json(done)
    if any("problem" in item for item in done):
        raise typer.Exit(1)


@zoo_app.command()
def check(
    cards: CardsArgument,
    load: Annotated[
        bool, typer.Option("--load", help="Also fetch the weights, load them, run one batch.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check cards: source, revision, licence, files, architecture, tensors and data.

    Examples:

        zoopress zoo check minilm --load

        zoopress zoo check cards/*.yaml
    """
    from zoopress.cards.check import CardCheck

    plugins = loaded_plugins()
    marks = {"ok": "✓", "note": "!", "failed": "✗", "skipped": "–"}
    found = {}
    for name in cards:
        found[name] = CardCheck(name, plugins, load).run()
        if not as_json:
            rows = [(marks[item.state], item.check, item.text) for item in found[name]]
            _table(("", "check", "finding"), rows, title=name)
    if as_json:
        print_json({name: [asdict(f) for f in items] for name, items in found.items()})
    if any(item.state == "failed" for items in found.values() for item in items):
        raise typer.Exit(1)


@zoo_app.command("plots")
def collect(
    results: Annotated[Path, typer.Argument(help="Folder of results: RESULTS/CARD/RECIPE.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the two files.")] = (
        Path("plots")
    ),
) -> None:
    """Collect stages and layers of all results below a folder, as JSON rows for charts.

    Example:

        zoopress zoo plots models --out plots
    """
    from zoopress.reports.plots import FILES, collect_plots

    count = collect_plots(results, out)
    print(f"{count} cell{'s' * (count > 1)}: {', '.join(str(out / name) for name in FILES)}")


def _row(name: str, path: Path, plugins: Plugins, origin: str) -> dict[str, Any]:
    from zoopress.cards import load_card

    row: dict[str, Any] = {"card": name, "path": str(path), "from": origin}
    try:
        card = load_card(str(path), plugins)
    except ZoopressError as error:
        return {**row, "broken": str(error)}
    keys = ("source", "task", "license", "description")
    return {**row, **{key: getattr(card, key) for key in keys}}


def _architecture(card: Card, files: Any, plugins: Plugins) -> dict[str, Any]:
    from zoopress.artifacts.card_model import find_model

    found = find_model(card, files, plugins).architecture
    return {"name": found.name, "arguments": found.arguments}


def _print_added(item: Added, position: int, count: int) -> None:
    progress = f"[{position}/{count}] " if count > 1 else ""
    if item.state == "failed":
        print(f"✗ {progress}{item.place}: {item.reason}", flush=True)
        return
    if item.state == "shown":
        print(f"# {item.path}\n{item.text}", flush=True)
        return
    state = "" if item.state == "written" else ", as it was"
    print(f"✓ {progress}{item.place} → {item.path}{state}", flush=True)
    for text in item.missing:
        print("    to do: " + text.replace("\n", "\n        "))


def _named(made: list[Added]) -> str:
    """Return how cards are given to the next command."""
    paths = [item.path for item in made if item.path is not None]
    if len(paths) > 1:
        return str(paths[0].parent / "*.yaml")
    return paths[0].stem if paths[0].parent == Path("cards") else str(paths[0])


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print a table; its texts come from cards and hold no markup."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from zoopress.cards.maker import clean

    colours: Mapping[str, str] = {"✓": "green", "✗": "red", "!": "yellow"}
    table = Table(*headers, box=box.SIMPLE, title=title, title_justify="left")
    for row in rows:
        cells = (
            Text(clean(cell, 2000), style=colours.get(cell, ""), overflow="fold") for cell in row
        )
        table.add_row(*cells)
    Console().print(table)
