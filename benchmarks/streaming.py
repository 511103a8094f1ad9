"""Measure memory and time of encoding and decoding a checkpoint that is larger than it should be.

A checkpoint of 8 GB in shards, with one tensor of more than 1 GB, is written block by block:
bell-shaped weights in bfloat16, float16 and float32, some of them pruned, and zeros. Then
`zoopress encode` and `zoopress decode` run as processes of their own, and the kernel tells their
peak of resident memory. What comes back is compared with the original byte by byte.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from results_files import table, write

from zoopress.artifacts.checkpoints.safetensors_file import build_header
from zoopress.coding.zpz.bands import ITEMSIZES
from zoopress.evaluation.machine import describe_machine

BLOCK_BYTES = 1 << 24
KINDS = ("bfloat16", "float32", "float16", "pruned", "zeros")


def tensors(total: int) -> dict[str, tuple[str, tuple[int, int]]]:
    """Return names, kinds and shapes of about `total` bytes; the first is larger than 1 GB."""
    chosen = {"embedding.weight": ("bfloat16", (max(8, int(total * 0.15) // 8192), 4096))}
    left = total - 2 * 4096 * chosen["embedding.weight"][1][0]
    layer = 0
    while left > 0:
        for i, kind in enumerate(KINDS):
            rows = max(1, min(2048, total // (1 << 19))) * (1 + i % 2)
            chosen[f"layers.{layer}.{kind}.weight"] = (kind, (rows, 4096))
            left -= rows * 4096 * ITEMSIZES[dtype(kind)]
        layer += 1
    return chosen


def dtype(kind: str) -> str:
    return kind if kind in ITEMSIZES else "bfloat16"


class Weights:
    """Blocks of weights, drawn once and put together in another order for each tensor."""

    def __init__(self) -> None:
        drawn = np.random.default_rng(0).normal(0, 0.03, 1 << 24).astype(np.float32)
        words = drawn.view(np.uint32)
        halves = ((words + 0x8000) >> 16).astype(np.uint16)
        kept = np.abs(drawn) > np.quantile(np.abs(drawn), 0.6)
        self._drawn: dict[str, np.ndarray[Any, Any]] = {
            "float32": drawn,
            "float16": drawn.astype(np.float16),
            "bfloat16": halves,
            "pruned": halves * kept,
            "zeros": np.zeros_like(halves),
        }

    def blocks(self, kind: str, size: int, seed: int) -> Iterator[memoryview]:
        """Yield so many bytes of a kind, block by block."""
        data = self._drawn[kind].view(np.uint8)
        generator = np.random.default_rng(seed)
        while size:
            at = int(generator.integers(0, max(1, data.size - BLOCK_BYTES))) // 4 * 4
            block = data[at : at + min(BLOCK_BYTES, size)]
            yield block.data
            size -= block.size


def write_checkpoint(folder: Path, total: int) -> int:
    """Write shards of a quarter of `total` bytes each, and their index; return the bytes."""
    weights = Weights()
    shards: list[dict[str, tuple[str, tuple[int, int]]]] = [{}]
    size = 0
    for name, (kind, shape) in tensors(total).items():
        bytes_ = shape[0] * shape[1] * ITEMSIZES[dtype(kind)]
        if shards[-1] and size + bytes_ > total // 4:
            shards.append({})
            size = 0
        shards[-1][name] = (kind, shape)
        size += bytes_
    places: dict[str, str] = {}
    written = 0
    for i, shard in enumerate(shards):
        path = folder / f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        header = build_header({name: (dtype(kind), shape) for name, (kind, shape) in shard.items()})
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for name, (kind, shape) in shard.items():
                count = shape[0] * shape[1] * ITEMSIZES[dtype(kind)]
                for block in weights.blocks(kind, count, len(places)):
                    file.write(block)
                places[name] = path.name
        written += path.stat().st_size
    index = {"metadata": {"total_size": written}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return written


def measure(*arguments: str) -> dict[str, float]:
    """Run `zoopress` with these arguments; tell its seconds and its peak of memory."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "zoopress", *arguments, "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    peak = 0
    while not (done := os.wait4(process.pid, os.WNOHANG))[0]:
        # What `wait4` tells would count the memory of this process, which it was forked from.
        peak = max(peak, status_bytes(process.pid, "VmHWM"))
        time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(done[1])
    if process.returncode:
        raise SystemExit(f"zoopress {' '.join(arguments)} failed")
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": done[2].ru_utime + done[2].ru_stime,
        "peak_bytes": peak,
    }


def status_bytes(process: int, key: str) -> int:
    """Return a line of a process's status; 0 if it is ending."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def same_files(one: Path, other: Path) -> bool:
    """Tell whether two folders hold the same files, byte by byte."""
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        return False
    return all(
        subprocess.run(["cmp", "-s", one / name, other / name], check=False).returncode == 0
        for name in names
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--folder", type=Path, help="where there is room for three of them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "checkpoint").mkdir()
        total = write_checkpoint(folder / "checkpoint", int(arguments.gigabytes * 1e9))
        coded = folder / "checkpoint.zpz"
        figures: dict[str, Any] = {
            "command": "python benchmarks/streaming.py",
            "machine": {**describe_machine(), "threads": len(os.sched_getaffinity(0))},
            "bytes": total,
            "largest_tensor_bytes": 2
            * 4096
            * tensors(int(arguments.gigabytes * 1e9))["embedding.weight"][1][0],
            "encode": measure("encode", str(folder / "checkpoint"), "--out", str(coded)),
            "verify": measure("decode", str(coded), "--verify"),
        }
        figures["coded_bytes"] = coded.stat().st_size
        figures["decode"] = measure("decode", str(coded), "--out", str(folder / "back"))
        figures["same"] = same_files(folder / "checkpoint", folder / "back")
        shutil.rmtree(folder / "back")
    steps = {"encode": "encode", "verify": "decode, verified", "decode": "decode to shards"}
    rows = [
        (
            text,
            f"{figures[step]['peak_bytes'] / 1e6:.0f}",
            f"{figures[step]['seconds']:.0f}",
            f"{figures[step]['cpu_seconds']:.0f}",
            f"{total / 1e6 / figures[step]['seconds']:.0f}",
        )
        for step, text in steps.items()
    ]
    same = "the same" if figures["same"] else "NOT the same"
    largest, coded_size = figures["largest_tensor_bytes"], figures["coded_bytes"]
    lines = [
        f"A checkpoint of {total / 1e9:.2f} GB, its largest tensor {largest / 1e9:.2f} GB, in "
        f"{coded_size / 1e9:.2f} GB. The files that come back are {same}.",
        "",
        *table(["", "peak memory, MB", "seconds", "CPU seconds", "MB a second"], rows),
    ]
    write("streaming", "Streaming", lines, figures)


if __name__ == "__main__":
    main()
