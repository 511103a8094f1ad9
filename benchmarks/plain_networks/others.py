"""Networks over graphs, points, fields and tables, and those that generate."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

SAMPLES = 24


def _normal(*shape: int) -> Tensor:
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(1))


def rows() -> Tensor:
    """Return random rows [samples, 32 features]."""
    return _normal(32)


def points() -> Tensor:
    """Return random points [samples, 64 points, 3 coordinates]."""
    return _normal(64, 3)


def graphs() -> dict[str, Tensor]:
    """Return features [samples, 12 nodes, 16] and adjacency matrices [samples, 12, 12]."""
    edges = (_normal(12, 12) > 0.7).float()
    edges = ((edges + edges.transpose(1, 2)) > 0).float()
    return {"x": _normal(12, 16), "adjacency": edges}


def noisy_images() -> dict[str, Tensor]:
    """Return images [samples, 3, 16, 16] and steps of diffusion [samples]."""
    steps = torch.randint(0, 100, (SAMPLES,), generator=torch.Generator().manual_seed(1))
    return {"x": _normal(3, 16, 16), "step": steps}


def small_images() -> Tensor:
    """Return random images [samples, 3, 16, 16]."""
    return _normal(3, 16, 16)


def slices() -> Tensor:
    """Return random stacks [samples, 6 slices, 12, 12]."""
    return _normal(6, 12, 12)


def visits() -> dict[str, Tensor]:
    """Return ids of users [samples], of items [samples] and a history [samples, 6]."""
    generator = torch.Generator().manual_seed(1)
    return {
        "user": torch.randint(0, 50, (SAMPLES,), generator=generator),
        "item": torch.randint(0, 80, (SAMPLES,), generator=generator),
        "history": torch.randint(0, 80, (SAMPLES, 6), generator=generator),
    }


class GraphConvolution(nn.Module):
    """Two graph convolutions over a normalized adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        adjacency = adjacency + torch.eye(adjacency.shape[-1])
        adjacency = adjacency / adjacency.sum(-1, keepdim=True)
        x = F.relu(adjacency @ self.first(x))
        return self.head(F.relu(adjacency @ self.second(x)).amax(1))


def graph_convolution() -> nn.Module:
    return GraphConvolution()


