"""Networks of rarer structures: windows, detectors, capsules, operators, adapters, integrators."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLES, STEPS, WORDS = 24, 16, 60


def _normal(*shape: int) -> Tensor:
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(1))


def pictures() -> Tensor:
    """Return random pictures [samples, 3, 32, 32]."""
    return _normal(3, 32, 32)


def films() -> Tensor:
    """Return random films [samples, 5 frames, 2, 12, 12]."""
    return _normal(5, 2, 12, 12)


def records() -> Tensor:
    """Return random rows of a table [samples, 20]."""
    return _normal(20)


def sounds() -> Tensor:
    """Return random frames [samples, steps, 24]."""
    return _normal(STEPS, 24)


def words() -> Tensor:
    """Return random token ids [samples, steps]."""
    return torch.randint(0, WORDS, (SAMPLES, STEPS), generator=torch.Generator().manual_seed(1))


def triplets() -> dict[str, Tensor]:
    """Return an anchor, a like one and an unlike one, [samples, 3, 16, 16] each."""
    anchor, like, unlike = _normal(9, 16, 16).chunk(3, 1)
    return {"anchor": anchor, "like": like, "unlike": unlike}


def fields() -> Tensor:
    """Return random fields [samples, 1, 16, 16]."""
    return _normal(1, 16, 16)


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **more: Any) -> nn.Module:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, **more)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


class Partial(nn.Module):
    """Half of the channels through bottlenecks, all of them joined (C2f of YOLOv8)."""

    def __init__(self, width: int, repeats: int = 2) -> None:
        super().__init__()
        half = width // 2
        self.enter = block(width, width, 1)
        self.steps = nn.ModuleList(
            nn.Sequential(block(half, half), block(half, half)) for _ in range(repeats)
        )
        self.leave = block(half * (2 + repeats), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for step in self.steps:
            parts.append(parts[-1] + step(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Detector(nn.Module):
    """A backbone, pooled pyramids, a path up and anchors at two scales (YOLO)."""

    def __init__(self, anchors: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.shape = (anchors, classes + 5)
        self.stem = nn.Sequential(block(3, 16, stride=2), block(16, 32, stride=2), Partial(32))
        self.deep = nn.Sequential(block(32, 64, stride=2), Partial(64))
        self.squeeze, self.widen = block(64, 32, 1), block(128, 64, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.lateral, self.merge = block(64, 32, 1), Partial(64)
        self.heads = nn.ModuleList(nn.Conv2d(64, anchors * (classes + 5), 1) for _ in range(2))
        self.register_buffer("sizes", torch.rand(2, anchors, 2) + 0.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        coarse = self.squeeze(self.deep(fine))
        pooled = [coarse]
        for _ in range(3):
            pooled.append(self.pool(pooled[-1]))
        coarse = self.widen(torch.cat(pooled, 1))
        up = F.interpolate(self.lateral(coarse), scale_factor=2, mode="nearest")
        fine = self.merge(torch.cat([up, fine], 1))
        boxes = []
        for features, head, sizes in zip((fine, coarse), self.heads, self.sizes, strict=True):
            n, _, h, w = features.shape
            out = head(features).view(n, *self.shape, h, w).permute(0, 1, 3, 4, 2)
            y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
            centre = (out[..., :2].sigmoid() + torch.stack([x, y], -1)) / h
            size = out[..., 2:4].exp() * sizes[:, None, None] / h
            boxes.append(torch.cat([centre, size, out[..., 4:].sigmoid()], -1).flatten(1, 3))
        return {"boxes": torch.cat(boxes, 1)}


def detector() -> nn.Module:
    return Detector()


class ConvolvedState(nn.Module):
    """A recurrent layer whose gates are convolutions, and one frame more (ConvLSTM)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.gates = nn.Conv2d(2 + width, 4 * width, 3, padding=1)
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, frames: Tensor) -> Tensor:
        n, _, _, h, w = frames.shape
        hidden = cell = frames.new_zeros(n, self.width, h, w)
        for frame in frames.unbind(1):
            i, f, o, g = self.gates(torch.cat([frame, hidden], 1)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        return self.head(hidden)


def convolved_state() -> nn.Module:
    return ConvolvedState()


class Capsules(nn.Module):
    """Capsules that agree by routing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 32, 3, 2)
        self.primary = nn.Conv2d(32, 32, 3, 4)
        self.votes = nn.Parameter(torch.randn(5, 4 * 4 * 4, 8, 8) / 4)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        x = self.primary(self.stem(x)).view(n, 4, 8, -1).transpose(2, 3).reshape(n, -1, 8)
        x = self._squash(x)
        votes = torch.einsum("nid,cide->ncie", x, self.votes)
        logits = x.new_zeros(n, 5, votes.shape[2])
        for _ in range(3):
            out = self._squash((logits.softmax(1)[..., None] * votes).sum(2))
            logits = logits + (votes * out[:, :, None]).sum(-1)
        return out.norm(dim=-1)

    def _squash(self, x: Tensor) -> Tensor:
        size = x.square().sum(-1, keepdim=True)
        return x * size / ((1 + size) * (size + 1e-8).sqrt())


def capsules() -> nn.Module:
    return Capsules()


class Windowed(nn.Module):
    """Attention within windows that are rolled, with a bias by relative place (Swin)."""

    def __init__(self, width: int, heads: int = 2, window: int = 4, shift: int = 0) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.bias = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) / 50)
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        apart = (at.flatten(1)[:, :, None] - at.flatten(1)[:, None]) + window - 1
        self.register_buffer("places", apart[0] * (2 * window - 1) + apart[1])

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        s = self.window
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(n, h // s, s, w // s, s, c).transpose(2, 3).reshape(-1, s * s, c)
        q, k, v = self.qkv(y).view(len(y), s * s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.bias[self.places.flatten()].view(s * s, s * s, -1).permute(2, 0, 1)
        y = ((q @ k.transpose(-1, -2) / 4 + bias).softmax(-1) @ v).transpose(1, 2)
        y = self.project(y.reshape(-1, s * s, c))
        y = y.view(n, h // s, w // s, s, s, c).transpose(2, 3).reshape(n, h, w, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.norm2(x))


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.blocks = nn.Sequential(Windowed(32), Windowed(32, shift=2))
        self.norm, self.merge = nn.LayerNorm(128), nn.Linear(128, 48, bias=False)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).permute(0, 2, 3, 1))
        x = torch.cat([x[:, i::2, j::2] for j in range(2) for i in range(2)], -1)
        return self.head(self.merge(self.norm(x)).mean((1, 2)))


def windows() -> nn.Module:
    return Windows()


class Latents(nn.Module):
    """Latents that attend to the input and to each other (Perceiver)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(6, width))
        self.enter = nn.Linear(24, width)
        self.across = nn.MultiheadAttention(width, 4, batch_first=True)
        self.within = nn.TransformerEncoderLayer(width, 4, 64, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, width))
        self.read = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        latents = self.latents.expand(len(x), -1, -1)
        latents = self.within(latents + self.across(latents, x, x, need_weights=False)[0])
        query = self.query.expand(len(x), -1, -1)
        return self.head(self.read(query, latents, latents, need_weights=False)[0][:, 0])


