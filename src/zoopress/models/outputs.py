"""How far what one module makes of an input is from what another one does."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference relative to the largest value; 0 if all are equal."""
    if a.shape != b.shape:
        return float("inf")
    both_nan = a.isnan() & b.isnan()
    difference = torch.where((a == b) | both_nan, 0.0, (a - b).abs())
    largest = float(difference.max()) if difference.numel() else 0.0
    scale = float(a.nan_to_num(0.0, 0.0, 0.0).abs().max()) if a.numel() else 0.0
    return largest / scale if scale else largest


def output_tensors(output: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a module's output by name: a tensor, or such in a dict, tuple or list.

    What is something else, such as a cache of keys and values, is passed over.
    """
    if isinstance(output, Tensor):
        yield name, output.detach()
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from output_tensors(value, f"{name}.{key}")
    elif isinstance(output, (tuple, list)):
        for i, value in enumerate(output):
            yield from output_tensors(value, f"{name}.{i}")


def largest_difference(expected: Any, got: Any) -> float:
    """Return the largest `relative_difference` of two outputs' tensors, in order.

    Infinite if they are not as many, or none, or one is NaN where the other is not.
    """
    pairs = list(output_tensors(expected)), list(output_tensors(got))
    if len(pairs[0]) != len(pairs[1]) or not pairs[0]:
        return math.inf
    differences = [
        relative_difference(_numbers(a), _numbers(b)) for (_, a), (_, b) in zip(*pairs, strict=True)
    ]
    return math.inf if any(map(math.isnan, differences)) else max(differences)


def half_the_digits(*types: torch.dtype) -> float:
    """Return the square root of the machine epsilon of the coarsest float type; float32's of none.

    Sums in another order differ by a few of the last digits; what is wrong, by the first ones.
    """
    floats = [dtype for dtype in types if dtype.is_floating_point]
    return math.sqrt(max(torch.finfo(dtype).eps for dtype in floats or [torch.float32]))


def _numbers(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.complex128 if tensor.is_complex() else torch.float64)
