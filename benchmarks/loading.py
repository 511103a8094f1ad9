"""Measure the memory and the time that `zoopress.load` takes, for each kind of artifact.

The model is an embedding that is also the output layer, and as many weights again in linear layers;
its weights are random. Peak memory is what the kernel counts as resident, pages of mapped files
included, above what the process held before; the process has imported everything and loaded a tiny
artifact of the same kind. Each load runs in a fork of its own, of a process that made no artifact,
since memory that was used and freed would be used again unseen. The bound is 1.25 × the loaded
model and its largest tensor. Files are in the system's cache when they are read.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results_files import table, write
from torch import Tensor, nn

import zoopress
from zoopress.artifacts.artifact import save_artifact
from zoopress.artifacts.manifest import MANIFEST, Base
from zoopress.coding.bits import pack_codes
from zoopress.evaluation.machine import describe_machine
from zoopress.models.model import Model
from zoopress.models.packing import Unpacking
from zoopress.plugins import Plugins, load_plugins
from zoopress_plugins.pruning.magnitude_pruning import smallest_pruned
from zoopress_plugins.quantization.weight_quantization import quantize
from zoopress_zoo.factory import Factory

BASE = Base(name="net", source="path:x", revision="local", size_bytes=9, task="fidelity")
TINY = {"rows": 64, "width": 64, "blocks": 1}
SHARD_BYTES = 16_000_000
LIBC = ctypes.CDLL(None)


class Net(nn.Module):
    """An embedding that is also the output layer, and linear layers between."""

    def __init__(self, rows: int, width: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width)
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(blocks))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(blocks))
        self.output = nn.Linear(width, rows, bias=False)
        self.output.weight = self.embedding.weight


class Kind:
    """What was done to the model, and how it is stored."""

    def __init__(
        self,
        bits: int | None = None,
        sparsity: float = 0.0,
        shards: bool = False,
        zpz: bool = False,
    ) -> None:
        self.bits = bits
        self.sparsity = sparsity
        self.shards = shards
        self.zpz = zpz


KINDS = {
    "float32": Kind(),
    "float32, sharded": Kind(shards=True),
    "float32, 50 % pruned": Kind(sparsity=0.5),
    "8 bits": Kind(8),
    "4 bits, a scale for 64 weights": Kind(4),
    "4 bits, 50 % pruned": Kind(4, sparsity=0.5),
    "float32, coded": Kind(zpz=True),
    "5 bits, coded": Kind(5, zpz=True),
    "5 bits, 50 % pruned, coded": Kind(5, sparsity=0.5, zpz=True),
}


def make(folder: Path, kind: Kind, sizes: dict[str, int], plugins: Plugins) -> None:
    torch.manual_seed(0)
    model = Model(Net(**sizes).eval(), plugins.layers, storage="zpz" if kind.zpz else "safetensors")
    for weight in list(model.weights()):
        if kind.sparsity:
            model.mask(weight, smallest_pruned([weight.parameter.abs()], kind.sparsity)[0])
        if kind.bits:
            matrix = weight.matrix()
            group = 64 if kind.bits == 4 else matrix.shape[1]
            codes, scale, _ = quantize(matrix, kind.bits, group, symmetric=True, clipping=False)
            tensors = {"codes": pack_codes(codes, kind.bits), "scale": scale}
            arguments = {"bits": kind.bits, "group_size": group, "symmetric": True}
            model.pack(weight, "quantized", arguments, tensors)
    folder.mkdir(parents=True)
    architecture = Factory(folder, {"factory": "net.py:Net", "arguments": sizes})
    shard = SHARD_BYTES if kind.shards else 1 << 40
    save_artifact(folder, model, architecture, BASE, {}, max_shard_bytes=shard)


def in_a_fork(work: Callable[[], dict[str, float]]) -> dict[str, float]:
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
    found: dict[str, float] = json.loads(text)
    return found


def status(key: str) -> int:
    """Return a line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def measure(tiny: Path, folder: Path, unpacking: Unpacking, verify: bool) -> dict[str, float]:
    """Return bytes and seconds of one load."""
    zoopress.load(tiny, factory=Net, unpacking=unpacking, verify=verify)
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)  # free memory that the process still has would be used unseen
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak
    before, start = status("VmRSS"), time.perf_counter()
    module = zoopress.load(folder, factory=Net, unpacking=unpacking, verify=verify)
    seconds, peak = time.perf_counter() - start, status("VmHWM") - before
    tensors: dict[int, Tensor] = {
        t.data_ptr(): t for t in (*module.parameters(), *module.buffers()) if t.nbytes
    }
    sizes = [tensor.nbytes for tensor in tensors.values()]
    return {"model": sum(sizes), "largest": max(sizes), "peak": peak, "seconds": seconds}


