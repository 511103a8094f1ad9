"""Tiny language models as artifacts, for tests of what opens them elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from text_models import VOCABULARY, save_model
from zoopress.artifacts.artifact import save_artifact
from zoopress.artifacts.manifest import Base
from zoopress.cards import Card
from zoopress.cells.cell import open_original
from zoopress.models.model import Model
from zoopress.plugins import load_plugins
from zoopress.testing.tiny import context_for

PLUGINS = load_plugins()


def llama_card(folder: Path, **config: Any) -> Card:
    """Save a tiny random Llama into a folder and return its card."""
    save_model(folder / "model", "LlamaForCausalLM", **config)
    inputs = {"input_ids": {"shape": [12], "dtype": "int64", "high": VOCABULARY}}
    return Card.model_validate(
        {
            "name": "llama",
            "source": f"path:{folder / 'model'}",
            "task": "fidelity",
            "data": {"random": inputs, "evaluation_samples": 8, "calibration_samples": 8},
        }
    )


def compressed(card: Card, folder: Path, *stages: tuple[str, dict[str, Any]]) -> Path:
    """Apply techniques to a card's model, without evaluating it, and return the artifact."""
    original = open_original(card, PLUGINS)
    model = Model(original.architecture.load(original.files).eval(), PLUGINS.layers)
    for name, options in stages:
        kind = PLUGINS.technique(name)
        technique = kind(kind.config_type.model_validate(options))
        technique.apply(model, context_for(card, folder / "context", PLUGINS))
    artifact = folder / "artifact"
    artifact.mkdir(parents=True)
    base = Base(name=card.name, source="path:x", revision="x", size_bytes=1, task=card.task)
    others = {name: original.files.folder / name for name in original.files.others}
    save_artifact(artifact, model, original.architecture, base, others)
    return artifact
