"""Measure one model's memory: a process that `memory.py` starts, JSON in and out."""

from __future__ import annotations

import gc
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zoopress.cards import Card
from zoopress.cells.cell import open_original
from zoopress.errors import SourceError
from zoopress.evaluation.peak_memory import forget_peak, peak_bytes
from zoopress.loading import load
from zoopress.plugins import load_plugins
from zoopress.tasks.batches import first_samples


def main() -> None:
    """Read a request from standard input and print the answer."""
    request = json.load(sys.stdin)
    card = Card.model_validate(request["card"])
    card._root = Path(request["root"])
    opened = open_original(card, load_plugins())
    inputs = _rebuilt(request["inputs"], load_file(request["tensors"]))
    with suppress(SourceError):  # for what it imports
        opened.model.on_meta()
    _warm_up()

    start = forget_peak()
    if request["artifact"] is None:
        module = opened.model.load()
    else:
        module = load(
            request["artifact"],
            factory=getattr(opened.architecture, "factory", None),
            verify=False,
            runtime=request["runtime"],
        )
        if request["runtime"] != "eager":  # others get ready at the first call
            opened.task.call(module, inputs)
            gc.collect()
    loading = peak_bytes()
    peaks = {"loading": loading - start}
    for name, batch in (("single", first_samples(inputs, 1)), ("batch", inputs)):
        forget_peak()
        for _ in range(2):
            opened.task.call(module, batch)
        peaks[name] = peak_bytes() - start
    print(json.dumps(peaks))


def _warm_up() -> None:
    """Let torch load its kernels and take its work space."""
    with torch.inference_mode():
        x = torch.randn(4, 64, 64)
        nn.functional.scaled_dot_product_attention(x, x, x)
        nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Softmax(-1))(x)
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)).eval()(x[None])


def _rebuilt(structure: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the inputs that a structure of `memory.py` stands for."""
    kind, content = structure
    if kind == "tensor":
        return tensors[str(content)]
    if kind == "dict":
        return {key: _rebuilt(value, tensors) for key, value in content.items()}
    if kind in ("tuple", "list"):
        parts = [_rebuilt(value, tensors) for value in content]
        return tuple(parts) if kind == "tuple" else parts
    return content


if __name__ == "__main__":
    main()