def latents() -> nn.Module:
    return Latents()


class Conformer(nn.Module):
    """Half steps of two feed-forwards around attention and a gated convolution."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.enter = nn.Linear(24, width)
        self.before, self.after = (
            nn.Sequential(
                *(nn.LayerNorm(width), nn.Linear(width, 96), nn.SiLU(), nn.Dropout(0.1)),
                nn.Linear(96, width),
            )
            for _ in range(2)
        )
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 4)
        self.normed = nn.LayerNorm(width)
        self.convolution = nn.Sequential(
            *(nn.Conv1d(width, 96, 1), nn.GLU(1), nn.Conv1d(48, 48, 7, padding=3, groups=48)),
            *(nn.BatchNorm1d(48), nn.SiLU(), nn.Conv1d(48, width, 1)),
        )
        self.head = nn.Linear(width, WORDS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + self.before(x) / 2
        y = self.norm(x).transpose(0, 1)
        x = x + self.attention(y, y, y, need_weights=False)[0].transpose(0, 1)
        x = x + self.convolution(self.normed(x).transpose(1, 2)).transpose(1, 2)
        return self.head(x + self.after(x) / 2)


def conformer() -> nn.Module:
    return Conformer()


class TimeMixing(nn.Module):
    """Mixing with the step before, weighted sums with decay, squared ReLU (RWKV)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embedding, self.norm1 = nn.Embedding(WORDS, width), nn.LayerNorm(width)
        self.norm2, self.head = nn.LayerNorm(width), nn.Linear(width, WORDS, bias=False)
        self.mix = nn.ParameterList(torch.rand(width) for _ in range(4))
        self.decay, self.first = nn.Parameter(torch.rand(48)), nn.Parameter(torch.rand(48))
        self.key, self.value, self.gate = (nn.Linear(width, 48, bias=False) for _ in range(3))
        self.out = nn.Linear(48, width, bias=False)
        self.grow, self.shrink = nn.Linear(width, 96, bias=False), nn.Linear(96, width, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        y = self.norm1(x)
        last = F.pad(y, (0, 0, 1, -1))
        k, v, r = (
            layer(y * m + last * (1 - m))
            for layer, m in zip((self.key, self.value, self.gate), self.mix, strict=False)
        )
        above, below, outputs = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0]), []
        for step in range(v.shape[1]):
            now = (self.first + k[:, step]).exp()
            outputs.append((above + now * v[:, step]) / (below + now))
            fade = (-self.decay.exp()).exp()
            above = fade * above + k[:, step].exp() * v[:, step]
            below = fade * below + k[:, step].exp()
        x = x + self.out(r.sigmoid() * torch.stack(outputs, 1))
        y = self.norm2(x)
        y = y * self.mix[3] + F.pad(y, (0, 0, 1, -1)) * (1 - self.mix[3])
        return self.head(x + self.shrink(F.relu(self.grow(y)).square()))