class GraphAttention(nn.Module):
    """Graph attention by pairwise scores, in 4 heads (GAT)."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 64, bias=False)
        self.source, self.target = (nn.Parameter(torch.randn(4, 16)) for _ in range(2))
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        n, nodes, _ = x.shape
        h = self.project(x).view(n, nodes, 4, 16)
        scores = (h * self.source).sum(-1)[:, :, None] + (h * self.target).sum(-1)[:, None]
        mask = (adjacency + torch.eye(nodes)).unsqueeze(-1) == 0
        weights = F.leaky_relu(scores, 0.2).masked_fill(mask, -1e9).softmax(2)
        out = torch.einsum("nijh,njhd->nihd", weights, h).flatten(2)
        return self.head(F.elu(out).mean(1))


def graph_attention() -> nn.Module:
    return GraphAttention()


class MessagePassing(nn.Module):
    """Messages from features of both ends, gathered by index, and a recurrent update."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 32)
        self.message = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32))
        self.update = nn.GRUCell(32, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        n, nodes, _ = x.shape
        batch, to, of = torch.nonzero(adjacency, as_tuple=True)
        h = self.enter(x).flatten(0, 1)
        for _ in range(2):
            messages = self.message(torch.cat([h[batch * nodes + to], h[batch * nodes + of]], -1))
            total = torch.zeros_like(h).index_add(0, batch * nodes + to, messages)
            h = self.update(total, h)
        return self.head(h.view(n, nodes, -1).sum(1))


def message_passing() -> nn.Module:
    return MessagePassing()


class PointNet(nn.Module):
    """Shared layers over points, a learned transform of coordinates, a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU())
        self.transform = nn.Linear(32, 9)
        self.body = nn.Sequential(
            *(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU()),
            *(nn.Conv1d(32, 96, 1), nn.BatchNorm1d(96), nn.ReLU()),
        )
        self.head = nn.Sequential(nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 5))

    def forward(self, x: Tensor) -> Tensor:
        turn = self.transform(self.look(x.transpose(1, 2)).amax(-1)).view(-1, 3, 3)
        x = x @ (turn + torch.eye(3))
        return self.head(self.body(x.transpose(1, 2)).amax(-1))


def point_net() -> nn.Module:
    return PointNet()


class EdgeConvolution(nn.Module):
    """Neighbours by distance, features of edges, a maximum over neighbours (DGCNN)."""

    def __init__(self) -> None:
        super().__init__()
        self.edge = nn.Sequential(nn.Conv2d(6, 32, 1), nn.BatchNorm2d(32), nn.LeakyReLU(0.2))
        self.mix, self.head = nn.Conv1d(32, 64, 1), nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        near = torch.cdist(x, x).topk(8, largest=False).indices
        neighbours = torch.gather(
            x[:, None].expand(-1, x.shape[1], -1, -1), 2, near[..., None].expand(-1, -1, -1, 3)
        )
        centre = x[:, :, None].expand_as(neighbours)
        edges = torch.cat([centre, neighbours - centre], -1).permute(0, 3, 1, 2)
        x = self.mix(self.edge(edges).amax(-1))
        return self.head(torch.cat([x.amax(-1), x.mean(-1)], 1))


def edge_convolution() -> nn.Module:
    return EdgeConvolution()


class DeepSet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 48), nn.Tanh(), nn.Linear(48, 32))
        self.all = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.all(self.each(x).sum(1))


def deep_set() -> nn.Module:
    return DeepSet()


class Splines(nn.Module):
    """A layer of splines on every edge (KAN): a base weight, and coefficients of a grid."""

    def __init__(self, inputs: int, outputs: int, places: int = 8) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.randn(outputs, inputs) / math.sqrt(inputs))
        self.coefficients = nn.Parameter(torch.randn(outputs, inputs, places) / 10)
        self.register_buffer("grid", torch.linspace(-2, 2, places))

    def forward(self, x: Tensor) -> Tensor:
        basis = torch.exp(-(((x[..., None] - self.grid) * 2) ** 2))
        bent = F.linear(basis.flatten(-2), self.coefficients.flatten(1))
        return F.linear(F.silu(x), self.base) + bent


def kolmogorov_arnold() -> nn.Module:
    return nn.Sequential(Splines(32, 48), Splines(48, 5))


class Field(nn.Module):
    """A radiance field: coordinates as waves, a skip, colour and density."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 + 24, 64)
        self.second, self.third = nn.Linear(64, 64), nn.Linear(64 + 27, 64)
        self.density, self.colour = nn.Linear(64, 1), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        waves = x[..., None] * 2.0 ** torch.arange(4)
        waves = torch.cat([x, waves.sin().flatten(-2), waves.cos().flatten(-2)], -1)
        h = F.relu(self.second(F.relu(self.first(waves))))
        h = F.relu(self.third(torch.cat([h, waves], -1)))
        return {"colour": self.colour(h).sigmoid(), "density": F.softplus(self.density(h))}


def radiance_field() -> nn.Module:
    return Field()


class Sine(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(5 * self.linear(x))


def sinusoidal_representation() -> nn.Module:
    return nn.Sequential(Sine(3, 64), Sine(64, 64), nn.Linear(64, 3))


class Denoising(nn.Module):
    """A residual block that hears the step, as in diffusion models."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, width), nn.GroupNorm(4, width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.time = nn.Linear(32, 2 * width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, 1)
        return x + self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))


class Diffusion(nn.Module):
    """A denoiser with embedded steps and attention in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.enter, self.leave = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)
        self.down, self.up = nn.Conv2d(32, 32, 3, 2, 1), nn.Conv2d(64, 32, 1)
        self.first, self.middle = Denoising(32), Denoising(32)
        self.norm, self.attention = nn.GroupNorm(4, 32), nn.Conv1d(32, 96, 1)
        self.project = nn.Conv1d(32, 32, 1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        angles = step[:, None] / 100 ** (torch.arange(8) / 8)
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        first = self.first(self.enter(x), time)
        h = self.middle(self.down(first), time)
        n, c, height, width = h.shape
        q, k, v = self.attention(self.norm(h).flatten(2)).transpose(1, 2).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        h = h + self.project(y).view(n, c, height, width)
        h = F.interpolate(h, scale_factor=2, mode="nearest")
        return self.leave(self.up(torch.cat([first, h], 1)))


def diffusion() -> nn.Module:
    return Diffusion()


def generator() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(32, 64 * 16), nn.Unflatten(1, (64, 4, 4)), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh()),
    )


