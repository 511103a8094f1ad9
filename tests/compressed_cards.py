"""Cards of compressed models in every state: the artifacts that zoopress 0.1 left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from zoopress.cards import Card, load_card
from zoopress.plugins import load_plugins

MADE = Path(__file__).parent / "data" / "made_by_0_1"
STATES = sorted(path.name for path in (MADE / "artifacts").iterdir())
INPUTS = load_file(MADE / "inputs.safetensors")
OUTPUTS = load_file(MADE / "outputs.safetensors")
_TOKENS = {"shape": [9], "dtype": "int64", "low": 1, "high": 40}
DATA: dict[str, Any] = {
    "cnn": {"random": {"0": {"shape": [3, 8, 8]}}},
    "lstm": {"random": {"ids": _TOKENS}},
    "encoder": {"random": {"ids": _TOKENS}},
    "bert": {"random": {"input_ids": _TOKENS}},
}
SAMPLES = {"calibration_samples": 8, "evaluation_samples": 8, "batch_size": 4}


def network_of(state: str) -> str:
    """Return the name of the network that a state is of."""
    return state.partition("-")[0]


def factory_of(state: str) -> str | None:
    """Return the function that builds a state's network, None if its settings do."""
    name = network_of(state)
    return None if name == "bert" else f"{MADE / 'models.py'}:{name}"


def card_of(state: str, folder: Path, source: str | None = None, **more: Any) -> Card:
    """Write a card whose model is an artifact, or another source of it, and read it."""
    values = {
        "name": state,
        "source": source or f"path:{MADE / 'artifacts' / state}",
        "data": DATA[network_of(state)] | SAMPLES,
        **({"factory": factory_of(state)} if factory_of(state) else {}),
        **more,
    }
    path = folder / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    return load_card(str(path), load_plugins())


def outputs_of(state: str, module: nn.Module) -> Tensor:
    """Run a module on the inputs of a state's network."""
    with torch.inference_mode():
        output = module(INPUTS[network_of(state)])
    result: Tensor = getattr(output, "logits", output)
    return result
