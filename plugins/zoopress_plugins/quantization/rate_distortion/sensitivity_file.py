"""Sensitivities on disk, so that a killed run need not measure them again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zoopress_plugins.quantization.rate_distortion.sensitivity import Sensitivity


def write_sensitivities(file: Path, sensitivities: Mapping[str, Sensitivity]) -> None:
    """Write a file that is there whole or not at all.

    Weights with one input share its second moments, which are written once.
    """
    tensors: dict[str, Tensor] = {}
    index = {
        name: [
            *(_add(side, tensors) for side in (sensitivity.columns, sensitivity.rows)),
            sensitivity.unreached,
        ]
        for name, sensitivity in sensitivities.items()
    }
    part = file.with_suffix(".part")
    save_file(tensors, part, {"index": json.dumps(index)})
    os.replace(part, file)


def read_sensitivities(file: Path) -> dict[str, Sensitivity] | None:
    """Return what was written; None if there is nothing, or not what was written."""
    try:
        with safe_open(file, framework="pt") as opened:
            index = json.loads(opened.metadata()["index"])
            sides = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118
        found = {}
        for name, (columns, rows, unreached) in index.items():
            one, other = (None if key is None else sides[key] for key in (columns, rows))
            found[name] = Sensitivity(one, other, float(unreached))
        return found
    except (OSError, SafetensorError, ValueError, LookupError, TypeError):
        return None


def _add(side: Tensor | None, tensors: dict[str, Tensor]) -> str | None:
    if side is None:
        return None
    key = f"{side.data_ptr()} {tuple(side.shape)} {side.stride()}"  # a view is another side
    tensors.setdefault(key, side.contiguous())
    return key
