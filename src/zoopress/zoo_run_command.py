"""The command `zoopress zoo run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoopress.command_arguments import (
    CardsOption,
    EngineOption,
    JsonOption,
    MatrixOption,
    RecipesOption,
    StoreOption,
    flow_module,
    loaded_plugins,
    note,
    use_prefect,
)

if TYPE_CHECKING:
    from zoopress.orchestration.leaderboard import Leaderboard


def run(
    cards: CardsOption,
    recipes: RecipesOption,
    matrix: MatrixOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Results go to OUT/CARD/RECIPE.")] = (
        Path("out")
    ),
    store: StoreOption = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", "-j", help="Jobs at once; by default one a core, 8 at most."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="Memory that jobs share, as 24GB; by default 80 % of the machine's."),
    ] = None,
    engine: EngineOption = None,
    runner: Annotated[
        str | None,
        typer.Option(
            envvar="ZOOPRESS_RUNNER",
            help="With Prefect: threads, dask, dask=tcp://HOST:8786, ray or ray=ray://HOST:10001.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Run every card with every recipe, side by side, and rank the results.

    A cell that fails does not stop the others. What recipes have in common is computed once. The
    exit status is 0 if every cell passed its gates, else 1; finished work stays in the store.

    Examples:

        zoopress zoo run --cards minilm --recipes hybrid --recipes params.yaml#recipes.small

        zoopress zoo run --cards cards/ --recipes params.yaml#recipes --workers 4 --memory 16GB

        zoopress zoo run --matrix params.yaml --runner dask
    """
    from zoopress.units import parse_bytes

    budget = parse_bytes(memory) if memory is not None else None
    silent = quiet or as_json

    def without_prefect() -> Leaderboard:
        return run_inline(cards, recipes, matrix, out, store, workers, budget, silent)

    if use_prefect(engine, runner):
        given = (cards, recipes, matrix, str(out), store, workers, memory, runner, silent)
        board: Leaderboard = flow_module("zoo").run_zoo_in_flow(*given, without_prefect)
    else:
        board = without_prefect()
    if as_json:
        print(json.dumps(board.as_dict()))
    elif not quiet:
        from rich.console import Console

        console = Console()
        console.print(board.table())
        console.print(f"leaderboard  {out / 'leaderboard.html'}", highlight=False, soft_wrap=True)
    states = {cell.state for cell in board.cells}
    if "stopped" in states:
        note("Interrupted. Finished stages are in the store; the same command goes on from there.")
        raise typer.Exit(130)
    if "failed" in states:
        raise typer.Exit(1)


def run_inline(
    cards: list[str],
    recipes: list[str],
    matrix: str | None,
    out: Path,
    store: str | None,
    workers: int | None,
    memory_bytes: int | None,
    quiet: bool,
) -> Leaderboard:
    """Run a zoo without an engine, in worker processes of this machine.

    Raises:
        InputError: if nothing is selected.
    """
    from zoopress.orchestration.budget import MemoryBudget
    from zoopress.orchestration.executors import LocalExecutor, share_cores
    from zoopress.orchestration.selection import select_cells
    from zoopress.orchestration.zoo_run import ZooOptions, ZooRun, write_leaderboard
    from zoopress.progress import zoo_board

    selection = select_cells(cards, recipes, matrix, loaded_plugins())
    total = len(selection.cards) * len(selection.recipes)
    count, threads = share_cores(workers, total)
    budget = MemoryBudget(memory_bytes)
    with zoo_board(total, quiet=quiet) as shown:
        with LocalExecutor(count, budget, shown.tell) as executor:
            options = ZooOptions(out, store, threads)
            board = ZooRun(selection, options, executor.submit, shown.tell).run()
        write_leaderboard(board, out)
    return board
