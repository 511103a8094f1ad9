"""Weights that a module computes from others: folded where a technique works on weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

from zoopress.models.folding import computed_alone, computed_names
from zoopress.models.model import Model


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed: nn.Module = nn.utils.weight_norm(layer)
    return normed


def pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", amount=0.25)
    prune.random_unstructured(layer, "weight", amount=0.25)
    return layer


def both(layer: nn.Module) -> nn.Module:
    """Two parametrizations, one after the other, and one of the bias."""
    parametrizations.orthogonal(layer, orthogonal_map="householder")
    parametrizations.spectral_norm(layer)
    parametrize.register_parametrization(layer, "bias", nn.Tanh())
    return layer


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "several": both,
    "old weight norm": old_weight_norm,
    "old spectral norm": lambda layer: spectral_norm(layer, n_power_iterations=3),
    "pruned by torch": pruned,
}


def network(way: str) -> nn.Module:
    make = WAYS[way]
    torch.manual_seed(0)
    return nn.Sequential(
        make(nn.Linear(32, 64)), nn.ReLU(), make(nn.Linear(64, 48)), nn.ReLU(), nn.Linear(48, 8)
    ).eval()


@pytest.mark.parametrize("way", WAYS)
def test_a_folded_weight_is_the_computed_one_and_can_be_computed_again(way: str) -> None:
    module = network(way)
    x = torch.randn(4, 32)
    expected, state, kinds = module(x), module.state_dict(), [type(m) for m in module.modules()]
    model = Model(module)
    with model.folded():
        assert {w.name: w.kind for w in model.weights()} == {
            f"{place}.weight": "linear" for place in (0, 2, 4)
        }
        assert not any(computed_names(part) for part in module.modules())
        assert torch.equal(module(x), expected)
        assert [edit.edit for edit in model.edits] == ["fold", "fold"]
    assert model.edits == []
    assert [type(m) for m in module.modules()] == kinds
    after = module.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(state[n], after[n]) for n in state)
    assert torch.equal(module(x), expected)
    if "old" in way:  # the hooks work as before
        module.train()(x)
        assert module[0].weight.grad_fn is not None  # type: ignore[index]


def test_only_what_was_changed_stays_folded() -> None:
    model = Model(network("weight norm"))
    with model.folded():
        model.set_values("2.weight", torch.zeros(48, 64))
    assert [edit.module for edit in model.edits] == ["2"]
    assert computed_names(model.module[0]) == ["weight"]  # type: ignore[index]


class Noise(nn.Module):
    """A parametrization that gives another weight each time."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.randn_like(weight)


class Wide(nn.Module):
    """A parametrization of another shape than what it computes from."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.cat([weight, weight])


@pytest.mark.parametrize("parametrization", [Noise(), Wide()])
def test_what_is_no_fixed_function_of_shapes_is_left(parametrization: nn.Module) -> None:
    layer = nn.Linear(8, 8)
    parametrize.register_parametrization(layer, "weight", parametrization, unsafe=True)
    assert computed_alone(nn.Sequential(layer)) == {}


def test_a_shared_source_is_left() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    parametrize.register_parametrization(first, "weight", nn.Tanh())
    assert computed_alone(nn.Sequential(first, second)) == {}
