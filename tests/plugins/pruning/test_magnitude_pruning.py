"""Magnitude pruning removes exactly the smallest weights, and they stay removed."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st
from pydantic import ValidationError
from torch import nn

from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.plugins import load_plugins
from zoopress.techniques import Outcome
from zoopress_plugins.pruning.magnitude_pruning import (
    MagnitudePruning,
    MagnitudePruningConfig,
    n_of_m_kept,
    rising_sparsity,
    smallest_pruned,
)

PLUGINS = load_plugins()


class Tracking:
    """As much of a context as the technique uses."""

    def __init__(self, recover: Callable[[Model], None] | None = None) -> None:
        self.recover = recover
        self.seed, self.plugins = 0, PLUGINS

    def track(self, items: list[object], record: object = None) -> list[object]:
        return items


def prune(model: Model, **config: object) -> Outcome:
    technique = MagnitudePruning(MagnitudePruningConfig(**config))  # type: ignore[arg-type]
    return technique.apply(model, Tracking())  # type: ignore[arg-type]


def two_layers() -> Model:
    """Return a model whose first layer's weights are a tenth of the second's."""
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 8)).eval())
    with torch.no_grad():
        model.module[0].weight.uniform_(-0.1, 0.1)  # type: ignore[index]
        model.module[1].weight.uniform_(1.0, 2.0)  # type: ignore[index]
    return model


def zeros(model: Model) -> list[int]:
    return [int((weight.parameter == 0).sum()) for weight in model.weights()]


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    sparsity=st.floats(0.01, 0.99),
    seed=st.integers(0, 999),
)
def test_exactly_the_smallest_scores_go(sizes: list[int], sparsity: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(size, generator=generator) for size in sizes]
    keeps = smallest_pruned(scores, sparsity)
    everything, kept = torch.cat(scores), torch.cat(keeps)
    assert int((~kept).sum()) == round(sparsity * sum(sizes))
    if kept.any() and not kept.all():
        assert everything[~kept].max() <= everything[kept].min()


def test_ties_are_broken_to_the_exact_count() -> None:
    (keep,) = smallest_pruned([torch.ones(3, 4)], 0.25)
    assert int((~keep).sum()) == 3
    assert keep.shape == (3, 4)


def test_n_of_m_keeps_the_best_of_each_group_of_a_row() -> None:
    scores = torch.tensor([[5.0, 1.0, 2.0, 9.0, 4.0, 3.0], [0.0, 0.0, 7.0, 0.0, 1.0, 2.0]])
    keep = n_of_m_kept(scores, 1, 4)
    assert keep[0].tolist() == [False, False, False, True, True, False]
    assert keep[1].tolist()[2] is True
    assert keep[1].tolist()[4:] == [False, True]
    assert n_of_m_kept(scores, 2, 4)[0].tolist() == [True, False, False, True, True, True]


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 25),
    pattern=st.tuples(st.integers(1, 7), st.integers(2, 8)).filter(lambda p: p[0] < p[1]),
    seed=st.integers(0, 999),
)
def test_every_group_of_a_row_keeps_its_n_largest(
    rows: int, columns: int, pattern: tuple[int, int], seed: int
) -> None:
    n, m = pattern
    scores = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    keep = n_of_m_kept(scores, n, m)
    for row in range(rows):
        for start in range(0, columns, m):
            group, kept = scores[row, start : start + m], keep[row, start : start + m]
            best = group.sort(descending=True).values[:n]
            assert group[kept].sort(descending=True).values.tolist() == best.tolist()


def test_each_layer_reaches_the_sparsity_in_layer_scope() -> None:
    model = two_layers()
    outcome = prune(model, sparsity=0.5)
    assert zeros(model) == [24, 24]
    assert outcome.claims[0].reached == 0.5


def test_the_layer_of_smaller_weights_pays_in_global_scope() -> None:
    model = two_layers()
    outcome = prune(model, sparsity=0.5, scope="global")
    assert zeros(model) == [48, 0]
    assert outcome.claims[0].reached == 0.5
    assert model.pruned_count() == 48


@pytest.mark.parametrize("layer", [nn.Linear(16, 4), nn.Conv2d(4, 3, 2), nn.LSTM(8, 8)])
def test_two_of_four_holds_in_each_row_of_any_layer(layer: nn.Module) -> None:
    model = Model(nn.Sequential(layer))
    prune(model, pattern="2:4")
    assert model.masks
    for weight in model.weights():
        groups = (weight.matrix() != 0).view(weight.matrix().shape[0], -1, 4)
        assert (groups.sum(-1) == 2).all()


def test_what_was_pruned_before_stays_pruned_and_counts() -> None:
    model = two_layers()
    prune(model, sparsity=0.25)
    first = {name: mask.clone() for name, mask in model.masks.items()}
    prune(model, sparsity=0.5)
    assert zeros(model) == [24, 24]
    for name, mask in first.items():
        assert not model.masks[name][~mask].any()


def test_only_selected_weights_are_pruned() -> None:
    model = two_layers()
    outcome = prune(model, sparsity=0.5, exclude=("0.*",))
    assert zeros(model) == [0, 24]
    assert list(outcome.touched) == ["1.weight"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "either 'sparsity' or 'pattern'"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "either 'sparsity' or 'pattern'"),
        ({"pattern": "4:2"}, "N:M"),
        ({"pattern": "2:4", "scope": "global"}, "leave 'scope' out"),
        ({"sparsity": 1.0}, "less than 1"),
        ({"pattern": "2:4", "rounds": 2}, "a 'pattern' has none"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MagnitudePruningConfig(**config)  # type: ignore[arg-type]


def test_sparsity_rises_by_a_cubic_of_the_rounds_that_are_left() -> None:
    assert rising_sparsity(0.8, 1) == [0.8]
    assert rising_sparsity(0.8, 2) == pytest.approx([0.8 * (1 - 1 / 8), 0.8])
    assert rising_sparsity(0.5, 4) == pytest.approx(
        [0.5 * (1 - 27 / 64), 0.5 * (1 - 8 / 64), 0.5 * (1 - 1 / 64), 0.5]
    )


@given(sparsity=st.floats(0.05, 0.95), rounds=st.integers(2, 5))
def test_each_round_but_the_last_is_followed_by_a_recovery(sparsity: float, rounds: int) -> None:
    model, seen = two_layers(), []

    def recover(model: Model) -> None:
        seen.append(sum(int((~mask).sum()) for mask in model.masks.values()) / 96)
        with torch.no_grad():
            for weight in model.weights():  # what training could do: other weights matter now
                weight.parameter.copy_(weight.parameter.flip(0))
                weight.parameter.mul_(model.masks[weight.name])

    technique = MagnitudePruning(MagnitudePruningConfig(sparsity=sparsity, rounds=rounds))
    outcome = technique.apply(model, Tracking(recover))  # type: ignore[arg-type]
    assert len(seen) == rounds - 1 == technique.rounds() - 1
    assert all(low <= high for low, high in pairwise(seen))
    assert seen[0] >= rising_sparsity(sparsity, rounds)[0] - 1 / 48
    reached = sum(int((~mask).sum()) for mask in model.masks.values()) / 96
    assert reached >= outcome.claims[0].reached >= sparsity - 1 / 48


def test_rounds_need_something_that_trains_between_them() -> None:
    technique = MagnitudePruning(MagnitudePruningConfig(sparsity=0.5, rounds=2))
    with pytest.raises(StageError, match=r"2 rounds train between them.*'recovery'"):
        technique.apply(two_layers(), Tracking())  # type: ignore[arg-type]
