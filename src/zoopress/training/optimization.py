"""What is trained, by which optimizer, and at which learning rate."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from zoopress.errors import StageError, nearest
from zoopress.training.config import TrainingConfig

ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1 / 25e4


def schedule_factor(schedule: str, warm_up: float, step: int, steps: int) -> float:
    """Return what the peak learning rate is multiplied by.

    Args:
        schedule: a name of `TrainingConfig.schedule`.
        warm_up: share of the steps, 0 to below 1.
        step: 0 to steps − 1.
        steps: how many there are in all.

    Returns:
        Above 0, at most 1. No step is wasted on a learning rate of 0.

    Source: one_cycle: Smith & Topin 2017, arXiv:1708.07120, in two phases, both cosines; cosine:
    Loshchilov & Hutter 2016, arXiv:1608.03983, eq. 5, without restarts.
    """
    if schedule == "one_cycle":
        peak = warm_up * steps - 1
        if step < peak:
            return _cosine(ONE_CYCLE_START, 1.0, step / peak)
        start = max(0.0, peak)
        return _cosine(1.0, ONE_CYCLE_END, (step - start) / max(1.0, steps - 1 - start))
    rising = min(round(warm_up * steps), steps - 1)
    if step < rising:
        return (step + 1) / (rising + 1)
    if schedule == "constant":
        return 1.0
    done = (step - rising) / (steps - rising)
    return _cosine(1.0, 0.0, done) if schedule == "cosine" else 1.0 - done


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def parameter_names(module: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Return the names of every float parameter; a tied one has several."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.is_floating_point():
            names.setdefault(parameter, []).append(name)
    return names


def learning_rate_factors(
    names: Mapping[nn.Parameter, list[str]], patterns: Mapping[str, float]
) -> dict[nn.Parameter, float]:
    """Return the factors of the learning rates of the parameters that a pattern matches.

    Args:
        names: see `parameter_names`.
        patterns: factors by shell pattern; the first that matches counts.

    Raises:
        StageError: if a pattern matches nothing.
    """
    everything = [name for group in names.values() for name in group]
    found: dict[nn.Parameter, float] = {}
    for pattern, factor in patterns.items():
        matched = set(fnmatch.filter(everything, pattern))
        if not matched:
            raise StageError(
                f"'learning_rates': no float parameter matches {pattern!r}."
                f"{nearest(pattern, everything)}"
            )
        for parameter, group in names.items():
            if not matched.isdisjoint(group):
                found.setdefault(parameter, factor)
    return found


def make_optimizer(
    config: TrainingConfig, factors: Mapping[nn.Parameter, float], others: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the optimizer.

    Args:
        config: which, and its learning rate, momentum and weight decay.
        factors: of the learning rate, above 0, of each parameter of the model that is trained.
        others: parameters besides the model's, at the plain learning rate.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter, factor in (*factors.items(), *((other, 1.0) for other in others)):
        groups.setdefault((factor, parameter.ndim > 1), []).append(parameter)
    options = [
        {
            "params": parameters,
            "peak": config.learning_rate * factor,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (factor, decays), parameters in groups.items()
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(options, lr=config.learning_rate)
    return torch.optim.SGD(options, lr=config.learning_rate, momentum=config.momentum)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
