"""Where a run keeps its models: in memory, or on disk where they are too large for that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from zoopress.cells.cell import Cell
from zoopress.errors import InputError
from zoopress.progress import Reporter
from zoopress.resources import memory_limit
from zoopress.units import show_bytes

COPIES = 3
"""The original, the model that is worked on, and one that was saved and is loaded again."""


@contextmanager
def models_kept(cell: Cell, memory_bytes: int | None, reporter: Reporter) -> Iterator[None]:
    """Let the models of a cell lie on disk where they are too large for the memory.

    Args:
        cell: what is worked on.
        memory_bytes: that may be used; what this process is limited to if None.
        reporter: told of it.

    Raises:
        InputError: if less memory was asked for than a stage can do with.
    """
    limit = memory_limit().bytes if memory_bytes is None else memory_bytes
    files = cell.original.files
    needed = COPIES * sum((files.folder / name).stat().st_size for name in files.weights)
    if needed <= limit:
        yield
        return
    words = f"{cell.original.card.name} would take {show_bytes(needed)} of {show_bytes(limit)}"
    unfit = [
        technique.name
        for stage in cell.recipe.stages
        for technique in stage.techniques
        if not technique.weight_by_weight
    ]
    fit = sorted(n for n, kind in cell.plugins.techniques.items() if kind.weight_by_weight)
    if unfit and memory_bytes is not None:
        raise InputError(
            f"{words}, and {unfit[0]!r} needs all of the model in memory. Allow more with "
            f"--memory, or leave this stage out. {', '.join(fit)} take one weight after another."
        )
    if unfit:
        reporter.warn(f"{words} of memory, since {unfit[0]!r} needs all of the model there.")
        yield
        return
    from zoopress.models.on_disk import weights_on_disk

    reporter.line(f"{words} of memory, so that its weights stay on disk")
    with weights_on_disk(cell.store.root / "scratch", limit):
        yield
