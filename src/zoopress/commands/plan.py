"""The command `zoopress plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoopress.commands.arguments import (
    CardsOption,
    JsonOption,
    MatrixOption,
    RecipesOption,
    StoreOption,
    completion,
    loaded_plugins,
    note,
    print_json,
)
from zoopress.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from zoopress.estimates.zoo_plan import PlannedCell, PlannedPublication, ZooPlan

_STATES = {"stored": "in the store", "shared": "shared with a cell above", "compute": "to compute"}


def plan(
    cards: CardsOption,
    recipes: RecipesOption,
    card: Annotated[
        str | None,
        typer.Argument(help="A card's name or file.", autocompletion=completion("cards")),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's name or file, or a section of a file as params.yaml#recipes.hybrid.",
            autocompletion=completion("recipes"),
        ),
    ] = None,
    matrix: MatrixOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Where results go, OUT/CARD/RECIPE: out, or the folder models beside a matrix.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe", help="Measure this machine where that has not been done."
        ),
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Check cards and recipes, and show what a run would do and take; computes nothing.

    Shows which stages are in the store, an estimate of the time, the most memory and disk that a
    run may take, what has to be fetched, and where it would be published. Weights are not fetched.
    The exit status is 1 if a cell cannot run.

    Examples:

        zoopress plan minilm hybrid

        zoopress plan --matrix params.yaml

        zoopress plan --cards cards/ --recipes params.yaml#recipes --no-probe --json
    """
    from zoopress.cells.selection import select_cells
    from zoopress.estimates.zoo_planner import ZooPlanner
    from zoopress.progress import terminal
    from zoopress.store import Store

    if card is not None and recipe is None and not (recipes or matrix):
        raise InputError(f"Which recipe for the card {card!r}? As in: zoopress plan {card} hybrid")
    plugins = loaded_plugins()
    named = ([name] if name else [] for name in (card, recipe))
    all_cards, all_recipes = (one + more for one, more in zip(named, (cards, recipes), strict=True))
    selection = select_cells(all_cards, all_recipes, matrix, plugins)
    publish, folder = None, Path("out")
    if matrix is not None:
        from zoopress.orchestration.publishing import read_publish_section

        publish, folder = read_publish_section(Path(matrix)), Path(matrix).parent / "models"
    planner = ZooPlanner(
        Store(store),
        plugins,
        terminal(quiet=as_json),
        probe=probe,
        publish=publish,
        out=out or folder,
    )
    made = planner.plan(selection)
    if as_json:
        print_json(made.as_dict())
    else:
        _print_plan(made)
    if made.problems:
        raise typer.Exit(1)


def _print_plan(made: ZooPlan) -> None:
    from rich.console import Console

    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    sound = [cell for cell in made.cells if cell.problem is None]
    for cell in made.cells:
        if cell.problem is not None:
            note(f"✗ {cell.title}: {cell.problem}")
    if len(made.cells) == 1 and sound:
        say(f"{sound[0].title}: the order works.")
        console.print(_stage_table(sound[0]))
    elif sound:
        console.print(_cell_table(sound))
    for what, text in _summary(made) if sound else ():
        say(f"  {what:<9} {text}")
    for cell in sound:
        for text in cell.advice:
            note(f"! {cell.title}: {text}")
    for text in made.notes:
        note(f"! {text}")


def _stage_table(cell: PlannedCell) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("", box=box.SIMPLE)
    table.add_column("technique", no_wrap=True)
    table.add_column("config", overflow="fold")
    table.add_column("result", no_wrap=True)
    for header in ("time", "store"):
        table.add_column(header, justify="right", no_wrap=True)
    for position, stage in enumerate(cell.stages, start=1):
        config = ", ".join(f"{key}: {value}" for key, value in stage.config.items())
        busy = stage.state == "compute"
        table.add_row(
            *(str(position), stage.technique, Text(config), _STATES[stage.state]),
            *((duration(stage.seconds), _bytes(stage.store_bytes)) if busy else ("", "")),
        )
    for what, seconds in (
        ("start and load", cell.start_seconds),
        ("run the original", cell.reference_seconds),
        ("compare the two", cell.finish_seconds),
    ):
        if seconds != 0.0:
            table.add_row("", what, "", "to compute", duration(seconds), "")
    return table


def _cell_table(cells: list[PlannedCell]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    headers = ["card", "recipe", "stages"]
    publishes = any(cell.publication for cell in cells)
    fetches = any(cell.fetch_bytes != 0 for cell in cells)
    numbers = ["time", "memory", "store", "result", *(["to fetch"] if fetches else [])]
    table = Table(*headers, box=box.SIMPLE, show_lines=False)
    for header in numbers:
        table.add_column(header, justify="right")
    if publishes:
        table.add_column("publish")
    for cell in cells:
        row = [Text(cell.card), Text(cell.recipe), Text(_stages(cell))]
        figures = [
            duration(cell.seconds),
            *(map(_bytes, (cell.memory_bytes, cell.store_bytes, cell.result_bytes))),
            *([_bytes(cell.fetch_bytes)] if fetches else []),
        ]
        where = [Text(_publication(cell.publication))] if publishes else []
        table.add_row(*row, *figures, *where)
    return table


def _stages(cell: PlannedCell) -> str:
    """Return a line a state, with the techniques in it."""
    lines = []
    for state, words in _STATES.items():
        names = [stage.technique for stage in cell.stages if stage.state == state]
        if names:
            lines.append(f"{words}: {', '.join(names)}")
    if not cell.report_stored and all(stage.state != "compute" for stage in cell.stages):
        lines.append("to compute: the comparison with the original")
    return "\n".join(lines)


def _summary(made: ZooPlan) -> list[tuple[str, str]]:
    total = made.total()
    stages = [f"{total['stages_to_compute']} to compute", f"{total['stages_stored']} in the store"]
    if total["stages_shared"]:
        stages.append(f"{total['stages_shared']} shared")
    rows = [
        ("stages", ", ".join(stages)),
        ("time", f"about {duration(total['seconds'])}, one cell after the other"),
        ("memory", f"at most {_bytes(total['memory_bytes'])}, of the cell that takes most"),
        ("disk", f"at most {_bytes(total['store_bytes'])} more in the store"),
        ("results", f"at most {_bytes(total['result_bytes'])}"),
    ]
    if total["seconds"] == 0.0:
        rows[1:4] = [("time", "nothing to compute")]
    elif total["seconds"] is None:
        rows[1] = ("time", "not measured on this machine yet; leave --no-probe out")
    elif made.measured_seconds:
        text = f"{rows[1][1]}; calibrated on this machine in {duration(made.measured_seconds)}"
        rows[1] = ("time", text)
    if total["fetch_bytes"] != 0:
        rows.append(("to fetch", _bytes(total["fetch_bytes"])))
    where = [cell.publication for cell in made.cells if cell.publication is not None]
    if len(where) == 1:
        rows.append(("publish", _publication(where[0])))
    elif where:
        rows.append(("publish", f"{total['to_publish']} of {len(where)}"))
    return rows


def _publication(where: PlannedPublication | None) -> str:
    if where is None:
        return ""
    return f"{where.repo_id}, " + ("as it is there" if where.state == "unchanged" else "new")


def duration(seconds: float | None) -> str:
    """Return a time for people: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min; "?" if it is not known."""
    if seconds is None:
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def _bytes(size: int | None) -> str:
    from zoopress.cards.check import megabytes

    return "unknown" if size is None else megabytes(size)
