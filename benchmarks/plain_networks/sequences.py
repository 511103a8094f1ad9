"""Networks over sequences: recurrent, convolutional and attending ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

SAMPLES, STEPS, WORDS = 24, 16, 60


def tokens() -> Tensor:
    """Return random token ids [samples, steps]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, WORDS, (SAMPLES, STEPS), generator=generator)


def signals() -> Tensor:
    """Return random signals [samples, 8 channels, 64 steps]."""
    return torch.randn(SAMPLES, 8, 64, generator=torch.Generator().manual_seed(1))


def frames() -> Tensor:
    """Return random frames [samples, steps, 16 features]."""
    return torch.randn(SAMPLES, STEPS, 16, generator=torch.Generator().manual_seed(1))


class Tagger(nn.Module):
    """A bidirectional recurrent tagger."""

    def __init__(self, kind: str, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 24, padding_idx=0)
        recurrent = getattr(nn, kind)
        self.recurrent = recurrent(24, 32, layers, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 7)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.recurrent(self.embedding(ids))[0]))


def lstm_tagger() -> nn.Module:
    return Tagger("LSTM")


def gru_tagger() -> nn.Module:
    return Tagger("GRU")


class PackedClassifier(nn.Module):
    """Packs padded sequences, and reads the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 24)
        self.recurrent = nn.GRU(24, 32, batch_first=True)
        self.head = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 3))

    def forward(self, ids: Tensor) -> Tensor:
        lengths = (ids > 5).sum(1).clamp_min(1).cpu()
        packed = pack_padded_sequence(
            self.embedding(ids), lengths, batch_first=True, enforce_sorted=False
        )
        out, state = self.recurrent(packed)
        padded, _ = pad_packed_sequence(out, batch_first=True)
        return self.head(state[-1] + padded.mean(1))


def packed_sequences() -> nn.Module:
    return PackedClassifier()


class Attending(nn.Module):
    """An encoder and a decoder of recurrent cells with Bahdanau's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 24)
        self.encoder = nn.LSTM(24, 32, batch_first=True, bidirectional=True)
        self.keys, self.query, self.score = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 1)
        self.cell = nn.LSTMCell(24 + 64, 32)
        self.head = nn.Linear(32 + 64, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        memory, _ = self.encoder(self.embedding(ids))
        keys = self.keys(memory)
        state = memory.new_zeros(len(ids), 32)
        cell = memory.new_zeros(len(ids), 32)
        outputs = []
        for step in range(4):
            weights = self.score(torch.tanh(keys + self.query(state)[:, None])).softmax(1)
            context = (weights * memory).sum(1)
            state, cell = self.cell(
                torch.cat([self.embedding(ids[:, step]), context], 1), (state, cell)
            )
            outputs.append(self.head(torch.cat([state, context], 1)))
        return torch.stack(outputs, 1)


def attending_decoder() -> nn.Module:
    return Attending()


class LanguageModel(nn.Module):
    """A recurrent language model with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 32)
        self.recurrent = nn.LSTM(32, 32, 2, batch_first=True)
        self.head = nn.Linear(32, WORDS)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(ids))[0])


def tied_language_model() -> nn.Module:
    return LanguageModel()


class Temporal(nn.Module):
    """Causal dilated convolutions with residuals and normalized weights (TCN)."""

    def __init__(self, old: bool) -> None:
        super().__init__()
        normalize = nn.utils.weight_norm if old else parametrizations.weight_norm
        self.layers = nn.ModuleList()
        for i in range(3):
            layer = nn.Conv1d(8 if i == 0 else 32, 32, 3, padding=2 * 2**i, dilation=2**i)
            self.layers.append(normalize(layer))
        self.down = nn.Conv1d(8, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.down(x)
        for layer in self.layers:
            x = F.relu(layer(x)[..., : x.shape[-1]])
        return self.head((x + kept)[..., -1])


def temporal_convolutions() -> nn.Module:
    return Temporal(False)


def temporal_convolutions_old_norm() -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Temporal(True)


class Wave(nn.Module):
    """Gated dilated convolutions with skips, as in WaveNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 32, 1)
        self.gated = nn.ModuleList(nn.Conv1d(32, 64, 2, dilation=2**i) for i in range(3))
        self.residual = nn.ModuleList(nn.Conv1d(32, 32, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(32, 24, 1) for _ in range(3))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(24, 24, 1), nn.ReLU(), nn.Conv1d(24, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        total = None
        for i, (gated, residual, skip) in enumerate(
            zip(self.gated, self.residual, self.skips, strict=True)
        ):
            a, b = gated(F.pad(x, (2**i, 0))).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            total = skip(y) if total is None else total + skip(y)
            x = x + residual(y)
        return self.head(total)


def wavenet() -> nn.Module:
    return Wave()


class SpeechReader(nn.Module):
    """Convolutions, a recurrent layer, frame-wise classes (CRNN)."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d((2, 1))),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d((2, 1))),
        )
        self.project = nn.Linear(128, 48)
        self.recurrent = nn.LSTM(48, 40, bidirectional=True, batch_first=True)
        self.head = nn.Linear(80, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolutions(x[:, None])
        x = x.permute(0, 3, 1, 2).flatten(2)
        return self.head(self.recurrent(F.relu(self.project(x)))[0]).log_softmax(-1)


def speech_reader() -> nn.Module:
    return SpeechReader()


class Separator(nn.Module):
    """Encodes a wave, masks it, decodes it (Conv-TasNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(8, 48, 4, 2)
        self.norm = nn.GroupNorm(1, 48)
        self.body = nn.Sequential(
            *(nn.Conv1d(48, 64, 1), nn.PReLU(), nn.GroupNorm(1, 64)),
            *(nn.Conv1d(64, 64, 3, padding=1, groups=64), nn.PReLU(), nn.Conv1d(64, 48, 1)),
        )
        self.mask = nn.Conv1d(48, 96, 1)
        self.decoder = nn.ConvTranspose1d(48, 8, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        wave = F.relu(self.encoder(x))
        masks = self.mask(self.body(self.norm(wave))).view(len(x), 2, 48, -1).sigmoid()
        sources = masks * wave[:, None]
        return self.decoder(sources.flatten(0, 1)).view(len(x), 2, 8, -1)


def wave_separator() -> nn.Module:
    return Separator()


class Attention(nn.Module):
    """Attention of grouped queries with rotary positions and one fused projection."""

    def __init__(self, width: int = 32, heads: int = 4, groups: int = 2) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.project = nn.Linear(width, (heads + 2 * groups) * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        angles = torch.arange(64)[:, None] / 100 ** (torch.arange(0, self.size, 2) / self.size)
        self.register_buffer("cos", angles.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angles.sin().repeat(1, 2), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        steps = x.shape[-2]
        return x * self.cos[:steps] + torch.cat([-b, a], -1) * self.sin[:steps]

    def forward(self, x: Tensor) -> Tensor:
        n, steps, _ = x.shape
        sizes = [self.heads * self.size, self.groups * self.size, self.groups * self.size]
        q, k, v = self.project(x).split(sizes, -1)
        q = self.rotate(q.view(n, steps, self.heads, self.size).transpose(1, 2))
        k = self.rotate(k.view(n, steps, self.groups, self.size).transpose(1, 2))
        v = v.view(n, steps, self.groups, self.size).transpose(1, 2)
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(n, steps, -1))


class Gated(nn.Module):
    """The gated feed-forward layer of Llama, gate and value in one projection."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.both, self.down = (
            nn.Linear(width, 2 * inner, bias=False),
            nn.Linear(inner, width, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


class SmallLlama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 32)
        self.attention = nn.ModuleList(Attention() for _ in range(2))
        self.feed_forward = nn.ModuleList(Gated(32, 64) for _ in range(2))
        self.norms = nn.ModuleList(nn.RMSNorm(32) for _ in range(5))
        self.head = nn.Linear(32, WORDS, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for i, (attention, feed) in enumerate(zip(self.attention, self.feed_forward, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + feed(self.norms[2 * i + 1](x))
        return self.head(self.norms[4](x))


def small_llama() -> nn.Module:
    return SmallLlama()


class NanoGPT(nn.Module):
    """Fused keys, queries and values by `einsum`-free slices; learned positions; weights tied."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 32), nn.Embedding(64, 32)
        self.attend = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(32, 128) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(128, 32) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.register_buffer("mask", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

    def forward(self, ids: Tensor) -> Tensor:
        n, steps = ids.shape
        x = self.words(ids) + self.places(torch.arange(steps, device=ids.device))
        for i in range(2):
            q, k, v = self.attend[i](self.norms[2 * i](x)).split(32, dim=2)
            q, k, v = (t.view(n, steps, 4, 8).transpose(1, 2) for t in (q, k, v))
            scores = (q @ k.transpose(-2, -1)) / math.sqrt(8)
            scores = scores.masked_fill(self.mask[:, :, :steps, :steps] == 0, float("-inf"))
            y = (scores.softmax(-1) @ v).transpose(1, 2).contiguous().view(n, steps, 32)
            x = x + self.out[i](y)
            x = x + self.down[i](F.gelu(self.up[i](self.norms[2 * i + 1](x))))
        return x @ self.words.weight.T


def nano_gpt() -> nn.Module:
    return NanoGPT()


class Translator(nn.Module):
    """torch's own transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 32)
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, 0.0, batch_first=True)
        self.head = nn.Linear(32, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(8)
        x = self.embedding(ids)
        return self.head(self.transformer(x[:, :8], x[:, 8:], tgt_mask=mask))


def translator() -> nn.Module:
    return Translator()


class Experts(nn.Module):
    """A router over feed-forward experts, the best two of four for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 32)
        self.router = nn.Linear(32, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(4)
        )
        self.head = nn.Linear(32, 6)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).flatten(0, 1)
        weights, chosen = self.router(x).softmax(-1).topk(2)
        total = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows, slots = torch.where(chosen == i)
            if len(rows):
                total.index_add_(0, rows, expert(x[rows]) * weights[rows, slots, None])
        return self.head(total.view(*ids.shape, -1).mean(1))


def mixture_of_experts() -> nn.Module:
    return Experts()


class FusedExperts(nn.Module):
    """All experts in two parameters, multiplied by `einsum`."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4)
        self.up = nn.Parameter(torch.randn(4, 16, 64) / 4)
        self.down = nn.Parameter(torch.randn(4, 64, 16) / 8)
        self.head = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.router(x).softmax(-1)
        inner = F.relu(torch.einsum("nti,eio->nteo", x, self.up))
        out = torch.einsum("nteo,eoi->ntei", inner, self.down)
        return self.head((gates[..., None] * out).sum(2).mean(1))


def einsum_experts() -> nn.Module:
    return FusedExperts()


class StateSpace(nn.Module):
    """A selective scan in plain torch, gated, with a short convolution (Mamba)."""

    def __init__(self, width: int = 32, inner: int = 64, states: int = 8) -> None:
        super().__init__()
        self.states, self.inner = states, inner
        self.first, self.enter = nn.Linear(16, width), nn.Linear(width, 2 * inner, bias=False)
        self.convolution = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.select = nn.Linear(inner, 4 + 2 * states, bias=False)
        self.delta = nn.Linear(4, inner)
        self.decay = nn.Parameter(torch.log(torch.arange(1.0, states + 1).repeat(inner, 1)))
        self.skip = nn.Parameter(torch.ones(inner))
        self.leave, self.head = nn.Linear(inner, width, bias=False), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        u, gate = self.enter(x).chunk(2, -1)
        u = F.silu(self.convolution(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        delta, b, c = self.select(u).split([4, self.states, self.states], -1)
        delta = F.softplus(self.delta(delta))
        a = -torch.exp(self.decay)
        state = u.new_zeros(len(u), self.inner, self.states)
        outputs = []
        for t in range(u.shape[1]):
            step = delta[:, t, :, None]
            state = torch.exp(step * a) * state + step * b[:, t, None] * u[:, t, :, None]
            outputs.append((state * c[:, t, None]).sum(-1))
        y = torch.stack(outputs, 1) + u * self.skip
        return self.head(x + self.leave(y * F.silu(gate)))


def state_space() -> nn.Module:
    return StateSpace()


class Highway(nn.Module):
    """Characters through convolutions of several widths, then highways."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 16)
        self.widths = nn.ModuleList(nn.Conv1d(16, 16, k, padding=k // 2) for k in (1, 3, 5))
        self.highway = nn.ModuleList(nn.Linear(48, 96) for _ in range(2))
        self.head = nn.Linear(48, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).transpose(1, 2)
        x = torch.cat([torch.tanh(c(x)).amax(-1) for c in self.widths], -1)
        for layer in self.highway:
            value, gate = layer(x).chunk(2, -1)
            gate = gate.sigmoid()
            x = gate * F.relu(value) + (1 - gate) * x
        return self.head(x)


def character_highway() -> nn.Module:
    return Highway()


class Bagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(WORDS, 32, mode="mean")
        self.body = nn.Sequential(nn.Linear(32, 64), nn.SELU(), nn.Linear(64, 3))

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(self.bag(ids))


def embedding_bag() -> nn.Module:
    return Bagged()


class Fourier(nn.Module):
    """Mixes tokens by a Fourier transform (FNet), and learns filters in frequency."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.filter = nn.Parameter(torch.randn(9, 32, dtype=torch.complex64))
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + torch.fft.irfft(torch.fft.rfft(x, dim=1) * self.filter, n=x.shape[1], dim=1)
        x = x + torch.fft.fft2(x, dim=(-1, -2)).real / 16
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


def fourier_mixer() -> nn.Module:
    return Fourier()
