"""Tiny models for tests: a network of each kind that techniques must cope with.

Each is a function without arguments, so a card can name it: `zoopress.testing.models:cnn`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

VOCABULARY = 64
LENGTH = 12
CLASSES = 10


class ResidualBlock(nn.Module):
    """Two convolutions with batch normalization, and what came in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.norm1(self.conv1(x)).relu()
        result: Tensor = (self.norm2(self.conv2(inside)) + x).relu()
        return result


def cnn() -> nn.Module:
    """Build a convolutional classifier of images [batch, 3, 16, 16], with a residual block."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        ResidualBlock(24),
        nn.Conv2d(24, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )


class Recurrent(nn.Module):
    """An embedding, recurrent layers, and two linear layers on the last output."""

    def __init__(self, cell: type[nn.RNNBase], layers: int = 1, bidirectional: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        options = {"num_layers": layers, "bidirectional": bidirectional, "batch_first": True}
        self.rnn = cell(32, 40, **options)  # type: ignore[arg-type]
        outputs = 80 if bidirectional else 40
        self.head = nn.Sequential(nn.Linear(outputs, 64), nn.ReLU(), nn.Linear(64, CLASSES))

    def forward(self, ids: Tensor) -> Tensor:
        outputs, _ = self.rnn(self.embedding(ids))
        result: Tensor = self.head(outputs[:, -1])
        return result


def lstm() -> nn.Module:
    """Build an LSTM classifier of token ids [batch, 12]."""
    return Recurrent(nn.LSTM)


class Encoder(nn.Module):
    """Token and position embeddings, encoder layers, and a linear layer on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.position = nn.Parameter(torch.randn(1, LENGTH, 32))
        layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=96, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.head(
            self.encoder(self.embedding(ids) + self.position[:, : ids.shape[1]]).mean(1)
        )
        return result


def transformer() -> nn.Module:
    """Build a transformer classifier of token ids [batch, 12]."""
    return Encoder()


def without_matrices() -> nn.Module:
    """Build a model of images [batch, 3, 16, 16] that has no weight with two axes."""
    return nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def example_inputs(name: str) -> Tensor:
    """Return two inputs for what one of the functions here builds, the same ones in each call."""
    generator = torch.Generator().manual_seed(0)
    if name in ("lstm", "transformer"):
        return torch.randint(0, VOCABULARY, (2, LENGTH), generator=generator)
    return torch.rand(2, 3, 16, 16, generator=generator)
