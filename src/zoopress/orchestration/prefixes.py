"""Which stages recipes have in common, so that each is computed once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

CellT = TypeVar("CellT")


@dataclass
class Shared(Generic[CellT]):
    """Stages that several cells begin with.

    Attributes:
        count: how many stages, counted from the start of the chain.
        missing: whether some of them must be computed; if not there is nothing to wait for.
        cells: that share these stages and no more of them with each other.
        longer: what groups of cells share beyond.
    """

    count: int
    missing: bool
    cells: list[CellT] = field(default_factory=list)
    longer: list[Shared[CellT]] = field(default_factory=list)

    def all_cells(self) -> list[CellT]:
        """Return every cell that begins with these stages."""
        return [*self.cells, *(cell for part in self.longer for cell in part.all_cells())]


def shared_prefixes(keys: Mapping[CellT, Sequence[str]], missing: Collection[str]) -> Shared[CellT]:
    """Arrange cells in a tree of the stages that they share.

    Args:
        keys: of each cell's stages; equal keys are equal results.
        missing: keys that are not in the store.

    Returns:
        The root, which shares no stage; every cell stands in the tree exactly once.
    """

    def grow(cells: list[CellT], start: int) -> Shared[CellT]:
        count = start
        while len({tuple(keys[cell][: count + 1]) for cell in cells}) == 1 and all(
            len(keys[cell]) > count for cell in cells
        ):
            count += 1
        return split(cells, count, any(key in missing for key in keys[cells[0]][start:count]))

    def split(cells: list[CellT], count: int, is_missing: bool) -> Shared[CellT]:
        node: Shared[CellT] = Shared(count, is_missing)
        groups: dict[str, list[CellT]] = {}
        for cell in cells:
            if len(keys[cell]) == count:
                node.cells.append(cell)
            else:
                groups.setdefault(keys[cell][count], []).append(cell)
        for group in groups.values():
            if len(group) == 1:
                node.cells += group
            else:
                node.longer.append(grow(group, count))
        return node

    return split(list(keys), 0, False)
