"""A small classifier; `python sources/example.py` trains it and writes its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


def build(hidden: int = 256) -> nn.Module:
    """Return the network without its weights; the card names this function."""
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def inputs(seed: int = 1) -> Tensor:
    """Return samples [512, 64] to calibrate and compare on; the card names this function."""
    return torch.randn(512, 64, generator=torch.Generator().manual_seed(seed))


def train(steps: int = 200) -> nn.Module:
    """Teach the network to classify as a linear classifier does."""
    torch.manual_seed(0)
    model, teacher = build(), nn.Linear(64, 10)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        samples = inputs(step + 2)
        loss = nn.functional.cross_entropy(model(samples), teacher(samples).argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    from safetensors.torch import save_file

    save_file(train().state_dict(), Path(__file__).with_suffix(".safetensors"))
