"""Operators between layers: neurons beside them are found, and their removal is exact."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoopress.dependencies import Removal, check, find_dependencies, reaching
from zoopress.dependencies.call import rule


class Between(nn.Module):
    """Two convolutions with an operation between them."""

    def __init__(self, operation: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(channels, 4, 1)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.operation(self.first(x)))


class Unfolded(nn.Module):
    """Windows of a feature map, side by side as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(self.first(x).relu(), 2, stride=2)
        return self.second(windows.transpose(1, 2))


class FoldedAgain(nn.Module):
    """Windows put together to a feature map again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        windows = F.unfold(self.first(x), 2, stride=2).relu()
        return self.second(F.fold(windows, x.shape[-2:], 2, stride=2))


class Interleaved(nn.Module):
    """Gates and values that take turns in one layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(6, 24), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.both(x)
        return self.down(h[..., ::2].sigmoid() * h[..., 1::2])


class OneHead(nn.Module):
    """Attention of one head: the values' channels are neurons, queries' and keys' are not."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


class PartlyRotated(nn.Module):
    """Heads of which a quarter is rotated, beside a block of neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.up, self.down = nn.Linear(32, 20), nn.Linear(20, 32)

    def forward(self, x: Tensor) -> Tensor:
        def heads(layer: nn.Linear) -> Tensor:
            return layer(x).view(*x.shape[:2], 2, 16).transpose(1, 2)

        def rotated(h: Tensor) -> Tensor:
            turned, kept = h[..., :4], h[..., 4:]
            first, second = turned.chunk(2, dim=-1)
            turned = turned * 0.5 + torch.cat([-second, first], dim=-1)
            return torch.cat([turned, kept], dim=-1)

        mixed = F.scaled_dot_product_attention(
            rotated(heads(self.q)), rotated(heads(self.k)), heads(self.v)
        )
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.down(self.up(x).relu())


class Experts(nn.Module):
    """Experts in one tensor each, multiplied by a kernel that wants aligned rows."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 8, 48))
        self.down = nn.Parameter(torch.randn(3, 48, 8))

    def forward(self, x: Tensor) -> Tensor:
        ends = torch.tensor([2, 5, 7], dtype=torch.int32)
        hidden = torch._grouped_mm(x, self.up, offs=ends).relu()
        return torch._grouped_mm(hidden, self.down, offs=ends)


def image() -> Tensor:
    return torch.randn(2, 3, 6, 6)


def scaled(mode: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: Between(lambda x: F.interpolate(x, scale_factor=2, mode=mode, **options))


def sized(mode: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: Between(lambda x: F.interpolate(x, size=(5, 9), mode=mode, **options))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], set[str]]] = {
    "nearest": (scaled("nearest"), image, {"first"}),
    "nearest-exact": (sized("nearest-exact"), image, {"first"}),
    "bilinear": (scaled("bilinear", align_corners=False), image, {"first"}),
    "bilinear, corners": (sized("bilinear", align_corners=True), image, {"first"}),
    "bilinear, antialias": (sized("bilinear", antialias=True), image, {"first"}),
    "bicubic": (sized("bicubic"), image, {"first"}),
    "area": (sized("area"), image, {"first"}),
    "unfold": (Unfolded, image, {"first"}),
    "fold": (FoldedAgain, image, {"first"}),
    "interleaved": (Interleaved, lambda: torch.randn(4, 6), {"both"}),
    "one head": (OneHead, lambda: torch.randn(2, 5, 8), {"v"}),
    "partial rotation": (PartlyRotated, lambda: torch.randn(2, 5, 32), {"up"}),
    "experts": (Experts, lambda: torch.randn(7, 8), {"up"}),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_neurons_beside_an_operator_are_found_and_go_exactly(name: str, inference: bool) -> None:
    build, data, expected = NETWORKS[name]
    torch.manual_seed(0)
    network, batch = build().eval(), data()
    # In inference mode operators come whole, and are taken apart on the way.
    with torch.inference_mode() if inference else torch.no_grad():
        found = find_dependencies(network, lambda: network(batch))
        assert {group.name for group in found.groups} == expected
        (group,) = found.groups
        gone = {group.name: torch.arange(0, group.size, 3)[: group.multiple_of]}
    with torch.no_grad():
        assert not check(network, Removal(network, [group], gone), lambda: network(batch))


def test_experts_keep_a_multiple_of_what_their_kernel_wants() -> None:
    network, batch = Experts(), torch.randn(7, 8)
    (group,) = find_dependencies(network, lambda: network(batch)).groups
    assert group.multiple_of == 8
    odd = Removal(network, [group], {group.name: torch.arange(3)})
    assert "forward pass fails" in check(network, odd, lambda: network(batch))


def test_what_a_rule_did_not_foresee_costs_neurons_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from zoopress.dependencies import call

    monkeypatch.setattr(call, "_RULES", dict(call._RULES))

    @rule("tanh")
    def _unforeseen(_: Any) -> None:
        raise RuntimeError("sizes differ\nand more")

    network, batch = Between(torch.tanh), image()
    found = find_dependencies(network, lambda: network(batch))
    assert not found.groups
    assert found.fixed["first"] == "the operation 'tanh' cannot be followed (sizes differ)"


def test_runs_that_reach_nothing_new_or_fail_are_left_out() -> None:
    network = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def of(*layers: int) -> Callable[[], Tensor]:
        return lambda: sum(network[i](torch.ones(1, 4)) for i in layers)  # type: ignore[return-value]

    def fails() -> Tensor:
        raise ValueError("this makes no sense to the model")

    first, second, third, unneeded = of(0), of(0, 1), of(2), of(1, 2)
    assert reaching(network, first, [of(0), fails, second, third, unneeded]) == [
        first,
        second,
        third,
    ]
