"""Learning rates, by step and by parameter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR

from zoopress.errors import StageError
from zoopress.training.config import TrainingConfig
from zoopress.training.optimization import (
    learning_rate_factors,
    make_optimizer,
    parameter_names,
    schedule_factor,
    set_learning_rate,
)

SCHEDULES = ["cosine", "one_cycle", "linear", "constant"]
steps_and_warm_up = {"steps": st.integers(1, 300), "warm_up": st.floats(0, 0.99)}


def factors(schedule: str, warm_up: float, steps: int) -> list[float]:
    return [schedule_factor(schedule, warm_up, step, steps) for step in range(steps)]


def of_torch(make: type, steps: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@given(schedule=st.sampled_from(SCHEDULES), **steps_and_warm_up)
def test_a_schedule_rises_to_its_peak_and_then_only_falls(
    schedule: str, warm_up: float, steps: int
) -> None:
    found = factors(schedule, warm_up, steps)
    assert all(0 < factor <= 1 for factor in found)
    top = found.index(max(found))
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
    # The peak of one_cycle may lie between two steps.
    assert max(found) == pytest.approx(1, abs=1e-12) or schedule == "one_cycle"


@given(steps=st.integers(2, 200), warm_up=st.floats(0.05, 0.95))
def test_one_cycle_is_torchs(steps: int, warm_up: float) -> None:
    if warm_up * steps <= 1:  # torch divides by zero, or goes backwards
        return
    expected = of_torch(
        OneCycleLR,
        steps - 1,
        max_lr=1.0,
        total_steps=steps,
        pct_start=warm_up,
        cycle_momentum=False,
    )
    assert factors("one_cycle", warm_up, steps)[: steps - 1] == pytest.approx(expected, abs=1e-9)


def test_one_cycle_ends_at_its_lowest() -> None:
    assert factors("one_cycle", 0.3, 50)[-1] == pytest.approx(1 / 25e4)
    assert factors("one_cycle", 0.0, 50)[0] == 1


@given(steps=st.integers(1, 200))
def test_cosine_and_linear_without_warm_up_are_torchs(steps: int) -> None:
    expected = of_torch(CosineAnnealingLR, steps, T_max=steps)
    assert factors("cosine", 0, steps) == pytest.approx(expected, abs=1e-9)
    expected = of_torch(LinearLR, steps, start_factor=1.0, end_factor=0.0, total_iters=steps)
    assert factors("linear", 0, steps) == pytest.approx(expected, abs=1e-9)


@given(rising=st.integers(1, 50))
def test_warm_up_is_torchs_linear_one(rising: int) -> None:
    steps = 2 * rising
    expected = of_torch(
        LinearLR, steps, start_factor=1 / (rising + 1), end_factor=1.0, total_iters=rising
    )
    assert factors("constant", 0.5, steps) == pytest.approx(expected, abs=1e-9)


def test_hand_computed_factors() -> None:
    assert factors("linear", 0.25, 8) == pytest.approx(
        [1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    )
    assert factors("cosine", 0, 4) == pytest.approx([1, 0.8535534, 0.5, 0.1464466])


def named(module: nn.Module, patterns: dict[str, float]) -> dict[str, float]:
    names = parameter_names(module)
    found = learning_rate_factors(names, patterns)
    return {names[parameter][0]: factor for parameter, factor in found.items()}


def test_the_first_pattern_that_matches_counts() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert named(module, {"0.bias": 3.0, "0.*": 0.0}) == {"0.weight": 0, "0.bias": 3}
    assert named(module, {"0.*": 0.0, "0.bias": 3.0}) == {"0.weight": 0, "0.bias": 0}
    assert named(module, {}) == {}


def test_a_tied_parameter_is_found_under_each_of_its_names() -> None:
    module = nn.Sequential(nn.Embedding(3, 3), nn.Linear(3, 3, bias=False))
    module[1].weight = module[0].weight
    assert named(module, {"1.weight": 0.25}) == {"0.weight": 0.25}


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name() -> None:
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    with pytest.raises(StageError, match=r"'encodr.weight'. Did you mean 'encoder.weight'\?"):
        named(module, {"encodr.weight": 0.1})


def test_only_matrices_decay_and_groups_have_their_own_peaks() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    config = TrainingConfig(steps=1, learning_rate=0.5, weight_decay=0.3)
    factors_of = dict.fromkeys(module.parameters(), 1.0) | {module[0].bias: 0.1}
    extra = nn.Parameter(torch.zeros(2, 2))
    optimizer = make_optimizer(config, factors_of, [extra])
    set_learning_rate(optimizer, 0.5)
    found = {
        parameter: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        module[0].weight: (0.25, 0.3),
        module[0].bias: (0.025, 0.0),
        module[1].weight: (0.25, 0.0),
        module[1].bias: (0.25, 0.0),
        extra: (0.25, 0.3),
    }


def test_the_optimizer_is_the_one_that_was_asked_for() -> None:
    module = nn.Linear(2, 2)
    factors_of = dict.fromkeys(module.parameters(), 1.0)
    sgd = make_optimizer(TrainingConfig(steps=1, optimizer="sgd", momentum=0.7), factors_of, [])
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.7
    assert isinstance(make_optimizer(TrainingConfig(steps=1), factors_of, []), torch.optim.AdamW)
