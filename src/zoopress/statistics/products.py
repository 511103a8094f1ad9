"""Which operators multiply data by a weight, and how."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoopress.statistics.layout import Part, Watched
from zoopress.statistics.unfolding import unfold

_aten = torch.ops.aten

Rows = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Use:
    """One product of data with a weight, in groups that each have inputs and outputs of their own.

    Attributes:
        weight: which.
        inputs: [groups or 1, k], int64, see `outputs`.
        outputs: [groups or 1, n], int64. What multiplies input k and adds to output n of group g is
            the number of index inputs[g, k] + outputs[g, n] in the flattened parameter.
        rows: how many rows each group has.
        blocks: yields the inputs, [groups, some rows, k] each; None for look-ups.
        tokens: [rows], int64, which input is 1 in each row, while all others are 0: a look-up's.
        result: what the operator returns.
        as_rows: gives a tensor of the result's shape as [groups, rows, n].
    """

    weight: Watched
    inputs: Tensor
    outputs: Tensor
    rows: int
    blocks: Callable[[], Iterator[Tensor]] | None
    tokens: Tensor | None
    result: Tensor
    as_rows: Rows


Find = Callable[[Any], "Part | None"]
"""Returns what part of a weight an argument is, None if it is none."""


def uses(func: Any, find: Find, arguments: Sequence[Any], result: Any) -> list[Use]:
    """Return how an operator multiplies data by weights.

    Args:
        func: of `PRODUCTS`.
        find: finds parts of weights.
        arguments: all positional arguments, defaults included.
        result: what it returned.
    """
    return list(PRODUCTS[func](find, arguments, result))


def _plain(part: Part, columns: int, rows: int, data: Tensor, result: Tensor, as_rows: Rows) -> Use:
    """Return a product of data [rows, k] and a factor whose axes `columns` and `rows` are k, n."""
    return Use(
        part.weight,
        part.indices[columns][None],
        part.indices[rows][None],
        len(data),
        lambda: iter([data[None]]),
        None,
        result,
        as_rows,
    )


def _linear(find: Find, arguments: Sequence[Any], result: Tensor) -> Iterator[Use]:
    data, weight = arguments[:2]
    part = find(weight)
    if part is not None and weight.ndim == 2:
        rows = data.reshape(-1, data.shape[-1])
        yield _plain(part, 1, 0, rows, result, lambda y: y.reshape(1, -1, weight.shape[0]))


def _mm(find: Find, arguments: Sequence[Any], result: Tensor) -> Iterator[Use]:
    a, b = arguments
    if (part := find(b)) is not None:
        yield _plain(part, 0, 1, a, result, lambda y: y[None])
    elif (part := find(a)) is not None:
        yield _plain(part, 1, 0, b.T, result, lambda y: y.T[None])


def _mv(find: Find, arguments: Sequence[Any], result: Tensor) -> Iterator[Use]:
    matrix, vector = arguments
    if (part := find(matrix)) is not None:
        yield _plain(part, 1, 0, vector[None], result, lambda y: y[None, None])
    elif (part := find(vector)) is not None:
        column = Part(part.weight, (part.indices[0], torch.zeros(1, dtype=torch.int64)))
        yield _plain(column, 0, 1, matrix, result, lambda y: y[None, :, None])


def _bmm(find: Find, arguments: Sequence[Any], result: Tensor) -> Iterator[Use]:
    a, b = arguments
    if (part := find(b)) is not None:
        yield from _batched(part, (0, 1, 2), a, result, lambda y: y)
    elif (part := find(a)) is not None:
        yield from _batched(part, (0, 2, 1), b.mT, result, lambda y: y.mT)


def _batched(
    part: Part, axes: tuple[int, int, int], data: Tensor, result: Tensor, turned: Rows
) -> Iterator[Use]:
    """Yield products of data [b, rows, k] with factors that differ along the batch, or repeat."""
    batch, columns, rows = (part.indices[axis] for axis in axes)
    which, inverse = batch.unique(return_inverse=True)
    for index in range(len(which)) if len(which) < len(batch) else ():
        mine = (inverse == index).nonzero().flatten().to(data.device)
        some = data[mine].flatten(0, 1)
        yield Use(
            part.weight,
            columns[None],
            (which[index] + rows)[None],
            len(some),
            lambda some=some: iter([some[None]]),  # type: ignore[misc]
            None,
            result,
            lambda y, mine=mine: turned(y)[mine].flatten(0, 1)[None],  # type: ignore[misc]
        )
    if len(which) == len(batch):
        outputs = batch[:, None] + rows
        count = data.shape[1]
        blocks = lambda: iter([data])  # noqa: E731
        yield Use(part.weight, columns[None], outputs, count, blocks, None, result, turned)


def _grouped_mm(find: Find, arguments: Sequence[Any], result: Tensor) -> Iterator[Use]:
    """Yield the product of each stretch of rows with a matrix of its own, as experts compute."""
    data, factors, ends = arguments[:3]
    part = find(factors)
    if part is None or ends is None or factors.ndim != 3 or data.ndim != 2:
        return
    start = 0
    for index, end in enumerate(ends.tolist()):
        some = data[start:end]
        yield Use(
            part.weight,
            part.indices[1][None],
            (part.indices[0][index] + part.indices[2])[None],
            len(some),
            lambda some=some: iter([some[None]]),  # type: ignore[misc]
            None,
            result,
            lambda y, start=start, end=end: y[None, start:end],  # type: ignore[misc]
        )
        start = end


def _convolution(find: Find, arguments: Sequence[Any], result: Tensor) -> Iterator[Use]:
    data, weight, _, stride, padding, dilation, transposed, _, groups = arguments[:9]
    part = find(weight)
    if part is None or data.ndim != weight.ndim:
        return
    # [in, out / groups, …] if transposed, else [out, in / groups, …].
    sources, targets = (0, 1) if transposed else (1, 0)
    kernel = torch.zeros(1, dtype=torch.int64)
    for indices in part.indices[2:]:
        kernel = (kernel[:, None] + indices).flatten()
    inputs = part.indices[sources].reshape(groups if transposed else 1, -1, 1) + kernel
    outputs = part.indices[targets].reshape(1 if transposed else groups, -1)

    def as_rows(y: Tensor) -> Tensor:
        grouped = y.reshape(len(y), groups, y.shape[1] // groups, -1)
        return grouped.permute(1, 0, 3, 2).flatten(1, 2)

    yield Use(
        part.weight,
        inputs.flatten(1),
        outputs,
        len(result) * math.prod(result.shape[2:]),
        lambda: unfold(
            data,
            weight.shape[2:],
            result.shape[2:],
            stride=stride,
            padding=padding,
            dilation=dilation,
            transposed=transposed,
            groups=groups,
        ),
        None,
        result,
        as_rows,
    )


def _lookup(weight_at: int, tokens_at: int) -> Callable[..., Iterator[Use]]:
    def found(find: Find, arguments: Sequence[Any], result: Any) -> Iterator[Use]:
        weight, tokens = arguments[weight_at], arguments[tokens_at]
        if isinstance(tokens, (list, tuple)):  # weight[tokens]
            tokens = tokens[0] if len(tokens) == 1 else None
        part = find(weight)
        if part is None or weight.ndim != 2 or tokens is None or tokens.dtype == torch.bool:
            return
        first = result[0] if isinstance(result, tuple) else result  # of a bag, sums of its rows
        flat = tokens.flatten().long()
        yield Use(
            part.weight,
            part.indices[0][None],
            part.indices[1][None],
            len(flat),
            None,
            torch.where(flat < 0, flat + len(weight), flat),
            first,
            lambda y: y.reshape(1, -1, weight.shape[1]),
        )

    return found


def _without_first(products: Callable[..., Iterator[Use]]) -> Callable[..., Iterator[Use]]:
    """Return how an operator multiplies whose first argument is added to the product."""

    def found(find: Find, arguments: Sequence[Any], result: Tensor) -> Iterator[Use]:
        yield from products(find, arguments[1:3], result)

    return found


PRODUCTS: dict[Any, Callable[..., Iterator[Use]]] = {
    _aten.linear.default: _linear,
    _aten.mm.default: _mm,
    _aten.addmm.default: _without_first(_mm),
    _aten.mv.default: _mv,
    _aten.addmv.default: _without_first(_mv),
    _aten.bmm.default: _bmm,
    _aten.baddbmm.default: _without_first(_bmm),
    _aten._grouped_mm.default: _grouped_mm,
    _aten.convolution.default: _convolution,
    _aten.embedding.default: _lookup(0, 1),
    _aten._embedding_bag.default: _lookup(0, 1),
    _aten._embedding_bag_forward_only.default: _lookup(0, 1),
    _aten.index.Tensor: _lookup(0, 1),
    # index_select(weight, 0, tokens); along another axis it is no look-up of rows.
}
"""How each operator that multiplies data by weights does it."""
