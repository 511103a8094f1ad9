"""Find the bits of weights that keep to a budget, judged by the model that they make.

A budget of bytes counts all files of the artifact, of which weights are a part: what the rest takes
is learned by storing a candidate, and the solver is asked again. A budget of fidelity is met by the
fewest bytes at some sum of damages, which is searched for: damages add up only about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoopress.errors import StageError
from zoopress_plugins.quantization.bit_allocation.knapsack import Choice, InfeasibleError, choose
from zoopress_plugins.quantization.bit_allocation.options import Allocation
from zoopress_plugins.quantization.rate_distortion.target_search import (
    Search,
    Trial,
    least_met,
    run_search,
)

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress_plugins.quantization.rate_distortion.target_measures import Measure

_MOST_TRIALS = 8
_CLOSE = 2e-3
"""Of the bytes allowed: what is left over is not worth another trial."""
_FIDELITY_RESOLUTION = 0.06
_REMEDY = (
    "Ask for less, allow fewer 'bits', select more with 'kinds' and 'include', or prune or factor "
    "in a stage before."
)


@dataclass(frozen=True)
class Found:
    """Bits that meet a budget.

    Attributes:
        options: of each weight, its position among the widths.
        damage: the sum of the weights' damages.
        gap: how much less of what the solver was to make least, damage or bytes, there may be.
        figure: what the model reaches, in the budget's own unit.
        trials: what was tried, in words for a report.
    """

    options: tuple[int, ...]
    damage: float
    gap: float
    figure: float
    trials: list[dict[str, Any]] = field(default_factory=list)


def within_payload(allocation: Allocation, limit: float, count: int) -> Found:
    """Choose bits so that the weights' own buffers take no more than some bits each.

    Args:
        allocation: the weights and their options.
        limit: mean bits of a number, scales included.
        count: of the numbers.

    Raises:
        StageError: if the fewest bits are more.
    """
    try:
        choice = choose(allocation.bytes(), allocation.damages, limit * count / 8)
    except InfeasibleError as error:
        raise StageError(
            f"The target bits_per_weight {limit:g} cannot be met: the least possible is "
            f"{8 * error.least / count:.4g}, scales included. {_REMEDY}"
        ) from None
    return _found(choice, 8 * choice.cost / count)


def within_bytes(
    allocation: Allocation, limit: int, others: int, stored: Callable[[Model], int]
) -> Found:
    """Choose bits so that all files of the artifact take no more than some bytes.

    Args:
        allocation: the weights and their options.
        limit: bytes allowed.
        others: bytes of all other tensors, by which the first trial guesses the rest.
        stored: returns the bytes of the files that a model makes.

    Raises:
        StageError: if the fewest bits take more.
    """
    sizes = allocation.bytes()
    least = float(sum(group.min() for group in sizes))
    most = float(sum(group.max() for group in sizes))
    trials: list[dict[str, Any]] = []
    met: tuple[Choice, int] | None = None
    low, high = least, math.inf
    payload = min(most, max(least, limit - others))
    tried: set[tuple[int, ...]] = set()
    while len(trials) < _MOST_TRIALS:
        choice = choose(sizes, allocation.damages, payload)
        if choice.options in tried:
            break
        tried.add(choice.options)
        size = stored(allocation.candidate(allocation.bits(choice.options)))
        trials.append({"weight_bytes": round(choice.cost), "bytes": size, "damage": choice.damage})
        if size <= limit:
            if met is None or choice.damage < met[0].damage:
                met = (choice, size)
            low = payload
            if limit - size <= _CLOSE * limit or payload >= most:
                break
            payload = choice.cost + limit - size
        else:
            high = payload
            payload = choice.cost - (size - limit)
        if not low <= payload < high:
            payload = low if high == math.inf else (low + high) / 2
        payload = min(payload, most)
    if met is None:
        choice = choose(sizes, allocation.damages, least)
        size = stored(allocation.candidate(allocation.bits(choice.options)))
        if size > limit:
            raise StageError(
                f"The budget of {limit:,} bytes cannot be met: the least possible is {size:,} "
                f"bytes, of which the selected weights take {choice.cost:,.0f}. {_REMEDY}"
            )
        met = (choice, size)
    return _found(met[0], met[1], trials)


def to_fidelity(
    allocation: Allocation, name: str, value: float, measure: Measure, start: float
) -> Found:
    """Choose the bits of the fewest bytes at which the model is as close as is asked for.

    Args:
        allocation: the weights and their options.
        name: of the target.
        value: that is asked for.
        measure: how close a candidate is.
        start: sum of damages to try first.

    Raises:
        StageError: if the most bits are not close enough.
    """
    sizes, damages = allocation.bytes(), allocation.damages
    least = float(sum(group.min() for group in damages))
    most = float(sum(group.max() for group in damages))
    smallest = min((float(d) for group in damages for d in group if d > 0), default=1e-12)
    # Below the smallest damage there is, nothing is left but the least.
    highest = -math.log2(max(least, smallest / 2, 1e-30))
    lowest = -math.log2(max(most, 1e-30))
    best: dict[float, Choice] = {}
    known: dict[tuple[int, ...], Trial] = {}
    count = sum(weight.parameter.numel() for weight in allocation.weights)

    def attempt(effort: float) -> Trial:
        limit = max(least, 2**-effort) * (1 + 1e-9)
        choice = choose(damages, sizes, limit)
        best[effort] = choice
        if choice.options not in known:
            measured = measure(allocation.candidate(allocation.bits(choice.options)))
            bits = 8 * choice.damage / count
            known[choice.options] = Trial(effort, measured.surplus, measured.figure, bits)
        same = known[choice.options]
        return Trial(effort, same.surplus, same.figure, same.bits_per_weight)

    first = min(highest, max(lowest, -math.log2(max(start, 1e-30))))
    search = Search(first, 1.0, lowest, highest, _FIDELITY_RESOLUTION, _FIDELITY_RESOLUTION)
    trials = run_search(search, attempt)
    met = least_met(trials)
    if met is None:
        last = max(trials, key=lambda trial: trial.effort)
        raise StageError(
            f"The target {name} {value:g} cannot be met: with the most bits allowed it is "
            f"{last.figure:.5g}, a standard error not yet subtracted. Allow more 'bits' or "
            "'floats: true', ask for less, make the stages before milder, or give the card more "
            "'calibration_samples'."
        )
    choice = best[met.effort]  # in which costs are damages
    return Found(choice.options, choice.cost, choice.gap, met.figure, _told(trials, name))


def _found(choice: Choice, figure: float, trials: Sequence[dict[str, Any]] = ()) -> Found:
    return Found(choice.options, choice.damage, choice.gap, figure, list(trials))


def _told(trials: Sequence[Trial], name: str) -> list[dict[str, Any]]:
    return [
        {"damage": 2**-t.effort, name: t.figure, "bits_per_weight": t.bits_per_weight}
        for t in trials
    ]
