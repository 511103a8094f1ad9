"""Choose the integers of a matrix, and learn on the way how many bits each takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zoopress_plugins.quantization.rate_distortion import rate, trellis_search
from zoopress_plugins.quantization.rounding.error_feedback import Floats, with_feedback

LARGEST_CODE = 32767
_SAMPLE = 1 << 17
"""Bits are learned on so many weights, …"""
_SAMPLE_LINES = 8
"""… but so many lines at least, …"""
_ROUNDS = 3
"""… so often."""


def choose_codes(
    lines: Floats,
    coupling: Floats | None,
    along: Floats,
    across: Floats,
    keep: NDArray[np.bool_] | None,
    trellis: bool,
) -> NDArray[np.int16]:
    """Choose integers with the least distortion + bits, for lines that make up for those before.

    Args:
        lines: the columns of a matrix, in units of steps, [in, out].
        coupling: M of `feedback.decompose`, in units of steps; None: no feedback.
        along: [in]; a squared error of a step is worth along · across bits.
        across: [out].
        keep: [in, out]; None: all of it.
        trellis: whether each line is a path of the trellis.

    Returns:
        [in, out], int16.
    """
    keep = np.ones(lines.shape, np.bool_) if keep is None else keep
    classes = rate.classes_of(lines / np.float32(2 if trellis else 1))

    def run(some: slice, coupling: Floats | None, table: Floats) -> NDArray[np.int16]:
        codes = np.empty(lines[some].shape, np.int16)

        def block(targets: Floats, errors: Floats, part: slice, mixing: Floats) -> None:
            arguments = (
                *(targets, errors, mixing, along[some][part], across, classes[some][part]),
                *(table, keep[some][part], LARGEST_CODE, codes[part]),
            )
            if trellis:
                trellis_search.search_trellis(
                    *arguments, trellis_search.ODD_STATES, trellis_search.SOURCES
                )
            else:
                trellis_search.search_uniform(*arguments)

        with_feedback(lines[some], coupling, block)
        return codes

    # The bits of an index depend on how often it occurs, and that on the bits: some rounds on some
    # lines, which do without feedback.
    nothing = np.zeros(0, np.uint8)
    table = np.repeat(rate.table_of(nothing, nothing)[:, None], 2 if trellis else 1, axis=1)
    wanted = max(_SAMPLE_LINES, _SAMPLE // lines.shape[1])
    some = slice(0, None, max(1, len(lines) // wanted))
    for _ in range(_ROUNDS):
        table = _table(run(some, None, table), classes[some], trellis)
    return run(slice(None), coupling, table)


def _table(codes: NDArray[np.int16], classes: rate.Classes, trellis: bool) -> Floats:
    """Return bits [classes, quantizers, magnitudes] of indices as often as they occur in codes."""
    if not trellis:
        return rate.table_of(classes, np.abs(codes))[:, None]
    indices, quantizers = np.empty(codes.shape, np.int32), np.empty(codes.shape, np.uint8)
    valid = trellis_search.read_paths(
        codes, trellis_search.ODD_STATES, trellis_search.NEXT_STATES, indices, quantizers
    )
    assert valid, "a search puts out paths"
    tables = [rate.table_of(classes[quantizers == q], indices[quantizers == q]) for q in (0, 1)]
    return np.stack(tables, axis=1)
