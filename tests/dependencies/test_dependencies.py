"""Removable neurons are found in any architecture, and removing them is exact."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from zoopress.dependencies import Removal, check, exact_removal, find_dependencies
from zoopress.models.edits import apply_edit
from zoopress.models.model import Model


def bn(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    for tensor in (norm.running_mean, norm.bias):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 6, 1)
        self.norm = bn(6)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.second(F.relu(self.norm(self.first(x)), inplace=True))
        y += x
        return self.head(F.adaptive_avg_pool2d(F.relu_(y), 1).flatten(1))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(bn(3 + 4 * i) for i in range(3))
        self.head = nn.Linear(15, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            maps.append(conv(norm(torch.cat(maps, 1)).relu()))
        return self.head(torch.cat(maps, 1).mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 8, 2, stride=2)
        self.mix = nn.Sequential(nn.Conv2d(16, 8, 3), nn.PReLU(8), nn.Conv2d(8, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        high = self.down(x)
        low = F.avg_pool2d(self.up(F.silu(self.deep(high))), 2)
        return self.mix(torch.cat([F.interpolate(low, scale_factor=2, mode="bilinear"), high], 1))


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.RNNBase], layers: int, both: bool, take: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.rnn = cell(6, 10, layers, bidirectional=both, batch_first=True)  # type: ignore[call-arg]
        self.head = nn.Linear(20 if both else 10, 3)
        self.take = take

    def forward(self, x: Tensor) -> Tensor:
        output, final = self.rnn(self.embed(x))
        final = final[0] if isinstance(final, tuple) else final
        if self.take == "last step":
            return self.head(output[:, -1])
        if self.take == "both directions":
            return self.head(torch.cat([final[-2], final[-1]], dim=1))
        return self.head(final[-1])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.head = nn.LSTMCell(6, 8), nn.GRUCell(8, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        low, high = None, None
        for step in x.unbind(1):
            low = self.lstm(step, low)
            high = self.gru(low[0], high)
        return self.head(high)


class Gated(nn.Module):
    """A fused gate, a bare parameter, and a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.out = nn.Linear(8, 24), nn.Linear(12, 8)
        self.wide, self.narrow = nn.Parameter(torch.randn(8, 14)), nn.Parameter(torch.randn(14, 3))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.fused(x).chunk(2, dim=-1)
        return torch.tanh((x + self.out(F.silu(gate) * up)) @ self.wide) @ self.narrow


class HardCoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).view(-1, 12)).relu())


def image() -> Tensor:
    return torch.randn(2, 3, 16, 16)


def vectors() -> Tensor:
    return torch.randn(4, 5, 8)


def tokens() -> Tensor:
    return torch.randint(0, 20, (3, 7))


def vgg() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), bn(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 12, 3), bn(12), nn.ReLU6(), nn.Dropout(), nn.Flatten()),
        *(nn.Linear(300, 20), nn.Hardswish(), nn.Linear(20, 5)),
    )


def inverted_residual() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 1), bn(12), nn.Conv2d(12, 12, 3, groups=12), bn(12), nn.ReLU6()),
        *(nn.Conv2d(12, 24, 3, groups=12), nn.Conv2d(24, 16, 1), nn.Conv2d(16, 8, 3, groups=4)),
        nn.Conv2d(8, 2, 1),
    )


def audio() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(1, 8, 5, 2), nn.BatchNorm1d(8), nn.GELU(), nn.MaxPool1d(2)),
        *(nn.Conv1d(8, 12, 3), nn.GLU(1), nn.Conv1d(6, 8, 3), nn.GroupNorm(2, 8)),
        *(nn.ConstantPad1d(1, 0.0), nn.Conv1d(8, 6, 3), nn.AdaptiveAvgPool1d(1)),
        *(nn.Flatten(), nn.Linear(6, 3)),
    )


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 4)
    )


