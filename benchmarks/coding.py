"""Measure the entropy coder and the quantization made for it beside NNCodec, in one run.

    codes       the same integers through every coder: bits, CPU nanoseconds a weight
    fidelity    bytes at equal fidelity, without data and with calibration inputs
    scaling     seconds with one thread and with two
    memory      largest resident memory of encoding and decoding

NNCodec 2.1.3 is the reference software of ISO/IEC 15938-17. The first run builds it in an
environment of its own. Each part of each network can be run by itself; what other runs found is
kept, and results/coding.md shows all of it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from coding_codes import measure_codes, measure_memory, measure_scaling
from coding_fidelity import OURS, nncodec_points, our_points, rows
from coding_subjects import CARDS, Subject
from nncodec_client import VERSION, Nncodec
from results_files import RESULTS, table, write

from zoopress.evaluation.machine import describe_machine
from zoopress.plugins import load_plugins
from zoopress.progress import terminal
from zoopress.store import Store

PARTS = ("codes", "fidelity", "scaling", "memory")
MEMORY = {"nothing": "ours idle", "encode": "encode", "decode": "decode", "nncodec": "NNCodec"}
Figures = dict[str, dict[str, Any]]


def known() -> Figures:
    """Return what earlier runs found, by part and network."""
    path = RESULTS / "coding.json"
    found = json.loads(path.read_text()).get("figures", {}) if path.is_file() else {}
    return {part: found.get(part, {}) for part in PARTS}


def measure(
    part: str, subject: Subject, client: Nncodec | None, rounds: int, coders: Iterable[str]
) -> Any:
    if part == "codes":
        return measure_codes(subject, client, rounds)
    if part == "scaling":
        return measure_scaling(subject, rounds)
    if part == "memory":
        return measure_memory(subject, client)
    theirs = nncodec_points(subject, client) if client else []
    return rows(subject, [*theirs, *our_points(subject, list(coders))])


def codes_tables(found: Mapping[str, Any]) -> list[str]:
    many = [row for name in CARDS for row in found.get(name, ())]
    if not many:
        return []
    coders = list(many[0]["coders"])
    figures = {
        "bits": ("bits per weight", 3),
        "encode_ns": ("CPU ns per weight to encode", 0),
        "decode_ns": ("CPU ns per weight to decode", 1),
    }
    lines = ["## The same integers", ""]
    for key, (title, digits) in figures.items():
        header = (title, *(("entropy",) if key == "bits" else ()), *coders)
        body = []
        for row in many:
            entropy = (f"{row['entropy']:.3f}",) if key == "bits" else ()
            values = [row["coders"].get(coder) for coder in coders]
            cells = (f"{value[key]:.{digits}f}" if value else "–" for value in values)
            body.append((f"{row['model']}, {row['step']} σ", *entropy, *cells))
        lines += [*table(header, body), ""]
    return [
        *lines,
        "Every weight with two axes or more, rounded to a step of so many standard deviations of "
        "its tensor. zpz: the whole file, with names, shapes and checksums, one thread. nncodec: "
        "its streams alone; `search` tries adaptation rates for each context, which is its "
        "default. Entropy: zeroth order, a distribution a tensor, without the cost of a table. "
        "zlib at level 6 and lzma at preset 6, the standard library's defaults. The fewest CPU "
        "seconds of all rounds, in which coders take turns.",
        "",
    ]


def fidelity_tables(found: Mapping[str, Any]) -> list[str]:
    many = [row for name in CARDS for row in found.get(name, ())]
    if not many:
        return []
    body = []
    for row in many:
        fidelity, metrics = row["fidelity"], row["metrics"]
        metric = next((name for name in ("accuracy", "perplexity") if name in metrics), None)
        shares = row["bytes_by_nncodec"].values()
        body.append(
            (
                row["model"],
                f"{row['coder']}, {row['setting']}",
                f"{row['size_bytes']:,}",
                f"{row['bits_per_weight']:.3f}",
                f"{fidelity['cosine']:.4f}",
                f"{fidelity['label_loyalty']:.3f}",
                f"{fidelity['probability_loyalty']:.3f}",
                f"{metrics[metric]:.4f} {metric}" if metric else "–",
                *("–" if share is None else f"{share:.3f}" for share in shares),
            )
        )
    header = (
        *("network", "coded with", "bytes", "bits per weight", "cosine", "label loyalty"),
        *("probability loyalty", "task", "÷ NNCodec's at equal cosine"),
        "÷ NNCodec's at equal probability loyalty",
    )
    return [
        "## Bytes at equal fidelity",
        "",
        *table(header, body),
        "",
        "Fidelity is to the network before it was coded, on the card's evaluation data, which no "
        "coder has seen. Bytes are all that a decoder of the tensors needs: NNCodec's bitstream; "
        "ours `model.zpz` and `zoopress.json`. NNCodec's bytes at our fidelity are interpolated "
        "between its points, by logarithms, for its defaults and tuned (`lambda_scale=1`, "
        "`nonweight_qp=-40`), and the fewer are compared.",
        "",
    ]


def scaling_table(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    body = [
        (
            f"{row['model']}, {way}",
            *(f"{row[f'{way}_seconds'][threads]:.2f} s" for threads in ("1", "2")),
            f"{row[f'{way}_seconds']['1'] / row[f'{way}_seconds']['2']:.2f}×",
        )
        for row in found.values()
        for way in ("encode", "decode")
    ]
    header = ("wall seconds, 0.5 σ", "one thread", "two threads", "speed-up")
    return ["## Threads", "", *table(header, body), ""]


def memory_table(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    body = [
        (
            row["model"],
            f"{row['codes_bytes'] / 1e6:.1f}",
            *(f"{row['peak_bytes'].get(what, 0) / 1e6:.0f}" for what in MEMORY),
        )
        for row in found.values()
    ]
    header = ("resident MB at most", "codes", *MEMORY.values())
    return [
        *("## Memory", ""),
        *table(header, body),
        "",
        "Of processes of their own, libraries included: ours torch, numba and numpy, NNCodec's "
        "numpy. Ours encodes with all codes in memory and decodes tensor by tensor; NNCodec does "
        "both tensor by tensor. Checkpoints that are encoded from disk: "
        "[streaming](streaming.md).",
        "",
    ]


def publish(figures: Figures) -> None:
    """Write all that is known: a run of many networks takes long, and may be stopped."""
    lines = [
        f"NNCodec {VERSION}, reference software of ISO/IEC 15938-17. The networks: "
        "`benchmarks/coding_subjects.py`.",
        "",
        *codes_tables(figures["codes"]),
        *fidelity_tables(figures["fidelity"]),
        *scaling_table(figures["scaling"]),
        *memory_table(figures["memory"]),
    ]
    machine = describe_machine()
    found = {"command": "python benchmarks/coding.py", "machine": machine, "figures": figures}
    write("coding", "Universal coding", lines, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--networks", nargs="+", choices=CARDS, default=list(CARDS))
    parser.add_argument("--ours", nargs="+", choices=OURS, default=list(OURS), metavar="VARIANT")
    parser.add_argument("--rounds", type=int, default=3, help="of timing (%(default)s)")
    parser.add_argument("--store", type=Path, help="where stage results are kept")
    parser.add_argument("--nncodec-python", type=Path, help="of an environment that has NNCodec")
    parser.add_argument("--no-nncodec", action="store_true", help="measure ours alone")
    options = parser.parse_args()
    torch.set_num_threads(1)

    plugins, store, reporter = load_plugins(), Store(options.store), terminal()
    figures = known()
    with nullcontext() if options.no_nncodec else Nncodec(options.nncodec_python) as client:
        for name in options.networks:
            subject = Subject(name, plugins, store, reporter)
            for part in options.parts:
                figures[part][name] = measure(part, subject, client, options.rounds, options.ours)
                publish(figures)


if __name__ == "__main__":
    main()
