"""The networks that the artifacts beside this file were made of; small, one of each kind."""

import torch
from torch import Tensor, nn

VOCABULARY, LENGTH, CLASSES = 40, 9, 6


class Block(nn.Module):
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


def cnn(width: int = 8) -> nn.Module:
    """Build a classifier of images [batch, 3, 8, 8]."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, 24),
        nn.ReLU(),
        nn.Linear(24, CLASSES),
    )


class Recurrent(nn.Module):
    """An embedding, an LSTM, and two linear layers on the last output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.rnn = nn.LSTM(16, 16, batch_first=True)
        self.head = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, CLASSES))

    def forward(self, ids: Tensor) -> Tensor:
        outputs, _ = self.rnn(self.embedding(ids))
        result: Tensor = self.head(outputs[:, -1])
        return result


def lstm() -> nn.Module:
    """Build a classifier of token ids [batch, 9]."""
    return Recurrent()


class Encoder(nn.Module):
    """Token and position embeddings, encoder layers, and a linear layer on the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.position = nn.Parameter(torch.randn(1, LENGTH, 16))
        layer = nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.encoder(self.embedding(ids) + self.position[:, : ids.shape[1]])
        result: Tensor = self.head(hidden.mean(1))
        return result


def encoder() -> nn.Module:
    """Build a transformer that classifies token ids [batch, 9]."""
    return Encoder()