def recurrent(*arguments: Any) -> Callable[[], nn.Module]:
    return lambda: Recurrent(*arguments)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "mlp": (mlp, vectors, 2),
    "vgg": (vgg, image, 3),
    "residual": (Residual, image, 2),
    "inverted residual": (inverted_residual, image, 3),
    "dense": (Dense, image, 3),
    "unet": (UNet, image, 4),
    "audio": (audio, lambda: torch.randn(2, 1, 64), 4),
    "gated": (Gated, vectors, 2),
    "transformer encoder": (encoder, vectors, 2),
    "lstm, last step": (recurrent(nn.LSTM, 1, False, "last step"), tokens, 2),
    "lstm, final state": (recurrent(nn.LSTM, 2, False, "final state"), tokens, 3),
    "lstm, bidirectional": (recurrent(nn.LSTM, 2, True, "both directions"), tokens, 5),
    "gru, bidirectional": (recurrent(nn.GRU, 1, True, "last step"), tokens, 3),
    "rnn": (recurrent(nn.RNN, 1, False, "final state"), tokens, 2),
    "cells": (Cells, lambda: torch.randn(2, 4, 6), 2),
}


def removed(groups: Any, share: float = 0.4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        g.name: torch.randperm(g.size, generator=generator)[: max(1, int(share * g.size))]
        for g in groups
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_removal_is_exact_and_replays_on_a_fresh_copy(name: str) -> None:
    build, data, expected_groups = ARCHITECTURES[name]
    torch.manual_seed(0)
    network, batch = build().eval(), data()
    with torch.no_grad():
        found = find_dependencies(network, lambda: network(batch))
        chosen = removed(found.groups)
        removal = Removal(network, found.groups, chosen)
        with removal.masked():
            expected = network(batch)
        before = sum(p.numel() for p in network.parameters())
        model = Model(network)
        removal.make(model)
        actual = network(batch)
    assert len(found.groups) == expected_groups
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in network.parameters()) < before
    with torch.device("meta"):
        fresh = build()
        for edit in model.edits:
            apply_edit(fresh, edit, {})
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    assert {key: tensor.shape for key, tensor in fresh.state_dict().items()} == shapes
    described = [str(module) for module in network.modules()]
    assert [str(module) for module in fresh.modules()] == described


class Behind(nn.Module):
    def __init__(self, cell: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.rnn, self.head = nn.Linear(6, 8), cell(8, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0])


@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_units_behind_another_layer_are_found_in_inference_mode_too(
    cell: type[nn.RNNBase],
) -> None:
    network, batch = Behind(cell).eval(), torch.randn(4, 2, 6)
    with torch.inference_mode():  # operators come whole then, and are taken apart on the way
        found = find_dependencies(network, lambda: network(batch))
    assert {group.name for group in found.groups} == {"embed", "rnn"}


def test_removing_neurons_equals_zeroing_the_columns_that_read_them() -> None:
    torch.manual_seed(0)
    network, batch = mlp().eval(), vectors()
    (first, _) = find_dependencies(network, lambda: network(batch)).groups
    model = Model(network)
    gone = torch.tensor([0, 5, 9])
    reference = mlp()
    reference.load_state_dict(network.state_dict())
    with torch.no_grad():
        reference[2].weight[:, gone] = 0  # type: ignore[index]
    touched = Removal(network, [first], {"0": gone}).make(model)
    assert touched == ["0", "2"]
    assert network[0].out_features == network[2].in_features == 13  # type: ignore[index]
    torch.testing.assert_close(network(batch), reference(batch))


def test_masks_shrink_with_their_weights() -> None:
    torch.manual_seed(0)
    model = Model(mlp().eval())
    batch = vectors()
    weight = next(model.weights())
    model.mask(weight, weight.parameter.abs() > 0.1)
    found = find_dependencies(model.module, lambda: model.module(batch))
    Removal(model.module, found.groups, removed(found.groups)).make(model)
    kept = model.tensors()["0.weight"]
    assert model.masks["0.weight"].shape == kept.shape
    assert torch.equal(kept != 0, model.masks["0.weight"])


def test_a_wrong_group_is_told_from_the_right_ones_and_the_model_left_alone() -> None:
    torch.manual_seed(0)
    network, batch = mlp().eval(), vectors()
    first, second = find_dependencies(network, lambda: network(batch)).groups
    shifted = [
        replace(member, index=member.index.roll(1, 0)) if member.role == "consumer" else member
        for member in second.members
    ]
    wrong = replace(second, members=tuple(shifted))
    chosen = removed([first, second])
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    assert not check(network, Removal(network, [first], chosen), lambda: network(batch))
    good, bad = exact_removal(network, [first, wrong], chosen, lambda: network(batch))
    assert list(good) == [first.name]
    assert list(bad) == [second.name]
    assert "output differs" in bad[second.name]
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert network[2].out_features == 12  # type: ignore[index]


