"""Measure the memory of compressing a model that is larger than it should be.

A checkpoint of a llama of 8 GB, bfloat16, in shards, is written block by block: bell-shaped
weights. Then `zoopress run --memory` compresses it in a process of its own, and the kernel tells
that process's peak of resident memory, mapped files included, and how much of it was its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from zoopress.artifacts.checkpoints.safetensors_file import build_header

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
