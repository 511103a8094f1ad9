"""A zoo run as it is asked for, from the selection to the leaderboard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from zoopress.cells.selection import Selection, select_cells
from zoopress.estimates.budget import MemoryBudget
from zoopress.observers.watch import NEWS, Observers
from zoopress.orchestration.executors import LocalExecutor, share_cores
from zoopress.orchestration.limits import read_limits
from zoopress.orchestration.notices import read_on_failure, tell_of_failure
from zoopress.orchestration.zoo_run import Submit, ZooOptions, ZooRun, write_leaderboard
from zoopress.plugins import Plugins
from zoopress.progress import Event, zoo_board
from zoopress.reports.leaderboard import Leaderboard
from zoopress.units import parse_bytes


@dataclass(frozen=True)
class ZooRequest:
    """What to run, and how.

    Attributes:
        cards: names, files, patterns or folders of cards.
        recipes: names or files of recipes, or sections such as params.yaml#recipes.
        matrix: a file whose `matrix` names the cards and recipes that are not given.
        out: results go to OUT/CARD/RECIPE, the leaderboard to OUT.
        store: where stage results are kept; the user's own by default.
        workers: how many jobs run at once; one a core by default, 8 at most.
        memory: what jobs on one machine share, as 24GB; 80 % of its memory by default.
        runner: what carries the jobs under Prefect.
        quiet: whether to print nothing.
        cell_timeout: how long a cell may compute, as 2h; what the matrix' file says, or no limit.
        retries: how often what may pass is tried again; see `Job.retries`.
        on_failure: command that is run if not every cell is done; what the matrix' file says by
            default, "" for none.
    """

    cards: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    matrix: str | None = None
    out: str = "out"
    store: str | None = None
    workers: int | None = None
    memory: str | None = None
    runner: str | None = None
    quiet: bool = False
    cell_timeout: str | None = None
    retries: int | None = None
    on_failure: str | None = None

    def select(self, plugins: Plugins) -> Selection:
        """Find the cards and recipes.

        Raises:
            InputError: if nothing is selected, or two have one name.
        """
        return select_cells(self.cards, self.recipes, self.matrix, plugins)

    @property
    def memory_bytes(self) -> int | None:
        """The memory budget.

        Raises:
            InputError: if `memory` is no size.
        """
        return None if self.memory is None else parse_bytes(self.memory)


Carrier = Callable[[LocalExecutor, int], AbstractContextManager[Submit]]
"""Given worker processes and how many jobs may run at once, opens what jobs are submitted to."""


@contextmanager
def _in_workers(executor: LocalExecutor, workers: int) -> Iterator[Submit]:
    yield executor.submit


def run_zoo(request: ZooRequest, plugins: Plugins, carrier: Carrier = _in_workers) -> Leaderboard:
    """Run a zoo, and write its leaderboard.

    Args:
        request: what to run, and how.
        plugins: which cards, recipes and techniques there are.
        carrier: what carries the jobs; worker processes of this machine by default.

    Raises:
        InputError: if the request is wrong; what goes wrong later is on the leaderboard.
        StoreError: if nothing can be written to the output folder.
    """
    selection, budget = request.select(plugins), MemoryBudget(request.memory_bytes)
    on_failure = read_on_failure(request.matrix, request.on_failure)
    total = len(selection.cards) * len(selection.recipes)
    workers, threads = share_cores(request.workers, total)
    options = ZooOptions(
        Path(request.out),
        request.store,
        threads,
        # A cluster knows itself how many run at once.
        at_once=workers if request.runner in (None, "threads") else None,
        limits=read_limits(request.matrix, request.cell_timeout, request.retries),
    )
    with zoo_board(total, quiet=request.quiet) as shown:
        started: list[ZooRun] = []

        def tell(event: Event) -> None:
            if event["event"] != NEWS:
                shown.tell(event)
            if started:
                started[0].hear(event)

        def warn(text: str) -> None:
            shown.tell({"event": "warning", "text": text})

        with (
            LocalExecutor(workers, budget, tell) as executor,
            carrier(executor, workers) as submit,
        ):
            observers = Observers(plugins, warn)
            started.append(ZooRun(selection, options, submit, shown.tell, observers))
            board = started[0].run()
            executor.close()  # before the carrier waits for what was interrupted
        write_leaderboard(board, options.out)
        if on_failure is not None and board.unfinished:
            summary = f"zoopress zoo run into {options.out.absolute()}: {board.summary}"
            tell_of_failure(on_failure, summary, board.as_dict(), warn)
    return board