def test_code_that_relies_on_a_size_is_noticed() -> None:
    network, batch = HardCoded().eval(), torch.randn(4, 6)
    groups = find_dependencies(network, lambda: network(batch)).groups
    good, bad = exact_removal(network, groups, removed(groups), lambda: network(batch))
    assert list(good) == ["second"]
    assert "forward pass fails" in bad["first"]


class TwoHeads(nn.Module):
    """The second output depends on how many neurons there are, and on none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = self.inner(x).relu()
        return self.outer(inner), x * self.inner.out_features


def test_every_output_is_compared() -> None:
    torch.manual_seed(0)
    network, batch = TwoHeads().eval(), torch.randn(4, 6)
    weight = ("inner", "outer")
    [group] = find_dependencies(network, lambda: network(batch)[0]).groups
    assert {member.path for member in group.members} == set(weight)
    chosen = removed([group])
    assert exact_removal(network, [group], chosen, lambda: network(batch)[0])[0]
    good, bad = exact_removal(network, [group], chosen, lambda: network(batch))
    assert not good
    assert "output differs" in bad[group.name]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class GivenState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x, x[:1, :, :6].contiguous())[0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.softmax(q @ k.transpose(1, 2), -1) @ v)


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.fft.fft(self.first(x)).real)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Tied(), "tied"),
        (GivenState(), "initial states"),
        (Attention(), "product of two activations"),
        (Sorted(), "_fft"),
        (nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)), "layer normalization"),
        (nn.Sequential(nn.Linear(8, 8), nn.Softmax(-1), nn.Linear(8, 2)), "_softmax"),
        (nn.Linear(8, 2), "output"),
    ],
)
def test_what_cannot_shrink_is_fixed_with_its_reason(network: nn.Module, reason: str) -> None:
    network.eval()
    batch = vectors()
    found = find_dependencies(network, lambda: network(batch))
    assert found.groups == ()
    assert any(reason in why for why in found.fixed.values())


def test_the_rank_of_a_factored_layer_is_fixed() -> None:
    class Factored(nn.Module):
        is_factored = True

        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Linear(8, 4, bias=False), nn.Linear(4, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.down(x))

    network = nn.Sequential(Factored(), nn.ReLU(), nn.Linear(12, 2)).eval()
    found = find_dependencies(network, lambda: network(vectors()))
    assert [group.name for group in found.groups] == ["0.up"]
    assert "rank" in found.fixed["0.down"]


@st.composite
def chains(draw: st.DrawFn) -> tuple[nn.Sequential, Tensor]:
    """Draw convolutions, then linear layers, with what may stand between them."""
    layers: list[nn.Module] = []
    channels, size = 2, 9
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["plain", "depthwise", "transposed", "grouped"]))
        wider = draw(st.integers(1, 4)) * 2
        if kind == "plain":
            layers.append(nn.Conv2d(channels, wider, 3, padding=1))
        elif kind == "transposed":
            layers.append(nn.ConvTranspose2d(channels, wider, 1))
        elif kind == "grouped":
            layers.append(nn.Conv2d(channels, wider, 1, groups=2))
        else:
            wider = channels * draw(st.integers(1, 2))
            layers.append(nn.Conv2d(channels, wider, 3, padding=1, groups=channels))
        channels = wider
        between = [bn(channels), nn.ReLU(), nn.AvgPool2d(1), nn.PReLU(channels), nn.Identity()]
        layers += draw(st.lists(st.sampled_from(between), max_size=2))
    if draw(st.booleans()):
        layers.append(nn.AdaptiveAvgPool2d(1))
        size = 1
    layers.append(nn.Flatten())
    features = channels * size * size
    for _ in range(draw(st.integers(1, 3))):
        wider = draw(st.integers(2, 9))
        layers += [nn.Linear(features, wider), draw(st.sampled_from([nn.Tanh(), nn.ELU()]))]
        features = wider
    return nn.Sequential(*layers).eval(), torch.randn(2, 2, 9, 9)


@settings(max_examples=40, deadline=None)
@given(chains(), st.floats(0.1, 0.9))
def test_removal_from_any_chain_is_exact(drawn: tuple[nn.Sequential, Tensor], share: float) -> None:
    network, batch = drawn
    with torch.no_grad():
        groups = find_dependencies(network, lambda: network(batch)).groups
        removal = Removal(network, groups, removed(groups, share))
        assert check(network.double(), removal, lambda: network(batch.double())) == ""