def time_mixing() -> nn.Module:
    return TimeMixing()


class DenseTable(nn.Module):
    """Layers that each see all before, over normalized columns and embedded ones."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(20)
        self.layers = nn.ModuleList(nn.Linear(20 + 24 * i, 24) for i in range(3))
        self.gates = nn.ModuleList(nn.Linear(24, 24) for _ in range(3))
        self.head = nn.Linear(20 + 72, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm(x)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            new = F.silu(layer(seen))
            seen = torch.cat([seen, new * gate(new).sigmoid()], -1)
        return self.head(seen)


def dense_table() -> nn.Module:
    return DenseTable()


class Octave(nn.Module):
    """Channels at two resolutions that exchange (octave convolution)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 32)
        self.high, self.low = nn.Conv2d(32, 24, 3, padding=1), nn.Conv2d(32, 24, 3, padding=1)
        self.high_high, self.low_low = block(24, 32), block(24, 32)
        self.high_low, self.low_high = block(24, 32), block(24, 32)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        high, low = self.high(x), self.low(F.avg_pool2d(x, 2))
        up = F.interpolate(self.low_high(low), scale_factor=2)
        high, low = (
            self.high_high(high) + up,
            self.low_low(low) + self.high_low(F.avg_pool2d(high, 2)),
        )
        return self.head(torch.cat([high.mean((2, 3)), low.mean((2, 3))], 1))


def octave() -> nn.Module:
    return Octave()


