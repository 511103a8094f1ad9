"""How much memory loading takes: that of the loaded model, a quarter of it, and one tensor.

Each load runs in a process of its own, forked from one that has imported everything; it loads a
tiny artifact of the same kind first, so that what is measured is the artifact's and not that of
code which runs for the first time.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoopress
from zoopress.artifacts.artifact import save_artifact
from zoopress.artifacts.manifest import Base
from zoopress.coding.bits import pack_codes
from zoopress.models.model import Model
from zoopress.plugins import Plugins
from zoopress_zoo.factory import Factory

RESET = Path("/proc/self/clear_refs")
LIBC = ctypes.CDLL(None)
BASE = Base(name="net", source="path:x", revision="local", size_bytes=9, task="fidelity")
SMALL = {"rows": 64, "width": 64, "blocks": 1}
LARGE = {"rows": 16_384, "width": 512, "blocks": 4}

pytestmark = pytest.mark.skipif(
    not os.access(RESET, os.W_OK), reason="only Linux resets and tells a process's peak memory"
)


class Net(nn.Module):
    """An embedding that is also the output layer, and as many weights again in linear layers."""

    def __init__(self, rows: int, width: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width)
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(blocks))
        self.output = nn.Linear(width, rows, bias=False)
        self.output.weight = self.embedding.weight


class LooksAtValues(Net):
    """Cannot be built on the meta device."""

    def __init__(self, rows: int, width: int, blocks: int) -> None:
        super().__init__(rows, width, blocks)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, blocks)]


# What is pruned, bits of a code (0: floats), bytes of a shard, container.
KINDS: dict[str, tuple[bool, int, int, str]] = {
    "float32": (False, 0, 1 << 40, "safetensors"),
    "sharded": (False, 0, 4_000_000, "safetensors"),
    "int8": (False, 8, 1 << 40, "safetensors"),
    "int4": (False, 4, 1 << 40, "safetensors"),
    "masked": (True, 0, 1 << 40, "safetensors"),
    "masked int4": (True, 4, 1 << 40, "safetensors"),
    "zpz": (False, 0, 1 << 40, "zpz"),
    "zpz 5 bits": (False, 5, 1 << 40, "zpz"),
    "zpz masked 5 bits": (True, 5, 1 << 40, "zpz"),
    "constructor looks at values": (False, 4, 1 << 40, "safetensors"),
}
CASES = [
    (kind, unpacking, verify)
    for kind, (_, bits, _, _) in KINDS.items()
    for unpacking in (("none", "auto", "all") if bits else ("auto",))
    for verify in ((True, False) if kind == "float32" else (True,))
]


def network(kind: str) -> type[nn.Module]:
    return LooksAtValues if kind == "constructor looks at values" else Net


def make(folder: Path, kind: str, sizes: dict[str, int], plugins: Plugins) -> None:
    """Write an artifact of random weights, or random codes, of which few are far from zero."""
    masked, bits, shard, storage = KINDS[kind]
    torch.manual_seed(0)
    module = network(kind)(**sizes).eval()
    model = Model(module, plugins.layers, storage=storage)
    for weight in list(model.weights()):
        if masked:
            model.mask(weight, torch.rand(weight.parameter.shape) > 0.4)
        if bits:
            pack_random(model, weight, bits)
    folder.mkdir(parents=True)
    architecture = Factory(folder, {"factory": "net.py:Net", "arguments": sizes})
    save_artifact(folder, model, architecture, BASE, {}, max_shard_bytes=shard)


def pack_random(model: Model, weight: Any, bits: int) -> None:
    rows, columns = weight.matrix().shape
    codes = (torch.randn(rows, columns) * (1 << bits - 3)).to(torch.int8)
    codes = codes.clamp_(-(1 << bits - 1), (1 << bits - 1) - 1)
    if weight.name in model.masks:
        codes *= model.masks[weight.name]
    codes = codes.view(torch.uint8) & ((1 << bits) - 1)
    group = 64 if bits == 4 else columns
    scale = torch.rand(rows, columns // group, dtype=torch.bfloat16)
    arguments = {"bits": bits, "group_size": group, "symmetric": True}
    model.pack(weight, "quantized", arguments, {"codes": pack_codes(codes, bits), "scale": scale})


def load(folder: Path, kind: str, unpacking: Any, verify: bool) -> nn.Module:
    return zoopress.load(folder, factory=network(kind), unpacking=unpacking, verify=verify)


def status(key: str) -> int:
    """Return a line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measure(root: Path, kind: str, unpacking: str, verify: bool) -> dict[str, int]:
    """Load, and tell the peak of resident memory, mapped files included, and the model's size."""
    load(root / "small" / kind, kind, unpacking, verify)
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)  # free memory that the process still has would be used unseen
    RESET.write_text("5")
    before = status("VmRSS")
    module = load(root / "large" / kind, kind, unpacking, verify)
    peak = status("VmHWM") - before
    tensors: dict[int, Tensor] = {
        t.data_ptr(): t for t in (*module.parameters(), *module.buffers()) if t.nbytes
    }
    sizes = [tensor.nbytes for tensor in tensors.values()]
    return {"peak": peak, "model": sum(sizes), "tensor": max(sizes)}


def in_a_fork(work: Callable[[], Any]) -> Any:
    """Return what `work` returns in a copy of this process."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(write, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return json.loads(text)


@pytest.fixture(scope="module")
def figures(
    tmp_path_factory: pytest.TempPathFactory, plugins: Plugins
) -> dict[str, dict[str, int]]:
    root = tmp_path_factory.mktemp("artifacts")
    for kind in KINDS:
        make(root / "small" / kind, kind, SMALL, plugins)
        make(root / "large" / kind, kind, LARGE, plugins)
    command = [sys.executable, __file__, str(root)]
    # A thread's memory is no tensor's, and a process with threads must not fork.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, dict[str, int]] = json.loads(done.stdout)
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "unpacking", "verify"), CASES)
def test_loading_takes_little_more_memory_than_the_model(
    kind: str, unpacking: str, verify: bool, figures: dict[str, dict[str, int]]
) -> None:
    found = figures[f"{kind} {unpacking} {verify}"]
    bound = 1.25 * found["model"] + found["tensor"]
    # Less than the model itself would mean that memory was missed.
    assert 0.9 * found["model"] < found["peak"] < bound, {
        name: f"{size / 1e6:.1f} MB" for name, size in found.items()
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    load(Path(sys.argv[1]) / "small" / "zpz 5 bits", "zpz 5 bits", "auto", True)  # imports
    cases = {
        f"{case[0]} {case[1]} {case[2]}": in_a_fork(lambda c=case: measure(Path(sys.argv[1]), *c))
        for case in CASES
    }
    print(json.dumps(cases))
