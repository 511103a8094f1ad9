"""Peak memory, of models whose weights' bytes are known."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from held_data import compare
from zoopress.artifacts.artifact import save_artifact
from zoopress.artifacts.manifest import Base
from zoopress.cards import Card, load_card
from zoopress.cells.cell import open_original
from zoopress.coding.bits import pack_codes
from zoopress.errors import StageError
from zoopress.evaluation.memory import measure, measure_in_process
from zoopress.models.model import Model
from zoopress.plugins import Plugins

MB = 1_000_000
WIDTH = 4096
FACTORY = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear({width}, {width}, bias=False), nn.ReLU())
"""


def write_card(folder: Path, plugins: Plugins, width: int, factory: str = FACTORY) -> Card:
    (folder / "net.py").write_text(factory.replace("{width}", str(width)))
    save_file({"0.weight": torch.randn(width, width)}, folder / "net.safetensors")
    (folder / "card.yaml").write_text(
        "name: net\nsource: path:net.safetensors\nfactory: net.py:build\n"
        f"data: {{random: {{input: {{shape: [{width}]}}}}, evaluation_samples: 16}}\n"
    )
    return load_card(str(folder / "card.yaml"), plugins)


def write_int8(folder: Path, card: Card, plugins: Plugins) -> Model:
    opened = open_original(card, plugins)
    model = Model(opened.architecture.load(opened.files).eval(), plugins.layers)
    codes = torch.randint(0, 256, (WIDTH, WIDTH), dtype=torch.uint8)
    model.pack(
        next(iter(model.weights())),
        "quantized",
        {"bits": 8, "group_size": WIDTH, "symmetric": True},
        {"codes": pack_codes(codes, 8), "scale": torch.ones(WIDTH, 1, dtype=torch.bfloat16)},
    )
    base = Base(name="net", source="path:x", revision="local", size_bytes=9, task="fidelity")
    folder.mkdir()
    save_artifact(folder, model, opened.architecture, base, {})
    return model


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux forgets a peak"
)
def test_memory_is_that_of_the_weights_and_little_more(tmp_path: Path, plugins: Plugins) -> None:
    card = write_card(tmp_path, plugins, WIDTH)
    opened = open_original(card, plugins)
    model = write_int8(tmp_path / "artifact", card, plugins)
    original = opened.architecture.load(opened.files)
    comparison = compare(opened.task, original, model, plugins, tmp_path / "artifact")
    found = measure(comparison, lambda *_: None)
    dense = 4 * WIDTH * WIDTH
    assert dense < found["loading"]["original_bytes"] < 2.2 * dense
    for when in ("single", "batch"):
        peaks = found[when]
        assert dense < peaks["original_bytes"] < dense + 12 * MB
        # The kernel that multiplies by int8 codes needs vector instructions.
        if torch.backends.cpu.get_cpu_capability() != "DEFAULT":
            assert dense / 4 < peaks["compressed_bytes"] < dense / 4 + 12 * MB
        assert peaks["ratio"] == peaks["original_bytes"] / peaks["compressed_bytes"]
    assert (found["batch_size"], found["inputs"]) == (16, {"input": [16, WIDTH]})
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("    import os; os.kill(os.getpid(), 9)\n", "was killed, most likely for want of memory"),
        pytest.param(
            "    raise RuntimeError('no such thing')\n", "no such thing", marks=pytest.mark.slow
        ),
    ],
)
def test_a_process_that_fails_is_an_error_that_says_how(
    tmp_path: Path, plugins: Plugins, lines: str, said: str
) -> None:
    card = write_card(
        tmp_path, plugins, 4, FACTORY.replace("def build():\n", f"def build():\n{lines}")
    )
    with pytest.raises(StageError, match=said):
        measure_in_process(card, {"input": torch.ones(2, 4)})


@pytest.mark.slow
def test_inputs_of_any_structure_reach_the_process(tmp_path: Path, plugins: Plugins) -> None:
    card = write_card(tmp_path, plugins, 4, STRUCTURED)
    inputs: Any = {"pair": (torch.ones(2, 4), [torch.zeros(2, 4)]), "flag": True}
    peaks = measure_in_process(card, inputs)
    assert peaks.keys() == {"loading", "single", "batch"}


STRUCTURED = """
from torch import nn

class Net(nn.Sequential):
    def forward(self, pair, flag):
        first, (second,) = pair
        assert type(pair) is tuple and flag is True
        return super().forward(first + second)

def build():
    return Net(nn.Linear({width}, {width}, bias=False), nn.ReLU())
"""
