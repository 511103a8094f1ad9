"""Error feedback: columns still to come make up for the errors of those before.

With H = M · diag(d) · Mᵀ, M unit upper triangular, an error e of a row costs
e H eᵀ = Σ_c d[c] · (e[c] + Σ_{j<c} e[j] · M[j, c])². So column c is quantized toward its weight
plus Σ_{j<c} e[j] · M[j, c], and what is left costs d[c] times its square, whatever is to come.

Sources: Hassibi & Stork 1993 (optimal brain surgeon); Frantar et al. 2022, arXiv:2210.17323 (all
rows in one order, in blocks); Chee et al. 2023, arXiv:2307.13304, section 3 (this form of it).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]

SHRINKAGE = 0.2
"""Share of what is off the diagonal that is taken for noise of few samples.

Source: Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4 (shrinkage of covariances)."""
DAMPING = 1e-3
"""Of the mean of the diagonal, added to it: no input is sure to stay silent."""
_BLOCK = 128


def conditioned(columns: Tensor) -> Tensor:
    """Return second moments [in, in] or their diagonal [in] as float64, made safe to invert."""
    columns = columns.double()
    diagonal = columns if columns.ndim == 1 else columns.diagonal()
    safe = diagonal + DAMPING * (float(diagonal.mean()) or 1.0)
    if columns.ndim == 1:
        return safe
    return (1 - SHRINKAGE) * (columns - diagonal.diag()) + safe.diag()


def decompose(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return M [in, in], unit upper triangular, and d [in] with moments = M · diag(d) · Mᵀ.

    Args:
        moments: [in, in], float64, positive definite but for rounding.
    """
    damping = 0.0
    while True:
        damped = moments + damping * moments.diagonal().mean() * torch.eye(len(moments)).double()
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(failed):
            break
        damping = max(1e-6, 10 * damping)
    upper = lower.flip(0, 1)
    diagonal = upper.diagonal()
    return upper / diagonal, diagonal.square()


Search = Callable[[Floats, Floats, slice, Floats], None]
"""Quantizes a block: targets and errors [lines, length], both changed, which lines, coupling."""


def with_feedback(weights: Floats, coupling: Floats | None, search: Search) -> Floats:
    """Quantize lines block by block, and return the errors [lines, length].

    Args:
        weights: [lines, length]; a line is a column of the matrix.
        coupling: [lines, lines], M; None: lines do not know of each other.
        search: is given the block's targets, its errors, which are the weights on entry, the lines
            and the block of M. It takes what it puts out for the weights off the errors, and adds
            errors times M to the targets of later lines.
    """
    errors: Floats = weights.copy()
    for start in range(0, len(weights), _BLOCK):
        lines = slice(start, min(start + _BLOCK, len(weights)))
        targets = weights[lines].copy()
        if coupling is None:
            block = np.zeros((len(targets), len(targets)), np.float32)
        else:
            block = np.ascontiguousarray(coupling[lines, lines])
            if start:
                targets += coupling[:start, lines].T @ errors[:start]
        search(targets, errors[lines], lines, block)
    return errors
