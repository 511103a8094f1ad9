"""Where in a weight the numbers of a tensor come from.

A product seldom gets a parameter as it is: it gets its transpose, some of its rows, a copy in
another type. What such a tensor holds is told by where in memory it lies, and copies are followed.
A number's *index* is its place in the flattened parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_EXACT = 65_536
"""Up to so many numbers it is checked for each that its index is the sum of those of its axes."""
_SAMPLED = 4096


@dataclass(frozen=True, eq=False)
class Watched:
    """A weight that is watched.

    Attributes:
        name: the weight's.
        shape: the parameter's.
        output_axis: the axis that counts the rows of its matrix.
        groups: in how many groups its layer computes, 1 unless it is a convolution.
    """

    name: str
    shape: torch.Size
    output_axis: int
    groups: int = 1


@dataclass(frozen=True, eq=False)
class _Source:
    """A stretch of memory, dense, whose numbers come from a weight, or from no one weight.

    The number at position offset + Σ digit[axis] · strides[axis] has the index
    Σ indices[axis][digit[axis]].
    """

    storage: StorageWeakRef
    """Held, so that no other memory is taken for this one when this one is gone."""
    offset: int
    length: int
    weight: Watched | None
    axes: tuple[tuple[int, int, Tensor], ...] = ()
    """Size, stride and indices of each, the largest stride first."""


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor whose numbers come from a weight; the index of [i, j, …] is the sum of axes' own."""

    weight: Watched
    indices: tuple[Tensor, ...]


class Layouts:
    """Knows which memory holds numbers of weights."""

    def __init__(self) -> None:
        self._sources: dict[int, list[_Source]] = {}
        self._parts: dict[tuple[object, ...], Part | None] = {}

    def add(self, tensor: Tensor, weight: Watched | None) -> None:
        """Note that a tensor is a weight, or None: something else that depends on no data."""
        if weight is None:
            self._add(tensor, None, ())
            return
        steps = torch.empty(weight.shape, device="meta").stride()
        indices = [
            torch.arange(size) * step for size, step in zip(weight.shape, steps, strict=True)
        ]
        self._add(tensor, weight, indices)

    def add_copy(self, tensor: Tensor, part: Part) -> None:
        """Note that a tensor was made from a part of a weight, number by number."""
        self._add(tensor, part.weight, part.indices)

    def is_constant(self, tensor: Tensor) -> bool:
        """Tell whether a tensor depends on no data, as far as is known."""
        return self._source(tensor) is not None

    def forget(self, tensor: Tensor) -> None:
        """Note that a tensor, unless it is a weight, holds data now."""
        source = self._source(tensor)
        if source is not None and source.weight is None:
            self._sources[tensor.untyped_storage()._cdata].remove(source)

    def sweep(self) -> None:
        """Forget memory that has been freed."""
        gone: set[object] = set()
        for address, sources in list(self._sources.items()):
            if sources and sources[0].storage.expired():
                gone.update(map(id, sources))
                del self._sources[address]
        self._parts = {key: part for key, part in self._parts.items() if key[0] not in gone}

    def part(self, tensor: Tensor) -> Part | None:
        """Return which numbers of a watched weight a tensor holds, None if it holds others."""
        source = self._source(tensor)
        if source is None or source.weight is None:
            return None
        key = (id(source), tensor.storage_offset(), tensor.shape, tensor.stride())
        if key not in self._parts:
            self._parts[key] = _part(source, source.weight, tensor)
        return self._parts[key]

    def _source(self, tensor: Tensor) -> _Source | None:
        if tensor.layout != torch.strided or not tensor.numel():
            return None
        for source in self._sources.get(tensor.untyped_storage()._cdata, ()):
            if 0 <= tensor.storage_offset() - source.offset < source.length:
                return source
        return None

    def _add(self, tensor: Tensor, weight: Watched | None, indices: Sequence[Tensor]) -> None:
        if tensor.layout != torch.strided or not tensor.numel():
            return
        storage = tensor.untyped_storage()
        length = 1 + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        axes = sorted(
            zip(tensor.shape, tensor.stride(), indices, strict=bool(indices)),
            key=lambda axis: -axis[1],
        )
        source = _Source(
            StorageWeakRef(storage), int(tensor.storage_offset()), length, weight, tuple(axes)
        )
        known = self._sources.setdefault(storage._cdata, [])
        if all(other.offset != source.offset for other in known):
            known.append(source)


def _part(source: _Source, weight: Watched, tensor: Tensor) -> Part | None:
    start = int(tensor.storage_offset()) - source.offset
    base = _indices(source, torch.tensor([start]))
    if base is None:
        return None
    indices = []
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        found = _indices(source, start + torch.arange(size) * stride)
        if found is None:
            return None
        indices.append(found - base)
    if not indices:
        return None
    indices[0] = indices[0] + base
    count = tensor.numel()
    places = torch.arange(min(count, _EXACT))
    if count > _EXACT:  # spread evenly without a random generator, whose state is the user's
        places = torch.cat([places[:_SAMPLED] * 2_654_435_761 % count, torch.tensor([count - 1])])
    position, total = torch.full_like(places, start), torch.zeros_like(places)
    for size, stride, axis in reversed(
        list(zip(tensor.shape, tensor.stride(), indices, strict=True))
    ):
        digit = places % size
        places = places // size
        position, total = position + digit * stride, total + axis[digit]
    found = _indices(source, position)
    separable = found is not None and torch.equal(found, total)
    return Part(weight, tuple(indices)) if separable else None


def _indices(source: _Source, positions: Tensor) -> Tensor | None:
    """Return the index of the number at each position, None if there is none at one."""
    total = torch.zeros_like(positions)
    for size, stride, indices in source.axes:
        if size == 1:
            total = total + indices[0]
            continue
        digit = positions // stride if stride else torch.zeros_like(positions)
        if bool((digit >= size).any()):
            return None
        positions = positions - digit * stride
        total = total + indices[digit]
    return None if bool(positions.any()) else total