def discriminator() -> nn.Module:
    norm = parametrizations.spectral_norm
    return nn.Sequential(
        *(norm(nn.Conv2d(3, 32, 4, 2, 1)), nn.LeakyReLU(0.2)),
        *(norm(nn.Conv2d(32, 64, 4, 2, 1)), nn.LeakyReLU(0.2), nn.Flatten()),
        norm(nn.Linear(64 * 16, 1)),
    )


class Styled(nn.Module):
    """Convolutions whose weights are scaled by a style, for each sample (StyleGAN)."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Linear(32, 48), nn.LeakyReLU(0.2), nn.Linear(48, 32))
        self.constant = nn.Parameter(torch.randn(1, 24, 8, 8))
        self.style = nn.Linear(32, 24)
        self.weight = nn.Parameter(torch.randn(32, 24, 3, 3) / 15)
        self.colour = nn.Conv2d(32, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        weight = self.weight * (1 + self.style(self.map(x)))[:, None, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        h = self.constant.expand(n, -1, -1, -1).reshape(1, -1, 8, 8)
        h = F.conv2d(h, weight.flatten(0, 1), padding=1, groups=n).view(n, 32, 8, 8)
        return self.colour(F.leaky_relu(h, 0.2))


def styled_generator() -> nn.Module:
    return Styled()


class Variational(nn.Module):
    """A variational autoencoder; its mean is decoded in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
            nn.Flatten(),
        )
        self.mean, self.spread = nn.Linear(1024, 16), nn.Linear(1024, 16)
        self.enter = nn.Linear(16, 1024)
        self.decoder = nn.Sequential(
            *(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1)),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, spread = self.mean(h), self.spread(h)
        z = mean + torch.randn_like(mean) * (spread / 2).exp() if self.training else mean
        return self.decoder(F.relu(self.enter(z)).view(-1, 64, 4, 4)), mean, spread


def variational_autoencoder() -> nn.Module:
    return Variational()


class Quantizing(nn.Module):
    """An autoencoder through the nearest of a codebook's vectors (VQ-VAE)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 16, 1))
        self.codebook = nn.Embedding(32, 16)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 3, 1)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.encoder(x).permute(0, 2, 3, 1)
        codes = torch.cdist(z.flatten(0, 2), self.codebook.weight).argmin(-1).view(z.shape[:-1])
        return {
            "reconstruction": self.decoder(self.codebook(codes).permute(0, 3, 1, 2)),
            "codes": codes,
        }


def quantizing_autoencoder() -> nn.Module:
    return Quantizing()


def autoencoder() -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8), nn.Linear(8, 64), nn.ReLU()),
        nn.Linear(64, 32),
    )


class Coupling(nn.Module):
    """A normalizing flow of affine couplings, with its log-determinant."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 32)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for net in self.nets:
            a, b = x.chunk(2, -1)
            scale, shift = net(a).chunk(2, -1)
            scale = torch.tanh(scale)
            x = torch.cat([b * scale.exp() + shift, a], -1)
            total = total + scale.sum(-1)
        return x, total


def normalizing_flow() -> nn.Module:
    return Coupling()