def reading_seconds(folder: Path) -> float:
    """Return the seconds that it takes to read the artifact's files into memory."""
    start = time.perf_counter()
    content = [path.read_bytes() for path in folder.iterdir()]
    seconds = time.perf_counter() - start
    del content
    return seconds


def measure_kind(
    tiny: Path, folder: Path, unpacking: Unpacking, repeat: int
) -> dict[str, float | str]:
    """Return the largest peak and the smallest seconds of several loads, with verification."""
    loads = [in_a_fork(lambda: measure(tiny, folder, unpacking, True)) for _ in range(repeat)]
    unverified = [in_a_fork(lambda: measure(tiny, folder, unpacking, False)) for _ in range(repeat)]
    first = loads[0]
    bound = 1.25 * first["model"] + first["largest"]
    peak = max(load["peak"] for load in (*loads, *unverified))
    reading = min(reading_seconds(folder) for _ in range(repeat + 2))
    seconds = min(load["seconds"] for load in loads)
    return {
        "unpacking": unpacking,
        "file_bytes": sum(p.stat().st_size for p in folder.iterdir() if p.name != MANIFEST),
        "model_bytes": first["model"],
        "largest_tensor_bytes": first["largest"],
        "peak_bytes": peak,
        "bound_bytes": bound,
        "peak_by_bound": peak / bound,
        "peak_by_model": peak / first["model"],
        "seconds": seconds,
        "seconds_without_verification": min(load["seconds"] for load in unverified),
        "reading_seconds": reading,
        "seconds_by_reading": seconds / reading,
    }


def row(kind: str, figures: dict[str, Any]) -> tuple[str, ...]:
    sizes = ("file", "model", "largest_tensor", "peak", "bound")
    return (
        kind,
        figures["unpacking"],
        *(f"{figures[f'{size}_bytes'] / 1e6:.1f}" for size in sizes),
        f"{figures['peak_by_bound']:.2f}",
        f"{figures['seconds']:.2f}",
        f"{figures['seconds_without_verification']:.2f}",
        f"{figures['seconds_by_reading']:.1f}×",
    )


def measure_all(root: Path, repeat: int) -> list[dict[str, Any]]:
    """Measure every kind of artifact in a folder."""
    figures = []
    for i, (what, kind) in enumerate(KINDS.items()):
        tiny, folder = root / f"tiny{i}", root / f"{i}"
        zoopress.load(tiny, factory=Net)  # imports, which forks then share
        unpackings: tuple[Unpacking, ...] = ("none", "auto", "all") if kind.bits else ("auto",)
        for unpacking in unpackings:
            found = measure_kind(tiny, folder, unpacking, repeat)
            figures.append({"artifact": what, **found})
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16_384, help="of the embedding (%(default)s)")
    parser.add_argument("--width", type=int, default=768, help="of the layers (%(default)s)")
    parser.add_argument("--blocks", type=int, default=4, help="of two layers (%(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="loads of each kind (%(default)s)")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads must not fork
    if options.measure:
        print(json.dumps(measure_all(options.measure, options.repeat)))
        return

    sizes = {"rows": options.rows, "width": options.width, "blocks": options.blocks}
    plugins = load_plugins()
    with tempfile.TemporaryDirectory() as name:
        for i, kind in enumerate(KINDS.values()):
            make(Path(name) / f"tiny{i}", kind, TINY, plugins)
            make(Path(name) / f"{i}", kind, sizes, plugins)
        command = [sys.executable, __file__, "--measure", name, "--repeat", str(options.repeat)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        figures = json.loads(done.stdout)

    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Net(**sizes).parameters())
    header = (
        "artifact",
        "unpacking",
        *("file, MB", "model, MB", "largest tensor", "peak, MB", "bound, MB", "peak ÷ bound"),
        *("seconds", "without SHA-256", "÷ reading"),
    )
    lines = [
        f"A model of {count:,} random weights, {sizes['rows'] * sizes['width']:,} of them in one "
        "tensor, loaded by `zoopress.load`. Peak: resident memory, pages of mapped files included, "
        "above what the process held before. Bound: 1.25 × the loaded model and its largest "
        f"tensor. The largest peak and the smallest seconds of {options.repeat} loads, with every "
        "file's SHA-256 compared and without; ÷ reading: seconds of the first as a multiple of "
        "reading the files into memory from the system's cache.",
        "",
        *table(header, [row(each["artifact"], each) for each in figures]),
    ]
    write(
        "loading",
        "Loading",
        lines,
        {
            "command": "python benchmarks/loading.py",
            "machine": describe_machine(),
            "sizes": sizes,
            "loads": figures,
        },
    )


if __name__ == "__main__":
    main()
