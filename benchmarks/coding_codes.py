"""The same integers through every coder: bytes, CPU seconds, how they scale, memory.

Weights are rounded to a step of so many of their tensor's standard deviations (of what is not
zero), so that all coders get the same symbols. What files of ours take includes names, shapes and
checksums; NNCodec's figures are of its streams alone.
"""

from __future__ import annotations

import lzma
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coding_subjects import Subject
from nncodec_client import Coded, Nncodec
from numpy.typing import NDArray

from zoopress.coding.coder import Coder
from zoopress.coding.layout import Integers, StoredTensor
from zoopress.coding.zpz import ZpzReader, write_zpz

STEPS = (0.2, 0.5, 1.5)
"""In standard deviations."""
OURS: tuple[Coder, ...] = ("auto", "static", "adaptive", "huffman")
Codes = dict[str, NDArray[Any]]


def make_codes(subject: Subject, step: float) -> Codes:
    """Return each weight with two axes and more as integers [rows, columns]."""
    found: Codes = {}
    for name, weight in subject.tensors().items():
        if weight.ndim < 2:
            continue
        matrix = weight.reshape(len(weight), -1)
        codes = np.rint(matrix / (step * matrix[matrix != 0].std()))
        assert np.abs(codes).max() < 2**15
        found[name] = codes.astype(np.int8 if np.abs(codes).max() < 2**7 else np.int16)
    return found


def entropy_bits(symbols: NDArray[Any]) -> float:
    """Return symbols × zeroth-order entropy, without the cost of a table."""
    counts = np.unique(symbols, return_counts=True)[1].astype(np.float64)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def stored(codes: Codes) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(torch.from_numpy(plane), Integers()) for name, plane in codes.items()
    }


def run_zpz(codes: Codes, coder: Coder, threads: int = 1, clock: Any = time.process_time) -> Coded:
    """Return what a file of ours takes, written and read; checks that it reads as written."""
    with tempfile.TemporaryDirectory() as folder:
        path, tensors = Path(folder) / "codes.zpz", stored(codes)
        start = clock()
        write_zpz(path, tensors, coder=coder, threads=threads)
        encoded = clock()
        with ZpzReader(path, threads) as reader:
            found = {name: reader.read(name) for name in codes}
        seconds = clock() - encoded
        assert all(torch.equal(found[name], tensors[name].tensor) for name in codes)
        return Coded(path.stat().st_size, encoded - start, seconds, 0)


def run_nncodec(codes: Codes, client: Nncodec, search: bool) -> Coded:
    return total([client.code_plane(plane, search=search) for plane in codes.values()])


def run_library(codes: Codes, module: Any) -> Coded:
    coded = []
    for plane in codes.values():
        octets = plane.tobytes()
        start = time.process_time()
        stream = module.compress(octets)
        encoded = time.process_time()
        assert module.decompress(stream) == octets
        seconds = time.process_time() - encoded
        coded.append(Coded(len(stream), encoded - start, seconds, 0))
    return total(coded)


def total(parts: list[Coded]) -> Coded:
    return Coded(
        sum(part.size_bytes for part in parts),
        sum(part.encode_seconds for part in parts),
        sum(part.decode_seconds for part in parts),
        max(part.peak_bytes for part in parts),
    )


def coders_of(codes: Codes, client: Nncodec | None) -> dict[str, Callable[[], Coded]]:
    """Return every coder by name, ready to code these integers and decode them again."""
    coders: dict[str, Callable[[], Coded]] = {
        f"zpz {name}": partial(run_zpz, codes, name) for name in OURS
    }
    if client is not None:
        coders["nncodec"] = partial(run_nncodec, codes, client, search=False)
        coders["nncodec search"] = partial(run_nncodec, codes, client, search=True)
    return {
        **coders,
        "zlib": partial(run_library, codes, zlib),
        "lzma": partial(run_library, codes, lzma),
    }


def measure_codes(subject: Subject, client: Nncodec | None, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each step: weights, entropy, and what each coder took.

    Coders take turns, in another order in each round; the fewest seconds of the rounds count.
    """
    rows = []
    warm_up()
    for step in STEPS:
        codes = make_codes(subject, step)
        coders = coders_of(codes, client)
        found: dict[str, list[Coded]] = {name: [] for name in coders}
        for i in range(rounds):
            for name in list(coders)[:: 1 if i % 2 == 0 else -1]:
                found[name].append(coders[name]())
        weights = sum(plane.size for plane in codes.values())
        rows.append(
            {
                "model": subject.name,
                "step": step,
                "weights": weights,
                "entropy": sum(map(entropy_bits, codes.values())) / weights,
                "zeros": sum(int((plane == 0).sum()) for plane in codes.values()) / weights,
                "coders": {name: per_weight(many, weights) for name, many in found.items()},
            }
        )
    return rows


def warm_up() -> None:
    """Let every kernel be compiled or loaded, which is not what a weight costs."""
    values = np.random.default_rng(0).laplace(0, 3, (64, 64)).round()
    for name in OURS:
        run_zpz({"int8": values.astype(np.int8), "int16": values.astype(np.int16)}, name)


def per_weight(many: list[Coded], weights: int) -> dict[str, float]:
    return {
        "bits": 8 * many[0].size_bytes / weights,
        "encode_ns": 1e9 * min(coded.encode_seconds for coded in many) / weights,
        "decode_ns": 1e9 * min(coded.decode_seconds for coded in many) / weights,
    }


def measure_scaling(subject: Subject, rounds: int) -> dict[str, Any]:
    """Return wall seconds by number of threads, the fewest of some rounds in turns."""
    warm_up()
    codes = make_codes(subject, STEPS[1])
    found: dict[int, list[Coded]] = {1: [], 2: []}
    for _ in range(rounds):
        for threads, runs in found.items():
            runs.append(run_zpz(codes, "auto", threads, time.perf_counter))
    return {
        "model": subject.name,
        "weights": sum(plane.size for plane in codes.values()),
        **{
            f"{way}_seconds": {
                str(threads): min(getattr(run, f"{way}_seconds") for run in runs)
                for threads, runs in found.items()
            }
            for way in ("encode", "decode")
        },
    }


def measure_memory(subject: Subject, client: Nncodec | None) -> dict[str, Any]:
    """Return the largest resident memory of processes that do nothing, encode, and decode.

    NNCodec encodes and decodes a tensor at a time, in one process.
    """
    codes = make_codes(subject, STEPS[1])
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "codes.npz", **codes)  # type: ignore[arg-type]
        peaks = {what: _peak(what, Path(folder)) for what in ("nothing", "encode", "decode")}
    if client is not None:
        with Nncodec(client.python) as fresh:
            peaks["nncodec"] = run_nncodec(codes, fresh, search=False).peak_bytes
    held = sum(plane.nbytes for plane in codes.values())
    return {"model": subject.name, "codes_bytes": held, "peak_bytes": peaks}


def _peak(what: str, folder: Path) -> int:
    worker = Path(__file__).with_name("coding_memory.py")
    command = [sys.executable, str(worker), what, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)
