"""Scikit-learn's digits, and a small network of equal layers that reads them: real and quick."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zoopress.cards import Card
from zoopress.pipeline.compress import Result, compress
from zoopress.plugins import Plugins
from zoopress.recipes import parse_recipe
from zoopress.store import Store
from zoopress.yaml_source import read_yaml

LAYERS, WIDTH = 4, 32


class Block(nn.Module):
    """Hidden states [samples, width], and what two linear layers add to them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 2 * width)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = hidden + self.outer(self.inner(self.norm(hidden)).relu())
        return result


class Reader(nn.Module):
    """Scores [samples, 10] of images [samples, 1, 8, 8]."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.pixels = nn.Linear(64, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pixels(images.flatten(1))
        for layer in self.layers:
            hidden = layer(hidden)
        scores: Tensor = self.head(self.norm(hidden))
        return scores


def reader(layers: int = LAYERS, width: int = WIDTH) -> nn.Module:
    """Build the model; cards name this function."""
    return Reader(layers, width)


@cache
def trained(layers: int, width: int) -> nn.Module:
    """Return a model that reads most digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Reader(layers, width)
        optimizer = torch.optim.Adam(module.parameters(), 4e-3)
        for _ in range(8):
            for rows in torch.randperm(1200).split(64):
                loss = nn.functional.cross_entropy(module(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return module.eval()


def digits_card(folder: Path, layers: int = LAYERS, width: int = WIDTH, **changes: object) -> Card:
    """Write the trained model into a folder and return its card."""
    file = folder.resolve() / f"reader-{layers}-{width}.safetensors"
    save_file(trained(layers, width).state_dict(), file)
    data: dict[str, object] = {
        "dataset": "package:sklearn.datasets/digits",
        "calibration_samples": 32,
        "evaluation_samples": 300,
        "validation_samples": 100,
        "preprocessing": {"rescale": 1 / 16},
        **changes,
    }
    return Card.model_validate(
        {
            "name": f"reader-{layers}-{width}",
            "source": f"path:{file}",
            "factory": f"{Path(__file__).resolve()}:reader",
            "factory_arguments": {"layers": layers, "width": width},
            "task": "image-classification",
            "data": data,
        }
    )


def press(card: Card, stages: str, folder: Path, plugins: Plugins) -> Result:
    """Compress by stages as a recipe spells them, in a store of the folder's own."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "recipe.yaml"
    file.write_text(f"stages: {stages}\n")
    recipe = parse_recipe(read_yaml(file, ValueError), plugins, "test")
    return compress(card, recipe, folder / "out", Store(folder / "store"), plugins)
