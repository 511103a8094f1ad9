"""How many bits the coder will take for an index, by how large its neighbours let expect it.

Indices are sorted into classes by their expected magnitude: row's mean × column's mean ÷ mean of
all, about what a coder with contexts learns from neighbours. Each class has a table of bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Classes = NDArray[np.uint8]

LARGEST = 64
"""Larger magnitudes are counted as this one; `trellis_search` extends the table."""
_COUNT = 28
_FINEST = -4
"""Class 0 expects a magnitude of 2**_FINEST at most, each other √2 times that of the one before."""
_PRIOR = 32.0
"""How many symbols seen weigh as much as the Laplace distribution of their class."""


def classes_of(weights: Floats) -> Classes:
    """Sort weights [lines, length], in units of what an index stands for, into classes."""
    sizes = np.abs(weights)
    lines, places = sizes.mean(1, dtype=np.float64), sizes.mean(0, dtype=np.float64)
    mean = float(lines.mean()) or 1.0
    with np.errstate(divide="ignore"):  # log2(0) is −∞: the finest class
        expected = np.log2(lines)[:, None] + np.log2(places / mean)
    classes: Classes = np.clip(np.rint(2 * (expected - _FINEST)), 0, _COUNT - 1).astype(np.uint8)
    return classes


def table_of(classes: Classes, magnitudes: NDArray[np.integer]) -> Floats:
    """Return the bits [classes, LARGEST + 1] of magnitudes, with sign, by how often they occurred.

    Without any, these are the bits of Laplace distributions.

    Args:
        classes: [n], of each index.
        magnitudes: [n].
    """
    width = LARGEST + 1
    places = classes.astype(np.int64) * width + np.minimum(magnitudes, LARGEST)
    counts = np.bincount(places.reshape(-1), minlength=_COUNT * width).reshape(_COUNT, width)
    expected = 2.0 ** (_FINEST + np.arange(_COUNT) / 2)
    shares = _smoothed(counts) + _PRIOR * np.stack([_laplace(magnitude) for magnitude in expected])
    bits: Floats = -np.log2(shares / shares.sum(1, keepdims=True)).astype(np.float32)
    bits[:, 1:] += 1  # the sign
    return bits


def _smoothed(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Average the counts [classes, magnitudes] of magnitudes that differ by a quarter at most.

    Else chance would make some of the many large magnitudes cheap, and choices make them cheaper.
    """
    magnitudes = np.arange(LARGEST)
    low, high = magnitudes - magnitudes // 4, magnitudes + magnitudes // 4 + 1
    sums = np.cumsum(np.pad(counts[:, :LARGEST], ((0, 0), (1, 0))), axis=1)
    high = np.minimum(high, LARGEST)
    means = (sums[:, high] - sums[:, low]) / (high - low)
    return np.concatenate([means, counts[:, LARGEST:]], axis=1)


def _laplace(mean: float) -> NDArray[np.float64]:
    """Return the probabilities of rounded magnitudes 0 … LARGEST of a mean magnitude."""
    tail = np.exp(-(np.arange(LARGEST + 1) + 0.5) / mean)
    shares = np.append(1.0, tail[:-1]) - tail
    shares[LARGEST] += tail[LARGEST]
    floored: NDArray[np.float64] = np.maximum(shares, 1e-9)
    return floored
