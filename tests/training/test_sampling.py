"""Which samples a step sees."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from zoopress.training.config import TrainingConfig
from zoopress.training.sampling import Sampler, derived_seed, own_randomness

CPU = torch.device("cpu")


def sampler(samples: int, seed: int = 0, **config: float) -> Sampler:
    return Sampler(samples, TrainingConfig.model_validate({"epochs": 1, **config}), seed)


@given(
    samples=st.integers(1, 200),
    batch_size=st.integers(1, 40),
    accumulate=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_each_epoch_sees_every_sample_once_in_steps_of_like_size(
    samples: int, batch_size: int, accumulate: int, epoch: int
) -> None:
    walk = sampler(samples, batch_size=batch_size, accumulate=accumulate)
    first = epoch * walk.steps_per_epoch
    steps = [walk.passes(step) for step in range(first, first + walk.steps_per_epoch)]
    assert sorted(row for step in steps for rows in step for row in rows) == list(range(samples))
    sizes = [sum(map(len, step)) for step in steps]
    assert max(sizes) <= batch_size * accumulate
    assert max(sizes) - min(sizes) <= 1
    for step in steps:
        assert 1 <= len(step) <= accumulate
        lengths = [len(rows) for rows in step]
        assert max(lengths) <= batch_size
        assert max(lengths) - min(lengths) <= 1


def test_epochs_are_shuffled_anew_and_follow_from_the_seed() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return sampler(50, seed, batch_size=50).passes(epoch)[0]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    assert order(0, 0) != list(range(50))


@given(samples=st.integers(1, 100), steps=st.lists(st.integers(0, 30), min_size=1))
def test_a_step_does_not_depend_on_which_were_asked_for_before(
    samples: int, steps: list[int]
) -> None:
    walk = sampler(samples, batch_size=7)
    assert [walk.passes(s) for s in steps] == [
        sampler(samples, batch_size=7).passes(s) for s in steps
    ]


@pytest.mark.parametrize(
    ("samples", "config", "steps"),
    [
        (100, {"epochs": 1, "batch_size": 32}, 4),
        (100, {"epochs": 2.5, "batch_size": 32}, 10),
        (100, {"epochs": 0.1, "batch_size": 10}, 1),
        (100, {"epochs": 0.001, "batch_size": 10}, 1),
        (100, {"epochs": 1, "batch_size": 10, "accumulate": 5}, 2),
        (5, {"epochs": 3, "batch_size": 32}, 3),
        (5, {"epochs": None, "steps": 17}, 17),
    ],
)
def test_how_many_steps_there_are(samples: int, config: dict[str, float], steps: int) -> None:
    assert sampler(samples, **config).steps == steps


def test_derived_seeds_are_their_own() -> None:
    seeds = {derived_seed(seed, name, i) for seed in (0, 1) for name in "ab" for i in range(50)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_own_randomness_follows_from_the_seed_and_leaves_no_trace() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = draw(), draw()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    first = draw()
    with own_randomness(11, CPU):
        inside = draw()
    assert (first, draw()) == expected
    with own_randomness(11, CPU):
        assert draw() == inside
    with own_randomness(12, CPU):
        assert all(a != b for a, b in zip(draw(), inside, strict=True))
