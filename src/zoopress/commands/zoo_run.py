"""The command `zoopress zoo run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoopress.commands.arguments import (
    CardsOption,
    CellTimeoutOption,
    EngineOption,
    JsonOption,
    MatrixOption,
    MemoryOption,
    OnFailureOption,
    QuietOption,
    RecipesOption,
    RetriesOption,
    StoreOption,
    WorkersOption,
    flow_module,
    loaded_plugins,
    note,
    print_json,
    use_prefect,
)

if TYPE_CHECKING:
    from zoopress.reports.leaderboard import Leaderboard


def run(
    cards: CardsOption,
    recipes: RecipesOption,
    matrix: MatrixOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Results go to OUT/CARD/RECIPE.")] = (
        Path("out")
    ),
    store: StoreOption = None,
    workers: WorkersOption = None,
    memory: MemoryOption = None,
    cell_timeout: CellTimeoutOption = None,
    retries: RetriesOption = None,
    on_failure: OnFailureOption = None,
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
    quiet: QuietOption = False,
) -> None:
    """Run every card with every recipe, side by side, and rank the results.

    A cell that fails or hangs does not stop the others: results are delivered as they are finished.
    What recipes have in common is computed once. What happened to a cell is in OUT/logs. The exit
    status is 0 if every cell passed its gates, else 1; finished work stays in the store.

    Examples:

        zoopress zoo run --cards minilm --recipes hybrid --recipes params.yaml#recipes.small

        zoopress zoo run --cards cards/ --recipes params.yaml#recipes --workers 4 --memory 16GB

        zoopress zoo run --matrix params.yaml --cell-timeout 2h --retries 1

        zoopress zoo run --matrix params.yaml --runner dask
    """
    from zoopress.orchestration.request import ZooRequest, run_zoo

    how = (workers, memory, runner, quiet or as_json, cell_timeout, retries, on_failure)
    given = (matrix, str(out), store, *how)
    request, plugins = ZooRequest(tuple(cards), tuple(recipes), *given), loaded_plugins()
    if use_prefect(engine, runner):
        board: Leaderboard = flow_module("zoo").run_zoo_in_flow(
            request, plugins, chosen=engine is not None or runner is not None
        )
    else:
        board = run_zoo(request, plugins)
    if as_json:
        print_json(board.as_dict())
    elif not quiet:
        from rich.console import Console

        from zoopress.reports.leaderboard_table import LeaderboardTable

        console = Console()
        console.print(LeaderboardTable(board))
        console.print(f"leaderboard  {out / 'leaderboard.html'}", highlight=False, soft_wrap=True)
    states = {cell.state for cell in board.cells}
    if "stopped" in states:
        note("Interrupted. Finished stages are in the store; the same command goes on from there.")
        raise typer.Exit(130)
    if "failed" in states:
        raise typer.Exit(1)
