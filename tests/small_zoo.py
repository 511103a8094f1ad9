"""A zoo of one small perceptron, with a chain of all that is quick."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from zoopress.cards import Card, load_card
from zoopress.plugins import load_plugins
from zoopress.recipes import Recipe, load_recipe

FACTORY = """
from torch import nn

def build(width=96):
    return nn.Sequential(
        nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
"""
CARD = """
name: perceptron
source: path:weights.safetensors
factory: networks.py:build
factory_arguments: {width: WIDTH}
data:
  random: {"0": {shape: [32]}}
"""
CHAIN = """
stages:
  - {technique: neuron_pruning, sparsity: 0.25}
  - {technique: magnitude_pruning, sparsity: 0.5}
  - {technique: weight_quantization, bits: 4, group_size: 16}
  - {technique: entropy_coding}
"""


def write_zoo(folder: Path, width: int = 96, recipe: str = CHAIN) -> None:
    """Write a card, its factory, its weights and a recipe."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
        nn.Linear(width, 10),
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "weights.safetensors")
    (folder / "networks.py").write_text(FACTORY)
    (folder / "card.yaml").write_text(CARD.replace("WIDTH", str(width)))
    (folder / "recipe.yaml").write_text(recipe)


def read_zoo(folder: Path) -> tuple[Card, Recipe]:
    plugins = load_plugins()
    card = load_card(str(folder / "card.yaml"), plugins)
    return card, load_recipe(str(folder / "recipe.yaml"), plugins)
