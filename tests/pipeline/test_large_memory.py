"""How much memory compressing a model takes that lies on disk: far less than the model.

Each is compressed in a process of its own, after a tiny one of the same kind, so that what is
measured is the model's and not that of code which runs for the first time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RESET = Path("/proc/self/clear_refs")
SCRIPT = """
import ctypes, json, re, sys
from functools import partial
from pathlib import Path

import zoopress.pipeline.workbench as workbench
from zoopress.cards import Card
from zoopress.pipeline.compress import compress
from zoopress.plugins import load_plugins
from zoopress.recipes import load_recipe
from zoopress.store import Store

workbench.measure_latency = partial(workbench.measure_latency, seconds=0.01)
root, memory, plugins = Path(sys.argv[1]), int(sys.argv[2]), load_plugins()
recipe = load_recipe(str(root / "recipe.yaml"), plugins)


def run(name, memory):
    tokens = {"input_ids": {"shape": [4], "dtype": "int64", "high": 256}}
    data = {"random": tokens, "calibration_samples": 2, "evaluation_samples": 2, "batch_size": 2}
    described = {"name": name, "source": f"path:{root / name}", "task": "fidelity", "data": data}
    card = Card.model_validate({**described, "measures": []})
    folder = root / f"{name}-{memory}"
    compress(card, recipe, folder, Store(folder / "store"), plugins, memory_bytes=memory)


def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])


run("tiny", memory and 1)
ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
run("large", memory)
print(json.dumps(status("VmHWM") - before))
"""

pytestmark = pytest.mark.skipif(
    not os.access(RESET, os.W_OK), reason="only Linux resets and tells a process's peak memory"
)


def write(folder: Path, width: int, layers: int) -> int:
    """Write a llama of bfloat16, and return the bytes of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2 * width,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    with torch.device("meta"):
        module = LlamaForCausalLM(config)
    module = module.bfloat16().to_empty(device="cpu")
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    module.save_pretrained(folder, max_shard_size="20MB")
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def grown(root: Path, memory: int) -> int:
    """Return by how much the peak of resident memory grows, mapped files included."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(root), str(memory)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("width", "layers"),
    [(512, 8), (1024, 16)],
)
@pytest.mark.slow  # a thread gives pages back, late where other processes take its time
def test_memory_is_bounded_whatever_the_model(width: int, layers: int, tmp_path: Path) -> None:
    stages = [{"technique": "weight_quantization", "bits": 8, "clipping": "none"}]
    (tmp_path / "recipe.yaml").write_text(json.dumps({"stages": stages}))
    write(tmp_path / "tiny", 256, 1)
    size = write(tmp_path / "large", width, layers)
    # A part for what is mapped, and what is made of some rows of the largest weight.
    assert grown(tmp_path, size // 2) < 120_000_000
    if size > 300_000_000:
        assert grown(tmp_path, 1 << 40) > size  # in memory, it takes more than the model
