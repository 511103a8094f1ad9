"""Measure how far off the estimates of `zoopress plan` are: time, memory and disk of real runs.

Every cell is planned, then run by `zoopress run` with an empty store, in a process of its own. Time
is CPU time on one thread, of estimates as well as of runs, so that it does not matter what else the
machine is doing; memory is the process' peak of resident memory; disk is all that the store holds
after the run, and the artifact.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from results_files import table, write

PARAMS = Path(__file__).parents[1] / "params.yaml"
NETWORKS = """
from torch import nn


def perceptron(width):
    hidden = (layer for _ in range(2) for layer in (nn.Linear(width, width), nn.ReLU()))
    return nn.Sequential(nn.Linear(32, width), nn.ReLU(), *hidden, nn.Linear(width, 10))


def convolutions(width):
    blocks = (
        layer
        for _ in range(2)
        for layer in (nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    )
    ends = nn.Conv2d(3, width, 3, padding=1), (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(ends[0], *blocks, *ends[1], nn.Linear(width, 10))


class Encoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(6000, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, ids):
        return self.head(self.blocks(self.embedding(ids)).mean(1))
"""
INPUTS = {
    "perceptron": "{shape: [32]}",
    "convolutions": "{shape: [3, 16, 16]}",
    "Encoder": "{shape: [24], dtype: int64, high: 6000}",
}
WIDTHS = {
    "perceptron": (192, 768, 1536, 3072),
    "convolutions": (48, 192, 448),
    "Encoder": (96, 320, 640),
}
RECIPES = {
    "quantized": ["{technique: weight_quantization, bits: 8}"],
    "pruned_coded": [
        "{technique: magnitude_pruning, sparsity: 0.6, scope: global}",
        "{technique: weight_quantization, bits: 4, group_size: 32}",
        "{technique: entropy_coding}",
    ],
    "narrow_half": [
        "{technique: neuron_pruning, sparsity: 0.25}",
        "{technique: float_precision}",
    ],
}
LOW_RANK = ["{technique: truncated_svd, parameters: 0.6}", "{technique: weight_quantization}"]
MOST_FOR_LOW_RANK = 1600
"""Width; decompositions of wider layers take minutes."""


@dataclass(frozen=True)
class Comparison:
    """An estimate beside what was measured: seconds and bytes."""

    cell: str
    model_bytes: int
    seconds_estimated: float
    seconds: float
    memory_estimated: int
    memory: int
    store_estimated: int
    store: int
    result_estimated: int
    result: int


def write_zoo(folder: Path) -> Iterator[tuple[Path, str]]:
    """Write networks, cards and recipes; yield what goes with what."""
    import torch
    from safetensors.torch import save_file

    (folder / "networks.py").write_text(NETWORKS)
    space: dict[str, type] = {}
    exec(NETWORKS, space)
    for name, stages in {**RECIPES, "low_rank": LOW_RANK}.items():
        text = "\n".join(f"  - {stage}" for stage in stages)
        (folder / f"{name}.yaml").write_text(f"stages:\n{text}\n")
    for kind, widths in WIDTHS.items():
        for width in widths:
            torch.manual_seed(0)
            name = f"{kind.lower()}-{width}"
            tensors = space[kind](width).state_dict()
            for tensor in tensors.values():
                if tensor.ndim > 1:  # torch makes an encoder's layers equal, which are stored once
                    tensor.normal_(std=tensor[0].numel() ** -0.5)
            save_file(tensors, folder / f"{name}.safetensors")
            card = folder / f"{name}.card.yaml"
            card.write_text(
                f"name: {name}\nsource: path:{name}.safetensors\nfactory: networks.py:{kind}\n"
                f"factory_arguments: {{width: {width}}}\n"
                f'data: {{random: {{"0": {INPUTS[kind]}}}, evaluation_samples: 128}}\n'
            )
            for recipe in (*RECIPES, *(["low_rank"] if width <= MOST_FOR_LOW_RANK else [])):
                yield card, str(folder / f"{recipe}.yaml")


def planned(cells: list[tuple[Path | str, str]], folder: Path) -> list[dict[str, object]]:
    """Plan cells in one process without torch, whose size a run's peak would inherit."""
    code = (
        "import json, sys; from pathlib import Path; from zoopress.cells.selection import "
        "select_cells; from zoopress.plugins import load_plugins; from zoopress.progress import "
        "terminal; from zoopress.store import Store\n"
        "from zoopress.estimates.zoo_planner import ZooPlanner\n"
        "plugins = load_plugins()\n"
        "for card, recipe in json.load(sys.stdin):\n"
        "    planner = ZooPlanner(Store(sys.argv[1]), plugins, terminal(), clock='cpu')\n"
        "    made = planner.plan(select_cells([card], [recipe], None, plugins))\n"
        "    print(json.dumps(made.as_dict()), flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "plan-store")],
        input=json.dumps([(str(card), recipe) for card, recipe in cells]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def run(card: str, recipe: str, folder: Path) -> tuple[float, int, int, int]:
    """Run a cell; returns CPU seconds, peak memory, bytes of store and of the artifact."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        program = str(Path(sys.executable).with_name("zoopress"))
        command = [program, "run", card, recipe, "--quiet", "--store", str(place / "store")]
        process = subprocess.Popen([*command, "--out", str(place / "out")])
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise SystemExit(f"{command} failed")
        sizes = [
            sum(file.stat().st_size for file in (place / part).rglob("*") if file.is_file())
            for part in ("store/entries", "out/artifact")
        ]
        return used.ru_utime + used.ru_stime, used.ru_maxrss << 10, sizes[0], sizes[1]


def compare(cell: tuple[Path | str, str], plan: dict[str, object], folder: Path) -> Comparison:
    if plan["notes"]:
        print(plan["notes"], file=sys.stderr)
    (expected,) = plan["cells"]  # type: ignore[misc]
    if expected["problem"] or expected["seconds"] is None:
        raise SystemExit(f"{cell} cannot be planned: {expected['problem'] or plan['notes']}")
    seconds, memory, store, result = run(str(cell[0]), cell[1], folder)
    weights = Path(str(cell[0]).replace(".card.yaml", ".safetensors"))
    found = Comparison(
        cell=f"{expected['card']} × {expected['recipe']}",
        model_bytes=weights.stat().st_size if weights.is_file() else 0,
        seconds_estimated=expected["seconds"],
        seconds=seconds,
        memory_estimated=expected["memory_bytes"],
        memory=memory,
        store_estimated=expected["store_bytes"],
        store=store,
        result_estimated=expected["result_bytes"],
        result=result,
    )
    print(
        f"{found.cell}: {found.seconds_estimated:.1f} for {seconds:.1f} s, "
        f"{found.memory_estimated / 1e6:.0f} for {memory / 1e6:.0f} MB, "
        f"store {found.store_estimated / 1e6:.1f} for {store / 1e6:.1f} MB, "
        f"result {found.result_estimated / 1e6:.2f} for {result / 1e6:.2f} MB",
        file=sys.stderr,
        flush=True,
    )
    return found


def errors(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Return the relative errors of estimates: estimated ÷ measured − 1."""
    relative = [estimated / measured - 1 for estimated, measured in pairs]
    sizes = sorted(map(abs, relative))
    return {
        "median": statistics.median(sizes),
        "worst_over": max(0.0, *relative),
        "worst_under": max(0.0, *(-value for value in relative)),
        "share_covered": sum(value >= 0 for value in relative) / len(relative),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="cells whose card's name has this in it")
    options = parser.parse_args()
    # Where threads wait for each other they burn CPU time.
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cells: list[tuple[Path | str, str]] = [
            *(("minilm", f"{PARAMS}#recipes.{recipe}") for recipe in ("hybrid", "small")),
            *write_zoo(folder),
        ]
        cells = [cell for cell in cells if options.only in str(cell[0])]
        plans = planned(cells, folder)
        found = [compare(cell, plan, folder) for cell, plan in zip(cells, plans, strict=True)]
    figures = {
        "time": errors([(row.seconds_estimated, row.seconds) for row in found]),
        "memory": errors([(row.memory_estimated, row.memory) for row in found]),
        "store": errors([(row.store_estimated, row.store) for row in found]),
        "result": errors([(row.result_estimated, row.result) for row in found]),
    }
    lines = [
        *table(
            ("", "median error", "most above", "most below", "at or above what was measured"),
            [
                (
                    what,
                    *(f"{row[key]:.0%}" for key in ("median", "worst_over", "worst_under")),
                    f"{row['share_covered']:.0%} of {len(found)}",
                )
                for what, row in figures.items()
            ],
        ),
        "",
        *table(
            ("cell", "CPU seconds", "memory, MB", "store, MB", "result, MB"),
            [
                (
                    row.cell,
                    f"{row.seconds_estimated:.1f} / {row.seconds:.1f}",
                    f"{row.memory_estimated / 1e6:.0f} / {row.memory / 1e6:.0f}",
                    f"{row.store_estimated / 1e6:.1f} / {row.store / 1e6:.1f}",
                    f"{row.result_estimated / 1e6:.2f} / {row.result / 1e6:.2f}",
                )
                for row in found
            ],
        ),
        "",
        "Each pair is estimate / measured. Every cell ran with an empty store in a process of its "
        "own, on one thread; an error is |estimate ÷ measured − 1|. Time is an estimate, which "
        "may fall on either side; memory is a claim and disk a bound, which should not fall short.",
    ]
    from zoopress.evaluation.machine import describe_machine

    machine = {**describe_machine(), "threads": 1}
    write(
        "estimates",
        "Estimates",
        lines,
        {
            "command": "python benchmarks/estimates.py",
            "machine": machine,
            "errors": figures,
            "cells": [asdict(row) for row in found],
        },
    )


if __name__ == "__main__":
    main()
