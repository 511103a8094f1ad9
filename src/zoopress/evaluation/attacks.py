"""Attacks and measures of sensitivity on continuous values, for any differentiable function.

Values are a list of float tensors [samples, …]; what is said of a sample is said of all its values
together. No function here knows what the values are the inputs of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Values = Sequence[Tensor]
Bounds = Sequence[tuple[float, float]]
"""Smallest and largest value of each tensor; minus and plus infinity where there is none."""


def fgsm(
    loss: Callable[[Values], Tensor], values: Values, epsilons: Sequence[float], bounds: Bounds
) -> list[Tensor]:
    """Move each value by ε in the direction in which the loss grows.

    Args:
        loss: a scalar with gradients.
        values: where to start.
        epsilons: largest change of each tensor's values (L∞).
        bounds: what the values are clipped to.

    Source: Goodfellow et al. 2015, arXiv:1412.6572, section 4.
    """
    moved = zip(values, gradients(loss, values), epsilons, bounds, strict=True)
    return [(value + e * slope.sign()).clamp(*bound) for value, slope, e, bound in moved]


def pgd(
    loss: Callable[[Values], Tensor],
    values: Values,
    epsilons: Sequence[float],
    bounds: Bounds,
    generator: torch.Generator,
    steps: int = 10,
    step_share: float = 0.25,
) -> list[Tensor]:
    """Take several steps like `fgsm`'s from a random start, never further than ε from the values.

    Args:
        loss: a scalar with gradients.
        values: the middle of where to look.
        epsilons: largest change of each tensor's values (L∞).
        bounds: what the values are clipped to.
        generator: draws the start.
        steps: how many.
        step_share: length of a step ÷ ε.

    Source: Madry et al. 2018, arXiv:1706.06083, section 2.1.
    """

    def clipped(moved: Tensor, value: Tensor, epsilon: float, bound: tuple[float, float]) -> Tensor:
        return moved.clamp(min=value - epsilon, max=value + epsilon).clamp(*bound)

    around = list(zip(values, epsilons, bounds, strict=True))
    at = [
        clipped(v + e * (2 * torch.rand(v.shape, generator=generator, dtype=v.dtype) - 1), v, e, b)
        for v, e, b in around
    ]
    for _ in range(steps):
        slopes = gradients(loss, at)
        at = [
            clipped(now + step_share * e * slope.sign(), v, e, b)
            for now, slope, (v, e, b) in zip(at, slopes, around, strict=True)
        ]
    return at


def radii(
    changed: Callable[[Values], Tensor],
    values: Values,
    directions: Values,
    bound: float,
    halvings: int = 8,
    bisections: int = 10,
) -> Tensor:
    """Return how far each sample must move in its direction until something changes.

    The distances bound, bound/2, …, bound/2^halvings are tried, and the interval below the smallest
    of them that changes a sample is bisected. So of several changes on the way the first is found,
    unless it ends before the next distance that is tried.

    Args:
        changed: tells which samples, bool [samples], are changed at some values.
        values: where to start.
        directions: what a distance of 1 adds.
        bound: the largest distance.
        halvings: how many smaller ones are tried.
        bisections: how often the interval is halved.

    Returns:
        [samples]; `bound` where nothing changes up to there.
    """

    def changed_at(distances: Tensor) -> Tensor:
        return changed([v + scaled(d, distances) for v, d in zip(values, directions, strict=True)])

    samples = values[0].shape[0]
    high = torch.full((samples,), float(bound), dtype=torch.float64)
    low = high.clone()  # stays there for those that never change
    for halving in range(halvings + 1):
        distances = torch.full_like(high, bound * 0.5**halving)
        hit = changed_at(distances)
        high = torch.where(hit, distances, high)
        low = torch.where(hit, 0.5 * distances if halving < halvings else 0.0, low)
    for _ in range(bisections):
        middle = (low + high) / 2
        hit = changed_at(middle)
        high, low = torch.where(hit, middle, high), torch.where(hit, low, middle)
    return high


def random_sensitivity(
    function: Callable[[Values], Tensor],
    values: Values,
    generator: torch.Generator,
    change: float = 0.01,
    draws: int = 4,
) -> Tensor:
    """Return relative change of the output ÷ relative change of the values, for random changes.

    Args:
        function: gives outputs [samples, …].
        values: where to look.
        generator: draws the changes, normal, of length `change` × that of the values.
        change: how small; L2 norms of a sample's values together.
        draws: how many changes are averaged.

    Returns:
        [samples].
    """
    output = function(values)
    ratios = []
    for _ in range(draws):
        noise = [torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in values]
        step = change * lengths(values) / lengths(noise).clamp_min(_TINY)
        moved = [v + scaled(n, step) for v, n in zip(values, noise, strict=True)]
        relative = lengths([function(moved) - output]) / lengths([output]).clamp_min(_TINY)
        ratios.append(relative / change)
    return torch.stack(ratios).mean(0)


def largest_sensitivity(
    function: Callable[[Values], Tensor],
    values: Values,
    generator: torch.Generator,
    change: float = 0.001,
    iterations: int = 6,
) -> Tensor:
    """Return the largest relative change of the output ÷ relative change of the values, if small.

    That is the largest singular value of the Jacobian × ‖values‖ ÷ ‖output‖, by power iteration: a
    finite difference takes the place of the product with the Jacobian, a backward pass that of
    the product with its transpose. It is reached from below.

    Args:
        function: gives outputs [samples, …] with gradients, each of its own sample.
        values: where to look.
        generator: draws the direction to start from.
        change: relative length of the finite difference.
        iterations: how many.

    Returns:
        [samples].
    """
    with torch.no_grad():
        output = function(values)
    length = lengths(values)
    direction: Sequence[Tensor] = [
        torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in values
    ]
    for iteration in range(iterations):
        step = change * length / lengths(direction).clamp_min(_TINY)
        moved = [v + scaled(d, step) for v, d in zip(values, direction, strict=True)]
        with torch.no_grad():
            difference = function(moved) - output
        if iteration < iterations - 1:
            direction = gradients(lambda at, d=difference: (function(at) * d).sum(), values)  # type: ignore[misc]
    relative = lengths([difference]) / lengths([output]).clamp_min(_TINY)
    return relative / change


def gradients(function: Callable[[Values], Tensor], values: Values) -> list[Tensor]:
    """Return the gradient of a scalar; zero for values that it does not depend on."""
    at = [value.detach().clone().requires_grad_() for value in values]
    with torch.enable_grad():
        found = torch.autograd.grad(function(at), at, allow_unused=True)
    return [torch.zeros_like(a) if g is None else g for a, g in zip(at, found, strict=True)]


def lengths(values: Values) -> Tensor:
    """Return the L2 norm [samples] of each sample's values together."""
    squares = [value.double().flatten(1).square().sum(1) for value in values]
    return torch.stack(squares).sum(0).sqrt()


def scaled(value: Tensor, factors: Tensor) -> Tensor:
    """Return a tensor [samples, …] with each sample times its factor [samples]."""
    return value * factors.to(value).view(-1, *[1] * (value.ndim - 1))


_TINY = 1e-30