class Deforming(nn.Module):
    """A transform of the picture that is learned, and offsets for sampled features."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(block(3, 8, 5, 2), nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.turn = nn.Linear(128, 6)
        self.features, self.offsets = block(3, 32), nn.Conv2d(32, 2, 3, padding=1)
        self.mix, self.head = block(32, 48), nn.Linear(48, 5)
        nn.init.zeros_(self.turn.weight)
        self.turn.bias.data = torch.tensor([1.0, 0, 0, 0, 1, 0])

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.turn(self.locate(x)).view(-1, 2, 3), x.shape, False)
        x = self.features(F.grid_sample(x, grid, align_corners=False))
        grid = grid + self.offsets(x).tanh().permute(0, 2, 3, 1) / 10
        x = self.mix(F.grid_sample(x, grid, padding_mode="border", align_corners=False))
        return self.head(x.mean((2, 3)))


def deforming() -> nn.Module:
    return Deforming()


class Conditional(nn.Module):
    """A mixture of kernels for each sample, by grouped convolution (CondConv)."""

    def __init__(self, width: int = 24, experts: int = 3) -> None:
        super().__init__()
        self.stem, self.route = block(3, width, 3, 2), nn.Linear(width, experts)
        self.kernels = nn.Parameter(torch.randn(experts, 40, width, 3, 3) / 15)
        self.leave, self.head = block(40, 32, 1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        share = self.route(x.mean((2, 3))).sigmoid()
        kernels = torch.einsum("ne,eoikl->noikl", share, self.kernels)
        x = F.conv2d(x.reshape(1, n * c, h, w), kernels.flatten(0, 1), padding=1, groups=n)
        return self.head(self.leave(x.view(n, -1, h, w)).mean((2, 3)))


def conditional() -> nn.Module:
    return Conditional()


class QuasiRecurrent(nn.Module):
    """Gates from convolutions over time, and a pool that remembers (QRNN, SRU)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 24)
        self.gates = nn.Conv1d(24, 96, 2)
        self.highway, self.head = nn.Linear(24, 32), nn.Linear(32, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        z, f, o = self.gates(F.pad(x.transpose(1, 2), (1, 0))).split(32, 1)
        cell, outputs = torch.zeros_like(z[..., 0]), []
        for step in range(ids.shape[1]):
            keep = f[..., step].sigmoid()
            cell = keep * cell + (1 - keep) * z[..., step].tanh()
            outputs.append(o[..., step].sigmoid() * cell)
        return self.head(torch.stack(outputs, 1) + self.highway(x))


def quasi_recurrent() -> nn.Module:
    return QuasiRecurrent()


class Siamese(nn.Module):
    """One encoder for three pictures, distances between them."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            *(block(3, 16, 3, 2), block(16, 32, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            *(nn.Linear(32, 64), nn.PReLU(64), nn.Linear(64, 16)),
        )

    def forward(self, anchor: Tensor, like: Tensor, unlike: Tensor) -> dict[str, Tensor]:
        a, b, c = (F.normalize(self.encode(x), dim=1) for x in (anchor, like, unlike))
        return {"embedding": a, "near": (a - b).norm(dim=1), "far": (a - c).norm(dim=1)}


def siamese() -> nn.Module:
    return Siamese()


class Integrated(nn.Module):
    """A differential equation of hidden units, integrated in steps (neural ODE)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(20, 32), nn.Linear(32, 3)
        self.first, self.second = nn.Linear(33, 64), nn.Linear(64, 32)

    def _slope(self, time: float, x: Tensor) -> Tensor:
        times = torch.full((len(x), 1), time)
        return self.second(torch.tanh(self.first(torch.cat([x, times], 1))))

    def forward(self, x: Tensor) -> Tensor:
        x, step = self.enter(x), 0.25
        for i in range(4):
            k1 = self._slope(i * step, x)
            k2 = self._slope((i + 0.5) * step, x + step / 2 * k1)
            k3 = self._slope((i + 0.5) * step, x + step / 2 * k2)
            k4 = self._slope((i + 1) * step, x + step * k3)
            x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return self.leave(x)


def integrated() -> nn.Module:
    return Integrated()


class Blurred(nn.Module):
    """A residual block with a fixed blur before it strides, and a depth that is dropped."""

    def __init__(self, inputs: int, outputs: int, keep: float = 0.8) -> None:
        super().__init__()
        self.keep = keep
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, 2)
        kernel = torch.tensor([1.0, 2, 1])
        kernel = (kernel[:, None] * kernel / 16).expand(outputs, 1, 3, 3)
        self.register_buffer("blur", kernel.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.conv2d(y, self.blur, stride=2, padding=1, groups=y.shape[1])
        y = self.bn2(self.conv2(y))
        if self.training and torch.rand(()) > self.keep:
            y = y * 0
        return F.relu(self.short(x) + y)


def blurred() -> nn.Module:
    return nn.Sequential(
        *(Blurred(3, 24), Blurred(24, 40), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(40, 5)
    )


class Modulated(nn.Module):
    """Feature maps scaled and shifted by what a condition says (FiLM)."""

    def __init__(self) -> None:
        super().__init__()
        self.condition = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2 * 32))
        self.enter, self.inner = block(3, 32, 3, 2), nn.Conv2d(32, 32, 3, 1, 1)
        self.norm, self.head = nn.BatchNorm2d(32, affine=False), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.condition(x.mean((2, 3))).chunk(2, -1)
        y = self.norm(self.inner(h := self.enter(x)))
        y = F.relu(y * (1 + scale[..., None, None]) + shift[..., None, None])
        return self.head((h + y).mean((2, 3)))


def modulated() -> nn.Module:
    return Modulated()


