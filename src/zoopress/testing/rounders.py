"""The conformance test of rounders.

from zoopress.testing import check_rounder

def test_it_conforms():
    check_rounder(MyRounder(MyOptions(damping=0.1)))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from zoopress.errors import StageError
from zoopress.plugins import Plugins, load_plugins
from zoopress.techniques import Matrix, Rounded, Rounder
from zoopress.techniques.rounder import checked_rounding
from zoopress.testing.conformance import ConformanceError, require
from zoopress.testing.declared import check_declared, named

_GRIDS = (
    (2, True, (6, 24, 8)),
    (3, False, (5, 20, 8)),
    (4, True, (1, 9, 9)),
    (4, False, (7, 1, 1)),
    (8, False, (6, 24, 24)),
)
"""Bits, whether the grid is symmetric; rows, columns and columns that share a scale."""
_UNUSUAL = 2
"""On so many of them what is unusual is tried, too: one that learns takes long."""


def check_rounder(rounder: Rounder[Any], plugins: Plugins | None = None) -> None:
    """Check that a rounder keeps every rule, on grids of 2 to 8 bits.

    Args:
        rounder: with options under which it should round.
        plugins: what is registered, the rounder included; everything installed by default.

    Raises:
        ConformanceError: naming the first rule it breaks.
    """
    plugins = plugins or load_plugins()
    with named(rounder):
        check_declared(rounder, "rounders", Rounder, plugins)
        for position, (bits, symmetric, shape) in enumerate(_GRIDS):
            matrix = _matrix(bits, symmetric, shape, rounder.needs_inputs)
            first, again = _rounded(rounder, matrix), _rounded(rounder, matrix)
            require(
                torch.equal(first.levels, again.levels) and torch.equal(first.scale, again.scale),
                "two calls give different levels. Draw random numbers from a generator seeded "
                "with matrix.seed alone",
            )
            for unusual in _unusual(matrix) if position < _UNUSUAL else ():
                _rounded(rounder, unusual)


def _unusual(matrix: Matrix) -> Iterator[Matrix]:
    for values in (torch.zeros_like(matrix.values), torch.ones_like(matrix.values)):
        yield replace(matrix, values=values, keep=None)
    if matrix.inputs is not None:
        silent = matrix.inputs.clone()
        silent[: len(silent) // 2] = 0.0
        silent[:, : len(silent) // 2] = 0.0
        for inputs in (silent, matrix.inputs.diagonal().clone()):
            yield replace(matrix, inputs=inputs)


def _matrix(bits: int, symmetric: bool, shape: tuple[int, int, int], needs: bool) -> Matrix:
    rows, columns, size = shape
    generator = torch.Generator().manual_seed(bits)
    values = torch.randn(rows, columns, generator=generator)
    keep = torch.rand(rows, columns, generator=generator) > 0.3
    # Fewer samples than inputs, as calibration of a wide layer may have.
    seen = torch.randn(max(1, columns // 2), columns, generator=generator)
    return Matrix(
        *("weight", values * keep, bits, size, symmetric, True),
        keep=keep,
        inputs=seen.T @ seen / len(seen) if needs else None,
    )


def _rounded(rounder: Rounder[Any], matrix: Matrix) -> Rounded:
    before = matrix.values.clone()
    try:
        rounded = checked_rounding(rounder, matrix, rounder.round(matrix))
    except StageError as error:
        raise ConformanceError(f"on {matrix.bits} bits: {error}") from error
    require(
        torch.equal(matrix.values, before),
        "it changes the weights that it rounds; compute with a copy",
    )
    return rounded