class Factorization(nn.Module):
    """A factorization machine beside a deep network (DeepFM)."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, 16), nn.Embedding(80, 16)
        self.user_bias, self.item_bias = nn.Embedding(50, 1), nn.Embedding(80, 1)
        self.deep = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 1))

    def forward(self, user: Tensor, item: Tensor, history: Tensor) -> Tensor:
        u, i, h = self.user(user), self.item(item), self.item(history).mean(1)
        wide = self.user_bias(user) + self.item_bias(item) + (u * i).sum(-1, keepdim=True)
        return torch.sigmoid(wide + self.deep(torch.cat([u, i, h], -1)))


def factorization_machine() -> nn.Module:
    return Factorization()


class Towers(nn.Module):
    """Two towers and the cosine between them."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, 24), nn.Embedding(80, 24)
        self.left = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 16))
        self.right = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, user: Tensor, item: Tensor, history: Tensor) -> Tensor:
        left = self.left(torch.cat([self.user(user), self.item(history).mean(1)], -1))
        right = self.right(self.item(item))
        return (F.normalize(left, dim=-1) * F.normalize(right, dim=-1)).sum(-1)


def two_towers() -> nn.Module:
    return Towers()


class Transactions(nn.Module):
    """Attention over a history with the item as the query, and crossed features (DIN, DCN)."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(50, 16), nn.Embedding(80, 16)
        self.score = nn.Sequential(nn.Linear(64, 32), nn.PReLU(), nn.Linear(32, 1))
        self.cross = nn.Linear(48, 48)
        self.head = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, user: Tensor, item: Tensor, history: Tensor) -> Tensor:
        query, keys = self.item(item)[:, None].expand(-1, 6, -1), self.item(history)
        pairs = torch.cat([query, keys, query - keys, query * keys], -1)
        seen = (self.score(pairs) * keys).sum(1)
        first = torch.cat([self.user(user), query[:, 0], seen], -1)
        return self.head(first * self.cross(first) + first)


def attending_recommender() -> nn.Module:
    return Transactions()


class Tabular(nn.Module):
    """Feature tokens through an encoder (FT-Transformer)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(32, 16)),
            nn.Parameter(torch.zeros(32, 16)),
        )
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 64), nn.Linear(64, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x[..., None] * self.weight + self.bias
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.relu(self.up(self.norm2(x))))
        return self.head(x[:, 0])


def tabular_transformer() -> nn.Module:
    return Tabular()


class Residual(nn.Module):
    """A residual network over features, as policies and tables have it, with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(32, 48)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(48), nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 48))
            for _ in range(2)
        )
        self.policy, self.value = nn.Linear(48, 6), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return {"policy": self.policy(x), "value": self.value(x).squeeze(-1)}


def policy_and_value() -> nn.Module:
    return Residual()


class Hyper(nn.Module):
    """A network whose layer's weights another network writes."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Parameter(torch.randn(8))
        self.write = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32 * 24))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(F.linear(x, self.write(self.code).view(24, 32))))


def hyper_network() -> nn.Module:
    return Hyper()


class Recurrence(nn.Module):
    """One block called many times, between two layers (a residual flow in equal steps)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(32, 24), nn.Linear(24, 3)
        self.step = nn.Sequential(nn.Linear(25, 64), nn.Tanh(), nn.Linear(64, 24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for i in range(4):
            time = torch.full_like(x[:, :1], i / 4)
            x = x + 0.25 * self.step(torch.cat([x, time], 1))
        return self.head(x)


def shared_steps() -> nn.Module:
    return Recurrence()


class Memory(nn.Module):
    """Cosine addressing of a learned memory (prototypes)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 24))
        self.keys, self.values = nn.Parameter(torch.randn(40, 24)), nn.Parameter(torch.randn(40, 5))

    def forward(self, x: Tensor) -> Tensor:
        query = F.normalize(self.encode(x), dim=-1)
        return (10 * query @ F.normalize(self.keys, dim=-1).T).softmax(-1) @ self.values


def prototypes() -> nn.Module:
    return Memory()


class Volume(nn.Module):
    """Convolutions in three dimensions over a stack of slices."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv3d(1, 16, 3, padding=1), nn.InstanceNorm3d(16, affine=True), nn.ReLU()),
            *(nn.MaxPool3d((1, 2, 2)), nn.Conv3d(16, 32, 3, padding=1), nn.ReLU()),
        )
        self.head = nn.Conv3d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x[:, None]))


def volume() -> nn.Module:
    return Volume()


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 96), nn.Bilinear(24, 24, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).view(len(x), 24, 4).amax(-1)
        return self.head(F.relu(self.second(x, x)))


def maxout_and_bilinear() -> nn.Module:
    return Maxout()