class Adapted(nn.Module):
    """A frozen layer and a thin pair of layers beside it (LoRA)."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, layer.in_features) / 8)
        self.b = nn.Parameter(torch.randn(layer.out_features, rank) / 8)
        self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.scale * (x @ self.a.t() @ self.b.t())


def adapted() -> nn.Module:
    return nn.Sequential(
        *(Adapted(nn.Linear(20, 64)), nn.ReLU(), Adapted(nn.Linear(64, 48)), nn.ReLU()),
        nn.Linear(48, 3),
    )


class FakeQuantized(nn.Conv2d):
    """A convolution that rounds its weight and its input to 8 bits in each call."""

    def forward(self, input: Tensor) -> Tensor:
        scale = self.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 127
        weight = (self.weight / scale).round().clamp(-127, 127) * scale
        input = torch.fake_quantize_per_tensor_affine(input, 0.05, 0, -128, 127)
        return self._conv_forward(input, weight, self.bias)


def quantization_aware() -> nn.Module:
    return nn.Sequential(
        *(FakeQuantized(3, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU(), FakeQuantized(32, 48, 3)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 5)),
    )


class ComplexConvolution(nn.Module):
    """Real and imaginary parts by two convolutions each."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.real, self.imaginary = (nn.Conv2d(inputs, outputs, 3, 1, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(
            self.real(x.real) - self.imaginary(x.imag), self.real(x.imag) + self.imaginary(x.real)
        )


class ComplexNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ComplexConvolution(1, 16), ComplexConvolution(16, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(torch.fft.fft2(x, norm="ortho"))
        x = torch.complex(F.relu(x.real), F.relu(x.imag))
        return self.head(self.second(x).abs().mean((2, 3)))


def complex_convolutions() -> nn.Module:
    return ComplexNetwork()


class Spectral(nn.Module):
    """The lowest waves multiplied by weights of their own, beside a layer over points (FNO)."""

    def __init__(self, width: int = 16, modes: int = 4) -> None:
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(width, width, modes, modes, 2) / 16)
        self.beside = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        waves, m = torch.fft.rfft2(x), self.modes
        low = torch.einsum(
            "nixy,ioxy->noxy", waves[..., :m, :m], torch.view_as_complex(self.weight)
        )
        out = torch.zeros(*x.shape[:2], *waves.shape[2:], dtype=waves.dtype)
        out[..., :m, :m] = low
        return F.gelu(torch.fft.irfft2(out, s=x.shape[-2:]) + self.beside(x))


def fourier_operator() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 1), Spectral(), Spectral()),
        *(nn.Conv2d(16, 48, 1), nn.GELU(), nn.Conv2d(48, 1, 1)),
    )


class Hyperbolic(nn.Module):
    """Layers in the Poincaré ball."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(20, 32), nn.Linear(32, 8)
        self.places = nn.Parameter(torch.randn(5, 8) / 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self._enter(self.second(F.relu(self.first(x))))
        apart = (x[:, None] - self.places).square().sum(-1)
        room = (1 - x.square().sum(-1, keepdim=True)) * (1 - self.places.square().sum(-1))
        return -torch.acosh(1 + 2 * apart / room.clamp_min(1e-5))

    def _enter(self, x: Tensor) -> Tensor:
        size = x.norm(dim=-1, keepdim=True).clamp_min(1e-5)
        return size.tanh() * x / size


def hyperbolic() -> nn.Module:
    return Hyperbolic()


class Recalled(nn.Module):
    """A recurrent layer given its first state by an encoder, steps read backwards, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.summary = nn.Linear(24, 32)
        self.recurrent = nn.GRU(24, 32, batch_first=True)
        self.back = nn.GRU(24, 32, batch_first=True)
        self.gate, self.head = nn.Linear(64, 64), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.tanh(self.summary(x.mean(1)))[None]
        state = torch.zeros(1, len(x), self.back.hidden_size)
        back = self.back(x.flip(1), state)[0].flip(1)
        both = torch.cat([self.recurrent(x, start)[0], back], -1)
        return self.head(both * self.gate(both).sigmoid())


def recalled() -> nn.Module:
    return Recalled()


def shuffled_upscaler() -> nn.Module:
    """Space dealt to channels, group norms, and channels dealt to space."""
    return nn.Sequential(
        *(nn.PixelUnshuffle(2), nn.Conv2d(12, 32, 3, 1, 1), nn.GroupNorm(8, 32), nn.SiLU()),
        *(nn.Conv2d(32, 32, 3, 1, 1, groups=4), nn.ChannelShuffle(4), nn.InstanceNorm2d(32)),
        *(nn.Conv2d(32, 64, 3, 1, 1), nn.PixelShuffle(2), nn.GELU(), nn.Conv2d(16, 3, 3, 1, 1)),
    )
