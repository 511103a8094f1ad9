"""Tiny models with cards, and what runs techniques on them: for tests of plugins, and ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from zoopress.artifacts.artifact import load_artifact
from zoopress.artifacts.card_model import find_model
from zoopress.cards import Card
from zoopress.evaluation.fidelity import call
from zoopress.models.model import Model
from zoopress.pipeline.compress import Result, compress
from zoopress.plugins import Plugins, load_plugins
from zoopress.recipes import Recipe, Stage
from zoopress.sources import Architecture, pull
from zoopress.statistics import Shelf
from zoopress.store import Store
from zoopress.tasks import open_task, without_test
from zoopress.techniques import Context, Technique
from zoopress.testing import models as testing_models
from zoopress.testing.rules import ConformanceError

IMAGES: dict[str, Any] = {"0": {"shape": [3, 16, 16]}}
TOKENS: dict[str, Any] = {
    "0": {
        "shape": [testing_models.LENGTH],
        "dtype": "int64",
        "high": testing_models.VOCABULARY,
    }
}
TINY_MODELS: dict[str, dict[str, Any]] = {
    "cnn": IMAGES,
    "lstm": TOKENS,
    "transformer": TOKENS,
}
"""Functions of `zoopress.testing.models`, and the inputs of what they build."""


def tiny_card(
    name: str,
    folder: Path,
    change: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
    labelled: bool = False,
) -> Card:
    """Write a tiny model of seeded weights into a folder.

    Args:
        name: one of `TINY_MODELS`.
        folder: made if it is missing.
        change: may change the state dict before it is written.
        labelled: whether inputs have labels; only a model of images can.

    Returns:
        The model's card, with random inputs.
    """
    return write_card(name, TINY_MODELS[name], folder, change, labelled)


def write_card(
    function: str,
    inputs: Mapping[str, Any],
    folder: Path,
    change: Callable[[dict[str, Tensor]], None] = lambda tensors: None,
    labelled: bool = False,
) -> Card:
    """Write the model that a function of `zoopress.testing.models` builds, and return its card."""
    folder.mkdir(parents=True, exist_ok=True)
    module = seeded(getattr(testing_models, function))
    tensors = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    change(tensors)
    file = folder.resolve() / f"{function}.safetensors"
    save_file(tensors, file)
    return Card.model_validate(
        {
            "name": f"tiny-{function.replace('_', '-')}",
            "source": f"path:{file}",
            "factory": f"zoopress.testing.models:{function}",
            "task": "image-classification" if labelled else "fidelity",
            "data": {
                **(_labelled_images(module, folder) if labelled else {"random": dict(inputs)}),
                "calibration_samples": 16,
                "evaluation_samples": 24,
                "batch_size": 8,
            },
        }
    )


def _labelled_images(module: nn.Module, folder: Path) -> dict[str, Any]:
    """Write images of random pixels and classes, and return a card's data with them."""
    with torch.inference_mode():
        classes = module(torch.zeros(1, *IMAGES["0"]["shape"])).shape[1]
    generator = torch.Generator().manual_seed(0)
    channels, *size = IMAGES["0"]["shape"]
    pixels = torch.randint(0, 256, (160, *size, channels), generator=generator)
    labels = torch.randint(0, classes, (160,), generator=generator)
    file = folder.resolve() / "images.npz"
    np.savez(file, image=pixels.to(torch.uint8).numpy(), label=labels.numpy())
    return {"dataset": f"file:{file}", "validation_samples": 24}


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a module with random weights that follow from the seed.

    The running statistics and the affine weights of batch normalization are random too: at their
    defaults they would hide a channel that was dropped in one place alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build().eval()
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                for tensor in (layer.weight, layer.running_var):
                    if tensor is not None:
                        nn.init.uniform_(tensor, 0.5, 1.5)
                for tensor in (layer.bias, layer.running_mean):
                    if tensor is not None:
                        nn.init.normal_(tensor, std=0.3)
    return module


def run_chain(
    techniques: Sequence[Technique[Any]],
    card: Card,
    folder: Path,
    plugins: Plugins | None = None,
    seed: int = 0,
) -> Result:
    """Compress a card's model by techniques in order, with a store of its own in the folder."""
    recipe = Recipe("test", tuple(map(Stage, techniques)), seed=seed)
    return compress(card, recipe, folder, Store(folder / "store"), plugins or load_plugins())


def reload_artifact(folder: Path, card: Card, plugins: Plugins | None = None) -> Model:
    """Load an artifact of a card's model, with masks and all."""
    plugins = plugins or load_plugins()
    factory = getattr(architecture_of(card, plugins), "factory", None)
    model, _, _ = load_artifact(folder, plugins, factory)
    return model


def artifact_bytes(folder: Path) -> dict[str, bytes]:
    """Return the content of an artifact's files by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def context_for(card: Card, folder: Path, plugins: Plugins | None = None, seed: int = 0) -> Context:
    """Return what a stage on a card's model would get, to call `apply` without a chain."""
    plugins = plugins or load_plugins()
    folder.mkdir(parents=True, exist_ok=True)
    task = open_task(card, pull(card, plugins).folder, plugins)
    # What a workbench gives: nothing is measured twice, but here nothing outlives the context.
    shelf = Shelf(task.fingerprint())
    return Context(
        shelf=shelf,
        seed=seed,
        device=torch.device("cpu"),
        batches=lambda: task.batches("calibration"),
        call=lambda module, batch: call(task, module, batch),
        progress=lambda item, fraction=None: None,
        checkpoint=folder,
        task=without_test(task),
        teacher=lambda _: built(card, plugins),
        plugins=plugins,
    )


def architecture_of(card: Card, plugins: Plugins) -> Architecture:
    """Return what builds the model of a card."""
    return find_model(card, pull(card, plugins), plugins).architecture


def built(card: Card, plugins: Plugins) -> nn.Module:
    """Return the model of a card, in evaluation mode."""
    return find_model(card, pull(card, plugins), plugins).load()


def workable(technique: Technique[Any], folder: Path, plugins: Plugins) -> str:
    """Return the name of a tiny model that a technique does not refuse."""
    names = ["cnn"] if learns_from_labels(technique) else list(TINY_MODELS)
    for name in names:
        module = built(tiny_card(name, folder / "refusing" / name), plugins)
        if technique.refusal(Model(module.to("meta"), plugins.layers)) is None:
            return name
    raise ConformanceError(f"its `refusal` refuses all tiny models: {', '.join(names)}")


def learns_from_labels(technique: Technique[Any]) -> bool:
    """Tell whether a technique needs labels, which only images have here."""
    return "training" in technique.needs and "teacher" not in technique.needs
