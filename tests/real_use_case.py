"""Models as people bring them, each written for one test and compressed as a user would.

A test gives the source of a module with `build()`, `inputs()` and, if its weights are to be
special, `prepare(model)`. The fixture `case` in `real_use/conftest.py` makes a `Case` of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import zoopress
from zoopress.cards import load_card
from zoopress.pipeline.compress import Result, compress
from zoopress.plugins import load_plugins
from zoopress.recipes import load_recipe
from zoopress.store import Store

PRELUDE = """
import torch
import torch.nn.functional as F
from torch import nn


def g(seed=1):
    return torch.Generator().manual_seed(seed)


"""


class Case:
    """One model of a user's, in a folder of its own.

    Attributes:
        module: what `build`, `inputs` and `prepare` are read from.
        model: the original, with its weights.
    """

    def __init__(
        self, folder: Path, module: ModuleType, save: Callable[[nn.Module], Any] | None = None
    ) -> None:
        self.folder = folder
        self.module = module
        torch.manual_seed(0)
        self.model = module.build().eval()
        if hasattr(module, "prepare"):
            module.prepare(self.model)
        torch.save((save or nn.Module.state_dict)(self.model), folder / "weights.pt")
        self.model.eval()
        self._numbers = itertools.count()

    def compress(self, *stages: dict[str, Any], targets: Any = None, **data: Any) -> Result:
        """Run a recipe of these stages; `data` goes into the card's."""
        number = next(self._numbers)
        file = f"{self.module.__name__}.py"
        samples = {"calibration_samples": 16, "evaluation_samples": 32}
        card = {
            "name": "case",
            "source": "path:weights.pt",
            "factory": f"{file}:build",
            "data": {"inputs": f"{file}:inputs", **samples, **data},
        }
        recipe = {"name": "r", "stages": list(stages)}
        if targets is not None:
            recipe["targets"] = targets
        card_file, recipe_file = self.folder / "card.yaml", self.folder / f"recipe-{number}.yaml"
        card_file.write_text(yaml.safe_dump(card))
        recipe_file.write_text(yaml.safe_dump(recipe))
        plugins = load_plugins()
        return compress(
            load_card(str(card_file), plugins),
            load_recipe(str(recipe_file), plugins),
            self.folder / f"out-{number}",
            Store(self.folder / "store"),
            plugins,
        )

    def load(self, result: Result, **arguments: Any) -> nn.Module:
        """Open what came out, as someone does who pulled it."""
        return zoopress.load(result.artifact, factory=self.module.build, **arguments)


MakeCase = Callable[..., Case]
"""From a module's source, and how to save its weights, to a case."""


def call(model: nn.Module, *inputs: Tensor, **named: Any) -> Any:
    """Run a model on copies of the inputs, without gradients."""
    with torch.no_grad():
        return model(*[each.clone() for each in inputs], **named)


def error(reference: Tensor, found: Tensor) -> float:
    """Return the relative difference of two outputs, infinite if their shapes differ."""
    if reference.shape != found.shape:
        return float("inf")
    norm = reference.double().norm().clamp_min(1e-30)
    return float((reference.double() - found.double()).norm() / norm)
