"""Find the least effort that meets a target, with as few trials as can be.

A trial quantizes and measures a whole model, which takes minutes; so each is chosen with care. The
next effort follows from the trials alone: a killed search that kept them goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST_TRIALS = 12
_LONGEST_STEP = 8.0
_OVERSHOOT = 1.1
"""How much further than where the target seems to be the search goes to enclose it."""


@dataclass(frozen=True)
class Trial:
    """What one effort gave.

    Attributes:
        effort: how hard was tried; all in all, more of it gives more surplus.
        surplus: how far beyond the target the result is; negative where it is missed.
        figure: what was reached, in the target's own unit.
        bits_per_weight: that this took.
    """

    effort: float
    surplus: float
    figure: float = 0.0
    bits_per_weight: float = 0.0


@dataclass(frozen=True)
class Search:
    """What is looked for, and where.

    Attributes:
        start: the first effort to try.
        rise: of the surplus with the effort, as expected before it is known.
        lowest: no less effort is tried.
        highest: no more effort is tried.
        tolerance: a surplus up to this one is no waste.
        resolution: of the effort.
    """

    start: float
    rise: float
    lowest: float
    highest: float
    tolerance: float
    resolution: float

    def next_effort(self, trials: Sequence[Trial]) -> float | None:
        """Return the effort to try after some trials; None if no trial is worth its time any more.

        The target is enclosed by steps of Newton's kind, then approached by linear interpolation,
        or by halving where that has come from one side twice, as any root search does.
        """
        if not trials:
            return self.start
        if len(trials) >= MOST_TRIALS:
            return None
        met = least_met(trials)
        missed = [t for t in trials if t.surplus < 0 and (met is None or t.effort < met.effort)]
        if met is None:
            highest = max(missed, key=lambda trial: trial.effort)
            return self._beyond(highest, trials) if highest.effort < self.highest else None
        if met.surplus <= self.tolerance:
            return None
        if not missed:
            return self._beyond(met, trials) if met.effort > self.lowest else None
        below = max(missed, key=lambda trial: trial.effort)
        width = met.effort - below.effort
        if width <= self.resolution:
            return None
        share = (self.tolerance / 2 - below.surplus) / (met.surplus - below.surplus)
        if len(trials) > 2 and len({trial.surplus < 0 for trial in trials[-2:]}) == 1:
            share = (share + 0.5) / 2
        return below.effort + width * min(0.95, max(0.05, share))

    def _beyond(self, last: Trial, trials: Sequence[Trial]) -> float:
        """Return an effort that should be on the other side of the target."""
        rise = self.rise
        others = [trial for trial in trials if trial.effort != last.effort]
        if others:
            nearest = min(others, key=lambda trial: abs(trial.effort - last.effort))
            found = (last.surplus - nearest.surplus) / (last.effort - nearest.effort)
            rise = min(max(found, rise / 4), rise * 4)
        step = max(self.resolution, min(_LONGEST_STEP, _OVERSHOOT * abs(last.surplus) / rise))
        effort = last.effort + (step if last.surplus < 0 else -step)
        return min(self.highest, max(self.lowest, effort))


def least_met(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial of the least effort that met the target, None if none did."""
    return min((t for t in trials if t.surplus >= 0), key=lambda t: t.effort, default=None)


def run_search(
    search: Search,
    measure: Callable[[float], Trial],
    known: Sequence[Trial] = (),
    tell: Callable[[Sequence[Trial]], None] = lambda trials: None,
) -> list[Trial]:
    """Try efforts until the search is over.

    Args:
        search: what to look for.
        measure: tries an effort.
        known: trials of an earlier run.
        tell: is given all trials after each.

    Returns:
        All trials in order; `least_met` of them is the result.
    """
    trials = list(known)
    while (effort := search.next_effort(trials)) is not None:
        trials.append(measure(effort))
        tell(trials)
    return trials
