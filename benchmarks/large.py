"""Measure the memory of compressing a model that is larger than it should be.

A checkpoint of a llama of 8 GB, bfloat16, in shards, is written block by block: bell-shaped
weights. Then `zoopress run --memory` compresses it in a process of its own, and the kernel tells
that process's peak of resident memory, mapped files included, and how much of it was its own.
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
from pathlib import Path
from typing import Any

import numpy as np
from results_files import table, write
from streaming import status_bytes

from zoopress.artifacts.checkpoints.safetensors_file import build_header
from zoopress.evaluation.machine import describe_machine

RECIPES: dict[str, list[dict[str, Any]]] = {
    "8 bits": [{"technique": "weight_quantization", "bits": 8}],
    "4 bits": [{"technique": "weight_quantization", "bits": 4, "group_size": 64}],
    "4 bits, coded": [
        {"technique": "weight_quantization", "bits": 4, "group_size": 64},
        {"technique": "entropy_coding"},
    ],
}
SHARD_BYTES = 1 << 30


def config(layers: int, width: int, vocabulary: int) -> dict[str, Any]:
    """Return config.json of a llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": width,
        "intermediate_size": width * 11 // 4,
        "max_position_embeddings": 2048,
        "num_attention_heads": width // 64,
        "num_hidden_layers": layers,
        "num_key_value_heads": width // 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "vocab_size": vocabulary,
    }


def tensors(settings: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a llama's tensors."""
    width, inner = settings["hidden_size"], settings["intermediate_size"]
    keys = width * settings["num_key_value_heads"] // settings["num_attention_heads"]
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (settings["vocab_size"], width)
    }
    for layer in range(settings["num_hidden_layers"]):
        block = {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }
        found.update({f"model.layers.{layer}.{name}.weight": s for name, s in block.items()})
    return {
        **found,
        "model.norm.weight": (width,),
        "lm_head.weight": (settings["vocab_size"], width),
    }


def write_checkpoint(folder: Path, settings: dict[str, Any], shard_bytes: int = SHARD_BYTES) -> int:
    """Write a llama's config, and random weights in shards; return the bytes of these."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = total = 0
    for name, shape in tensors(settings).items():
        count = 2 * int(np.prod(shape))
        if shards[-1] and size + count > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size, total = size + count, total + count
    places: dict[str, str] = {}
    drawn = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header = build_header({name: ("bfloat16", shape) for name, shape in shard.items()})
        with (folder / file).open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            for name, shape in shard.items():
                places[name] = file
                _write_tensor(stream, shape, drawn, len(places))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(settings))
    return total


def _write_tensor(stream: Any, shape: tuple[int, ...], drawn: Any, seed: int) -> None:
    """Write ones for a vector, else numbers of standard deviation 1/√in, drawn ones repeated."""
    if len(shape) == 1:
        values = np.ones(shape, np.float32)
    else:
        values = np.roll(drawn, seed * 7919) / np.float32(shape[1] ** 0.5)
    halves = ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    left = int(np.prod(shape))
    generator = np.random.default_rng(seed)
    while left:
        some = halves[: min(left, halves.size)]
        stream.write(np.roll(some, int(generator.integers(some.size))).data)
        left -= some.size


def settings_of(total: int) -> dict[str, Any]:
    """Return the config of a llama of about so many bytes, at least a small one."""
    width = 4096 if total > 2_000_000_000 else 512
    vocabulary = 32_000 if width == 4096 else 2_000
    one, none = (
        sum(2 * int(np.prod(shape)) for shape in tensors(config(n, width, vocabulary)).values())
        for n in (1, 0)
    )
    return config(max(2, round((total - none) / (one - none))), width, vocabulary)


def measure(folder: Path, name: str, memory: str) -> dict[str, Any]:
    """Compress the checkpoint by a recipe; tell seconds, peaks of memory, and the report's word."""
    card = {
        "name": "llama",
        "source": f"path:{folder / 'checkpoint'}",
        "task": "fidelity",
        "measures": [],
        "data": {
            "random": {"input_ids": {"shape": [16], "dtype": "int64", "high": 1000}},
            "calibration_samples": 2,
            "evaluation_samples": 2,
            "batch_size": 2,
        },
    }
    (folder / "card.yaml").write_text(json.dumps(card))
    (folder / "recipe.yaml").write_text(json.dumps({"stages": RECIPES[name]}))
    out, start = folder / "out", time.perf_counter()
    command = ["run", folder / "card.yaml", folder / "recipe.yaml", "--out", out]
    process = subprocess.Popen(
        [sys.executable, "-m", "zoopress", *map(str, command), "--memory", memory, "--quiet"],
        env={**os.environ, "ZOOPRESS_STORE": str(folder / "store")},
    )
    peak = own = 0
    while process.poll() is None:
        peak = max(peak, status_bytes(process.pid, "VmHWM"))
        own = max(own, status_bytes(process.pid, "RssAnon"))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{name}: zoopress run failed")
    report = json.loads((out / "report.json").read_text())
    shutil.rmtree(folder / "store")
    return {
        "seconds": time.perf_counter() - start,
        "peak_bytes": peak,
        "own_bytes": own,
        "result_bytes": sum(f.stat().st_size for f in (out / "artifact").rglob("*") if f.is_file()),
        "cosine": report["stages"][-1]["fidelity"]["cosine"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--memory", default="4GB")
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="all by default")
    parser.add_argument("--folder", type=Path, help="where there is room for four of them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "checkpoint").mkdir()
        total = write_checkpoint(folder / "checkpoint", settings_of(int(arguments.gigabytes * 1e9)))
        runs = {
            recipe: measure(folder, recipe, arguments.memory)
            for recipe in arguments.recipe or RECIPES
        }
    figures: dict[str, Any] = {
        "command": f"python {' '.join(['benchmarks/large.py', *sys.argv[1:]])}",
        "machine": {**describe_machine(), "threads": len(os.sched_getaffinity(0))},
        "bytes": total,
        "memory": arguments.memory,
        "runs": runs,
    }
    rows = [
        (
            recipe,
            f"{run['peak_bytes'] / 1e9:.2f}",
            f"{run['own_bytes'] / 1e9:.2f}",
            f"{run['result_bytes'] / 1e9:.2f}",
            f"{run['seconds'] / 60:.0f}",
            f"{run['cosine']:.4f}",
        )
        for recipe, run in runs.items()
    ]
    header = ["recipe", "peak, GB", "of it not mapped, GB", "result, GB", "minutes", "cosine"]
    lines = [
        f"A llama of {total / 1e9:.2f} GB in bfloat16, random weights, compressed with "
        f"`--memory {arguments.memory}`. The peak is of resident memory, mapped files included.",
        "",
        *table(header, rows),
    ]
    write("large", "Large models", lines, figures)


if __name__ == "__main__":
    main()
