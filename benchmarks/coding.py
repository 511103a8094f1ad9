"""Compare the entropy coder with zeroth-order entropy, zlib and lzma on MiniLM's own tensors.

All coders get the same symbols: a code a byte, eight mask bits a byte, floats as their bytes. The
entropy is that of each tensor by itself, which no coder with one table a tensor can go below; of
floats it is the sum of those of their four bytes, below which zpz can go, since it moves the sign
out of the exponent's byte. Seconds are CPU seconds of one process; the
order of the coders alternates from tensor to tensor.
"""

from __future__ import annotations

import argparse
import lzma
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results_files import table, write
from torch import Tensor

from zoopress.card import load_card
from zoopress.coding.bits import pack_codes
from zoopress.coding.zpz import StoredTensor, ZpzReader, write_zpz
from zoopress.evaluation.machine import describe_machine
from zoopress.plugins import load_plugins
from zoopress.source import detect_architecture, pull
from zoopress.weights import find_weights
from zoopress_plugins.pruning.magnitude import smallest_pruned
from zoopress_plugins.quantization.weight_only import quantize

CODERS = ("zpz", "zlib", "lzma")


class Case:
    """A tensor as symbols for the coders, and as what write_zpz takes.

    Args:
        stored: for zpz.
        octets: the symbols for zlib and lzma, a byte each.
        entropy_bits: of all symbols.
        weights: how many weights these are.
    """

    def __init__(self, stored: StoredTensor, octets: bytes, entropy_bits: float, weights: int):
        self.stored = stored
        self.octets = octets
        self.entropy_bits = entropy_bits
        self.weights = weights


def entropy_bits(symbols: np.ndarray, alphabet: int = 256) -> float:
    """Return symbols × zeroth-order entropy."""
    counts = np.bincount(symbols.reshape(-1), minlength=alphabet).astype(np.float64)
    present = counts[counts > 0]
    return float(-(present * np.log2(present / present.sum())).sum())


def codes_case(weight: Tensor, bits: int, group_size: int | None) -> Case:
    codes, _, _ = quantize(weight, bits, group_size, symmetric=True, clipping=True)
    symbols = codes.numpy()
    stored = StoredTensor(pack_codes(codes, bits), bits, codes.shape[1])
    return Case(stored, symbols.tobytes(), entropy_bits(symbols), codes.numel())


def mask_case(weight: Tensor, sparsity: float) -> Case:
    mask = smallest_pruned([weight.abs()], sparsity)[0].reshape(1, -1).to(torch.uint8)
    packed = pack_codes(mask, 1)[0]
    bits = entropy_bits(mask.numpy(), 2)
    return Case(StoredTensor(packed, 1, mask.numel()), packed.numpy().tobytes(), bits, mask.numel())


def float_case(weight: Tensor) -> Case:
    octets = weight.contiguous().numpy().tobytes()
    planes = np.frombuffer(octets, np.uint8).reshape(-1, 4)
    bits = sum(entropy_bits(planes[:, i]) for i in range(4))
    return Case(StoredTensor(weight), octets, bits, weight.numel())


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def run_zpz(case: Case, folder: Path) -> tuple[int, float, float]:
    """Return bytes and CPU seconds to encode and decode, file reading and writing included."""
    path = folder / "tensor.zpz"
    _, encode = timed(lambda: write_zpz(path, {"t": case.stored}))

    def read() -> Tensor:
        with ZpzReader(path) as reader:
            return reader.read("t")

    tensor, decode = timed(read)
    assert torch.equal(tensor, case.stored.tensor)
    return path.stat().st_size, encode, decode


def run_library(module: Any, octets: bytes) -> tuple[int, float, float]:
    coded, encode = timed(lambda: module.compress(octets))
    decoded, decode = timed(lambda: module.decompress(coded))
    assert decoded == octets
    return len(coded), encode, decode


def measure(cases: list[Case]) -> dict[str, Any]:
    totals = {coder: [0.0, 0.0, 0.0] for coder in CODERS}
    with tempfile.TemporaryDirectory() as folder:
        for i, case in enumerate(cases):
            for coder in CODERS[i % 3 :] + CODERS[: i % 3]:
                if coder == "zpz":
                    result = run_zpz(case, Path(folder))
                else:
                    result = run_library({"zlib": zlib, "lzma": lzma}[coder], case.octets)
                totals[coder] = [a + b for a, b in zip(totals[coder], result, strict=True)]
    weights = sum(case.weights for case in cases)
    return {
        "weights": weights,
        "tensors": len(cases),
        "entropy_bits_per_weight": sum(case.entropy_bits for case in cases) / weights,
        **{
            coder: {
                "bits_per_weight": 8 * size / weights,
                "encode_seconds": encode,
                "decode_seconds": decode,
                "encode_million_weights_per_second": weights / encode / 1e6,
                "decode_million_weights_per_second": weights / decode / 1e6,
            }
            for coder, (size, encode, decode) in totals.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--card", default="minilm", help="a card's name or file (%(default)s)")
    parser.add_argument(
        "--layers", type=int, default=12, help="how many linear layers to take (%(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)

    plugins = load_plugins()
    card = load_card(options.card, plugins)
    files = pull(card, plugins)
    module = detect_architecture(card, files, plugins).load(files)
    weights = [w.matrix().float() for w in find_weights(module, ("linear",))][: options.layers]
    makers: dict[str, Callable[[Tensor], Case]] = {
        "int8 codes, a scale a row": lambda w: codes_case(w, 8, None),
        "int4 codes, a scale for 64 weights": lambda w: codes_case(w, 4, 64),
        "mask, 50 % pruned": lambda w: mask_case(w, 0.5),
        "mask, 90 % pruned": lambda w: mask_case(w, 0.9),
        "float32": float_case,
    }
    run_zpz(codes_case(weights[0], 8, None), Path(tempfile.mkdtemp()))  # fills the coder's tables
    figures = {what: measure([make(w) for w in weights]) for what, make in makers.items()}

    bits = table(
        ("bits per weight", "entropy", *CODERS, "zpz ÷ entropy"),
        [
            (
                what,
                f"{row['entropy_bits_per_weight']:.3f}",
                *(f"{row[coder]['bits_per_weight']:.3f}" for coder in CODERS),
                f"{row['zpz']['bits_per_weight'] / row['entropy_bits_per_weight']:.3f}",
            )
            for what, row in figures.items()
        ],
    )
    speed = table(
        (
            "million weights per CPU second",
            *(f"{coder} {way}" for coder in CODERS for way in ("encode", "decode")),
        ),
        [
            (
                what,
                *(
                    f"{row[coder][f'{way}_million_weights_per_second']:.1f}"
                    for coder in CODERS
                    for way in ("encode", "decode")
                ),
            )
            for what, row in figures.items()
        ],
    )
    count = sum(w.numel() for w in weights)
    lines = [
        f"The first {len(weights)} linear layers of card `{card.name}`: {count:,} weights, each "
        "tensor coded by itself. Entropy: zeroth order, a distribution a tensor, without the cost "
        "of a table; of floats the sum over their four bytes, below which zpz can go, since it "
        "moves the sign out of the exponent's byte. zlib at level 6 and lzma at preset 6, the "
        "standard library's defaults.",
        "",
        *bits,
        "",
        *speed,
    ]
    command = "python benchmarks/coding.py"
    machine = describe_machine()
    write(
        "coding",
        "Entropy coding",
        lines,
        {"command": command, "machine": machine, "card": card.name, "tensors": figures},
    )


if __name__ == "__main__":
    main()
