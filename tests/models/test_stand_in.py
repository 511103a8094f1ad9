"""A layer of anybody's in the place of another."""

from __future__ import annotations

import copy
import pickle
import re
from abc import ABC
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoopress
from zoopress.errors import MissingTensorError, StageError
from zoopress.models.model import Model
from zoopress.models.stand_in import former, merge
from zoopress.testing.replaced import wrong_stand_ins


class Halves(nn.Module):
    """Two linear layers side by side, without a word on their weight."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.left = nn.Linear(module.in_features, module.out_features // 2)
        self.right = nn.Linear(module.in_features, module.out_features // 2)

    @classmethod
    def from_module(cls, module: nn.Module) -> Halves:
        return cls(module)

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([self.left(input), self.right(input)], dim=-1)


class Telling(Halves):
    @property
    def weight(self) -> Tensor:
        return torch.cat([self.left.weight, self.right.weight])

    @property
    def bias(self) -> Tensor:
        return torch.cat([self.left.bias, self.right.bias])


class Lying(Telling):
    @property
    def bias(self) -> Tensor:
        return torch.zeros(4)


class Around(nn.Module):
    """Holds the layer that it replaces."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @classmethod
    def from_module(cls, module: nn.Module) -> Around:
        return cls(module)

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = -self.inner(input)
        return result


class Unpicklable(Telling):
    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.function = lambda: None


class Deaf(Telling):
    def __call__(self, *given: Any, **named: Any) -> Any:
        return self.forward(*given, **named)


class Abstract(nn.Linear, ABC):
    def own(self) -> int:
        return self.out_features


def replaced(layer: type, module: nn.Module | None = None, values: float | None = None) -> Model:
    module = nn.Linear(6, 4) if module is None else module
    model = Model(nn.Sequential(module).eval(), {"layer": layer})
    made: Any = layer
    tensors = made.from_module(copy.deepcopy(module)).state_dict()
    model.replace("0", "layer", {}, tensors)
    return model


INPUT = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [nn.Linear, Abstract])
def test_a_layer_of_anybodys_is_of_both_classes_copied_and_pickled(kind: type) -> None:
    model = replaced(Halves, kind(6, 4))
    layer = model.module.get_submodule("0")
    assert isinstance(layer, kind)
    assert isinstance(layer, Halves)
    assert type(layer).__name__ == "Halves"
    expected = layer(INPUT)
    for other in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is type(layer)
        assert torch.equal(other(INPUT), expected)
    if kind is Abstract:
        assert layer.own() == 4  # type: ignore[operator]


def test_what_the_layer_does_not_offer_is_missed_in_words() -> None:
    layer = replaced(Halves).module.get_submodule("0")
    with pytest.raises(MissingTensorError, match=r"'weight' of a Linear was read.*'exclude'"):
        _ = layer.weight
    assert not hasattr(layer, "weight")
    with pytest.raises(AttributeError, match="nothing"):
        _ = layer.nothing


def test_a_forward_that_may_read_what_is_not_offered_is_refused() -> None:
    module = nn.Linear(6, 4).eval()
    plain = module.forward
    module.forward = lambda input: 2 * plain(input)  # type: ignore[method-assign]
    before = dict(vars(module))
    with pytest.raises(StageError, match=r"may read 'weight'; Halves offers.*'exclude'"):
        replaced(Halves, module)
    assert type(module) is nn.Linear
    assert vars(module) == before
    expected = 2 * plain(INPUT)
    telling = replaced(Telling, module).module
    assert not torch.equal(telling(INPUT), expected)
    layer: Any = telling[0]  # type: ignore[index]
    assert torch.equal(telling(INPUT), 2 * nn.functional.linear(INPUT, layer.weight, layer.bias))


class Block(nn.Module):
    def __init__(self, change: Callable[[nn.Module], object]) -> None:
        super().__init__()
        self.in_features, self.out_features = 6, 4
        self.part = nn.Linear(6, 4)
        change(self.part)

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self.part(input)
        return result


def test_parts_with_hooks_do_not_vanish() -> None:
    with pytest.raises(StageError, match="its part 'part' has hooks"):
        replaced(Halves, Block(lambda part: part.register_forward_hook(lambda *_: None)))
    assert isinstance(replaced(Halves, Block(lambda part: None)).module.get_submodule("0"), Block)


