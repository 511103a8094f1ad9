"""Operators that deal channels out anew, scatter rows or make states: neurons beside them go."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoopress.dependencies import Removal, check, find_dependencies


class Around(nn.Module):
    """Something between two layers, which may have layers of its own."""

    def __init__(self, first: nn.Module, between: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.between, self.last = first, between, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


class Does(nn.Module):
    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def scattered(x: Tensor) -> Tensor:
    n, c = x.shape
    index = torch.arange(n) // 2
    rows = torch.zeros(n, c).index_add(0, index, x)
    return rows.scatter_add(0, index[:, None].expand(-1, c), x) + x.new_zeros(n, c)


def put(x: Tensor) -> Tensor:
    out = torch.zeros(len(x), x.shape[1])
    out[torch.arange(len(x)).flip(0)] = x
    return out


def neighbours(x: Tensor) -> Tensor:
    near = x.new_zeros(len(x), 1, dtype=torch.long).expand(-1, x.shape[1])
    return torch.gather(x, 0, near) + x.topk(len(x), dim=0).values


def waves(x: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * 2, s=x.shape[-2:])


def sampled(x: Tensor) -> Tensor:
    theta = torch.eye(2, 3)[None].expand(len(x), -1, -1)
    return F.grid_sample(x, F.affine_grid(theta, [len(x), 1, 6, 6], False), align_corners=False)


def written(x: Tensor) -> Tensor:
    out = x.new_zeros(2, len(x), x.shape[1])
    for side in range(2):
        out[side] = x * (side + 1)
    return out[0] + out[1]


class States(nn.Module):
    """A recurrent module that is given initial states of its own size."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 12, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(1, len(x), self.rnn.hidden_size)
        return self.rnn(x[:, None], (state, state.clone()))[0][:, -1]


class ComputedStates(nn.Module):
    """A recurrent module whose initial states are neurons of another layer."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.rnn = nn.Linear(8, 12), nn.GRU(8, 12, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        state = self.start(x).tanh().expand(2, -1, -1).contiguous()
        return self.rnn(x[:, None], state)[0][:, -1]


class Passed(nn.Module):
    """A decoder that starts where an encoder ended."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(8, 10, batch_first=True)
        self.decoder = nn.LSTM(8, 10, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x[:, None], self.encoder(x[:, None])[1])[0][:, -1]


class Waves(nn.Module):
    """Waves multiplied by complex weights that are stored as pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 6, 4, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        low = torch.fft.rfft2(x)[..., :4, :3]
        low = torch.einsum("nixy,ioxy->noxy", low, torch.view_as_complex(self.weight))
        out = torch.zeros(len(x), low.shape[1], 6, 4, dtype=low.dtype)
        out[..., :4, :3] = low
        return torch.fft.irfft2(out, s=x.shape[-2:])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.tensor([3, 1])
        packed = nn.utils.rnn.pack_padded_sequence(x.view(3, 2, -1), lengths)
        return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0])[0].sum(0)


class Grid(nn.Module):
    """Neurons times the places of a grid, merged to one axis, as in KAN."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Parameter(torch.linspace(-1, 1, 5))
        self.coefficients = nn.Parameter(torch.randn(6, 8, 5))

    def forward(self, x: Tensor) -> Tensor:
        basis = torch.exp(-((x[..., None] - self.grid) ** 2))
        return F.linear(basis.flatten(-2), self.coefficients.flatten(1))


