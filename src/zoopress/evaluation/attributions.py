"""Attributions: how much each value that goes into a function added to what came out.

Values are a list of float tensors, as in `zoopress.evaluation.attacks`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from zoopress.evaluation.attacks import Values, gradients


def integrated_gradients(
    output: Callable[[Values], Tensor], values: Values, steps: int = 32
) -> list[Tensor]:
    """Return x · ∫₀¹ ∂f(αx)/∂x dα for each value x, which add up to f(x) − f(0).

    The path begins at zeros: black or mean images, embeddings of no token. The integral is taken by
    Gauss–Legendre quadrature.

    Args:
        output: f, a scalar with gradients. If it is a sum over samples that do not depend on each
            other, each sample's attributions are its own.
        values: x.
        steps: points at which gradients are taken.

    Returns:
        Of each tensor its attributions, of its shape, float64.

    Source: Sundararajan et al. 2017, arXiv:1703.01365, eq. 1.
    """
    points, weights = np.polynomial.legendre.leggauss(steps)
    total = [torch.zeros_like(value, dtype=torch.float64) for value in values]
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        found = gradients(output, [float(point) * value for value in values])
        for slope, sum_ in zip(found, total, strict=True):
            sum_ += float(weight) * slope.double()
    return [value.double() * slope for value, slope in zip(values, total, strict=True)]


def gradient_times_input(output: Callable[[Values], Tensor], values: Values) -> list[Tensor]:
    """Return x · ∂f(x)/∂x for each value x: one step instead of many, and without their sum.

    Args:
        output: f, a scalar with gradients.
        values: x.

    Source: Shrikumar et al. 2016, arXiv:1605.01713.
    """
    slopes = gradients(output, values)
    return [value.double() * slope.double() for value, slope in zip(values, slopes, strict=True)]