def test_a_layer_may_hold_the_one_that_it_replaces() -> None:
    module = nn.Linear(6, 4)
    heard: list[int] = []
    handle = module.register_forward_hook(lambda *_: heard.append(1))
    expected = module(INPUT)
    model = Model(nn.Sequential(module), {"layer": Around})
    model.replace("0", "layer", {}, {f"inner.{n}": t for n, t in module.state_dict().items()})
    heard.clear()
    assert torch.equal(model.module(INPUT), -expected)
    assert heard == [1]
    handle.remove()
    model.module(INPUT)
    assert heard == [1]
    assert type(model.module.get_submodule("0.inner")) is nn.Linear


def test_hooks_of_the_layer_itself_run_inside_of_those_put_on_the_one_before() -> None:
    class Hooked(Telling):
        def __init__(self, module: Any) -> None:
            super().__init__(module)
            self.register_forward_hook(lambda _, given, output: output + 1)
            self.register_forward_pre_hook(lambda _, given: (given[0] * 2,))

    module = nn.Linear(6, 4)
    module.register_forward_hook(lambda _, given, output: output * 10)
    module.register_forward_pre_hook(lambda _, given: (given[0] + 5,))
    layer: Any = replaced(Hooked, module).module.get_submodule("0")
    inner = nn.functional.linear((INPUT + 5) * 2, layer.weight, layer.bias)
    assert torch.allclose(layer(INPUT), (inner + 1) * 10)


def test_a_second_layer_takes_the_place_of_the_first() -> None:
    module = nn.Linear(6, 4)
    module.note = "mine"  # type: ignore[assignment]
    model = replaced(Halves, module)
    model.layers = {"layer": Telling}
    model.replace("0", "layer", {}, Telling(nn.Linear(6, 4)).state_dict())
    layer: Any = model.module.get_submodule("0")
    assert isinstance(layer, nn.Linear)
    assert layer.note == "mine"
    was = former(layer)
    assert was is not None
    assert was.kind is nn.Linear
    expected = layer(INPUT)
    assert merge(model.module) == (["0"], [])
    assert type(layer) is nn.Linear
    assert torch.allclose(layer(INPUT), expected, atol=1e-6)


def test_unpacking_names_the_layers_that_stay() -> None:
    model = replaced(Halves)
    with pytest.warns(UserWarning, match="1 layers stay as they are.*: 0"):
        zoopress.unpack(model.module)
    assert isinstance(model.module.get_submodule("0"), Halves)


def test_attributes_that_would_hide_a_part_of_the_layer_are_told() -> None:
    module = nn.Linear(6, 4)
    module.left = "a word"  # type: ignore[assignment]
    with pytest.raises(StageError, match=re.escape("its attribute 'left' is something else")):
        replaced(Halves, module)


@pytest.mark.parametrize(
    ("layer", "fault"),
    [
        (Halves, None),
        (Telling, None),
        (Around, None),
        (Lying, "a Linear with the tensors that it offers"),
        (Unpicklable, "it cannot be pickled"),
        (Deaf, "a forward hook is not called"),
    ],
)
def test_the_conformance_suite_finds_layers_that_cannot_stand_in(
    layer: type, fault: str | None
) -> None:
    module = replaced(layer).module
    found = wrong_stand_ins(module, lambda: module(INPUT))
    assert found is None if fault is None else fault in str(found)


def test_recurrent_layers_leave_no_lists_of_their_weights_behind() -> None:
    class Sums(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(size))

        @classmethod
        def from_module(cls, module: Any) -> Sums:
            return cls(module.hidden_size)

        def forward(self, input: Tensor) -> tuple[Tensor, None]:
            return input.cumsum(1) * self.scale, None

    module = nn.GRU(6, 6, batch_first=True)
    layer: Any = replaced(Sums, module).module.get_submodule("0")
    assert layer.hidden_size == 6
    assert "_flat_weights" not in vars(layer)
    layer.double()
    assert layer(torch.ones(1, 2, 6).double())[0].sum() == 18
    layer.to("meta")