class Gained(nn.Module):
    """A parameter without an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * x.relu()


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.products = nn.Bilinear(8, 8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.products(x, x.sin())


def conv(inputs: int, outputs: int, **options: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1, **options)


IMAGE, ROWS = (2, 3, 6, 6), (6, 3)
NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "channel shuffle": (Around(conv(3, 8), nn.ChannelShuffle(2), conv(8, 4)), IMAGE, 4),
    "shuffle by view": (Around(conv(3, 8), Does(shuffled), conv(8, 4)), IMAGE, 4),
    "shuffle, grouped": (
        Around(conv(3, 8), nn.Sequential(nn.ChannelShuffle(4), conv(8, 8, groups=4)), conv(8, 4)),
        IMAGE,
        2,
    ),
    "pixel shuffle": (Around(conv(3, 16), nn.PixelShuffle(2), conv(4, 4)), IMAGE, 4),
    "pixel unshuffle": (Around(conv(3, 4), nn.PixelUnshuffle(2), conv(16, 4)), IMAGE, 4),
    "group norm": (Around(conv(3, 12), nn.GroupNorm(4, 12), conv(12, 4)), IMAGE, 4),
    "scatter": (Around(nn.Linear(3, 8), Does(scattered), nn.Linear(8, 4)), ROWS, 8),
    "index put": (Around(nn.Linear(3, 8), Does(put), nn.Linear(8, 4)), ROWS, 8),
    "written in parts": (Around(nn.Linear(3, 8), Does(written), nn.Linear(8, 4)), ROWS, 8),
    "gather, topk": (Around(nn.Linear(3, 8), Does(neighbours), nn.Linear(8, 4)), ROWS, 8),
    "fourier": (Around(conv(3, 8), Does(waves), conv(8, 4)), IMAGE, 8),
    "grid sample": (Around(conv(3, 8), Does(sampled), conv(8, 4)), IMAGE, 8),
    "given states": (Around(nn.Linear(3, 8), States(), nn.Linear(12, 4)), ROWS, 20),
    "computed states": (Around(nn.Linear(3, 8), ComputedStates(), nn.Linear(12, 4)), ROWS, 20),
    "states passed on": (Around(nn.Linear(3, 8), Passed(), nn.Linear(10, 4)), ROWS, 18),
    "complex weights": (Around(conv(3, 8), Waves(), conv(6, 4)), IMAGE, 14),
    "gain": (Around(nn.Linear(3, 8), Gained(), nn.Linear(8, 4)), ROWS, 8),
    "one input": (Around(nn.Conv2d(3, 1, 1), conv(1, 8), conv(8, 4)), IMAGE, 8),
    "packed sequences": (Around(nn.Linear(3, 8), Packed(), nn.Linear(12, 4)), ROWS, 20),
    "grid": (Around(nn.Linear(3, 8), Grid(), nn.Linear(6, 4)), ROWS, 19),
    "bilinear": (Around(nn.Linear(3, 8), Pairs(), nn.Linear(6, 4)), ROWS, 14),
    "embedding bag": (
        Around(nn.EmbeddingBag(9, 8), nn.ReLU(), nn.Linear(8, 4)),
        (2, 3),
        8,
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_neurons_are_found_and_their_removal_is_exact(name: str) -> None:
    network, shape, neurons = NETWORKS[name]
    torch.manual_seed(0)
    batch = torch.randn(shape)
    if name == "embedding bag":
        batch = torch.randint(0, 9, shape)
    network.eval()
    groups = find_dependencies(network, lambda: network(batch)).groups
    assert sum(group.size for group in groups) == neurons
    chosen = {group.name: torch.arange(max(1, group.size // 3)) for group in groups}
    assert check(network, Removal(network, groups, chosen), lambda: network(batch)) == ""


def test_one_group_normalized_together_stays_whole() -> None:
    network = Around(conv(3, 12), nn.GroupNorm(1, 12), conv(12, 4)).eval()
    found = find_dependencies(network, lambda: network(torch.randn(IMAGE)))
    assert found.groups == ()
    assert "group normalization" in found.fixed["first"]


def test_heads_are_no_shuffle() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (t.view(2, 3, 2, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            weights = (q @ k.transpose(-1, -2)).softmax(-1)
            return self.out((weights @ v).transpose(1, 2).reshape(2, 3, -1))

    network = Heads().eval()
    found = find_dependencies(network, lambda: network(torch.randn(2, 3, 8)))
    assert found.groups == ()


def test_a_state_of_a_fixed_size_is_found_by_the_check() -> None:
    class Literal(States):
        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(1, len(x), 12)
            return self.rnn(x[:, None], (state, state))[0][:, -1]

    network = Around(nn.Linear(3, 8), Literal(), nn.Linear(12, 4)).eval()
    batch = torch.randn(ROWS)
    groups = find_dependencies(network, lambda: network(batch)).groups
    inner = [group for group in groups if group.name.startswith("between")]
    chosen = {group.name: torch.tensor([0]) for group in inner}
    problem = check(network, Removal(network, inner, chosen), lambda: network(batch))
    assert "fails without them" in problem
