"""Measure what a zoo run costs besides the techniques: for 1, 10, 100 and 1,000 cells.

The model has about 13,000 parameters, each recipe two stages of its own. Two ways:

In one process, with the jobs that workers do, overhead is the CPU time of all of it, less that of
the techniques' own `apply` and of the latency measurement, which takes as long as it is told to.

As a command, with worker processes, CPU and wall seconds are those of `zoopress zoo run` and all
its children; what one cell costs is the difference to a run of a single cell. Warm means once more,
with nothing left to compute. The same for up to 100 cells under Prefect's temporary server, on
threads and on a Dask cluster of two processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import yaml
from results_files import table, write

FACTORY = """
from torch import nn


def build():
    return nn.Sequential(
        nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10)
    )
"""
CARD = """
name: perceptron
source: path:weights.safetensors
factory: networks.py:build
data:
  random: {"0": {shape: [32]}}
  calibration_samples: 16
  evaluation_samples: 64
"""
STAGES = 2
ENGINES = {
    "inline": ["--engine", "inline"],
    "Prefect": ["--engine", "prefect"],
    "Prefect, Dask": ["--runner", "dask", "--workers", "2"],
}


def make_zoo(folder: Path, cells: int) -> None:
    """Write one card, and as many recipes as there are to be cells."""
    import torch
    from safetensors.torch import save_file
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    )
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "weights.safetensors")
    (folder / "networks.py").write_text(FACTORY)
    (folder / "card.yaml").write_text(CARD)
    recipes = {}
    for i in range(cells):
        pruning = {"technique": "magnitude_pruning", "sparsity": 0.3 + 0.5 * i / cells}
        recipes[f"r{i:04}"] = {"stages": [pruning, {"technique": "weight_quantization"}]}
    (folder / "params.yaml").write_text(yaml.safe_dump({"recipes": recipes}))


def in_process(folder: Path, cells: int) -> dict[str, float]:
    """Run a zoo in this process, cold and warm; returns CPU milliseconds."""
    import zoopress.pipeline.workbench as stages_module
    from zoopress.cells.selection import select_cells
    from zoopress.estimates.budget import MemoryBudget
    from zoopress.evaluation.latency import measure_latency
    from zoopress.observers.watch import Observers
    from zoopress.orchestration.executors import run_here
    from zoopress.orchestration.jobs import Job
    from zoopress.orchestration.zoo_run import ZooOptions, ZooRun, write_leaderboard
    from zoopress.plugins import load_plugins
    from zoopress_plugins.pruning.magnitude_pruning import MagnitudePruning
    from zoopress_plugins.quantization.weight_quantization import WeightQuantization

    spent = {"apply": 0.0, "latency": 0.0}

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return work(*args, **options)
            finally:
                spent[name] += time.process_time() - start

        return run

    budget = MemoryBudget(None, folder / "budget")

    def submit(job: Job) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        try:
            future.set_result(run_here(job, budget, lambda event: None))
        except Exception as error:
            future.set_exception(error)
        return future

    def run() -> float:
        start = time.process_time()
        recipes = f"{folder / 'params.yaml'}#recipes"
        selection = select_cells([str(folder / "card.yaml")], [recipes], None, load_plugins())
        observers = Observers(load_plugins(), print)
        options = ZooOptions(folder / "out", str(folder / "store"))
        board = ZooRun(selection, options, submit, lambda event: None, observers).run()
        write_leaderboard(board, folder / "out")
        assert all(cell.state == "done" for cell in board.cells)
        return time.process_time() - start

    patched = [(MagnitudePruning, "apply"), (WeightQuantization, "apply")]
    originals = [(owner, name, getattr(owner, name)) for owner, name in patched]
    for owner, name, original in originals:
        setattr(owner, name, timed("apply", original))
    stages_module.measure_latency = timed("latency", measure_latency)
    try:
        cold = run()
        own = cold - spent["apply"] - spent["latency"]
        warm = run()
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
        stages_module.measure_latency = measure_latency
    return {
        "cells": cells,
        "overhead_ms_per_cell": 1e3 * own / cells,
        "overhead_ms_per_stage": 1e3 * own / cells / STAGES,
        "techniques_ms_per_cell": 1e3 * spent["apply"] / cells,
        "latency_ms_per_cell": 1e3 * spent["latency"] / cells,
        "warm_ms_per_cell": 1e3 * warm / cells,
    }


def as_command(folder: Path, cells: int, engine: str) -> dict[str, Any]:
    """Run `zoopress zoo run` cold and warm; returns CPU and wall seconds."""
    make_zoo(folder, cells)
    command = [
        *(str(Path(sys.executable).with_name("zoopress")), "zoo", "run", "--quiet"),
        *("--cards", str(folder / "card.yaml"), "--recipes", f"{folder / 'params.yaml'}#recipes"),
        *("--store", str(folder / "store"), "--out", str(folder / "out"), *ENGINES[engine]),
    ]
    variables = {**os.environ, "PREFECT_HOME": str(folder.parent / "prefect")}
    variables.pop("PREFECT_API_URL", None)
    row: dict[str, Any] = {"cells": cells, "engine": engine}
    for state in ("cold", "warm"):
        before, start = os.times(), time.perf_counter()
        subprocess.run(command, check=True, env=variables)
        after = os.times()
        row[f"{state}_wall_seconds"] = time.perf_counter() - start
        row[f"{state}_cpu_seconds"] = (after.children_user + after.children_system) - (
            before.children_user + before.children_system
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument(
        "--most-with-prefect", type=int, default=100, help="cells at most (%(default)s)"
    )
    options = parser.parse_args()
    import torch

    from zoopress.evaluation.machine import describe_machine

    torch.set_num_threads(1)
    inside, commands = [], []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_zoo(work / "first", 3)
        in_process(work / "first", 3)  # imports and first uses are not to be counted
        for cells in options.cells:
            make_zoo(work / f"inside-{cells}", cells)
            inside.append(in_process(work / f"inside-{cells}", cells))
            print(json.dumps(inside[-1]), flush=True)
        for engine in ENGINES:
            for cells in options.cells:
                if engine == "inline" or cells <= options.most_with_prefect:
                    commands.append(as_command(work / f"{engine[-4:]}-{cells}", cells, engine))
                    print(json.dumps(commands[-1]), flush=True)

    def per_cell(row: dict[str, Any], state: str) -> str:
        first = next(one for one in commands if one["engine"] == row["engine"])
        if row is first:
            return ""
        more = row[f"{state}_cpu_seconds"] - first[f"{state}_cpu_seconds"]
        return f"{1e3 * more / (row['cells'] - first['cells']):.0f}"

    lines = [
        "## Overhead, in one process",
        "",
        *table(
            (
                "cells",
                "overhead a stage, CPU ms",
                "overhead a cell, CPU ms",
                "techniques a cell, CPU ms",
                "measuring latency a cell, CPU ms",
                "unchanged cell, CPU ms",
            ),
            [
                (
                    f"{row['cells']:,}",
                    f"{row['overhead_ms_per_stage']:.0f}",
                    f"{row['overhead_ms_per_cell']:.0f}",
                    f"{row['techniques_ms_per_cell']:.0f}",
                    f"{row['latency_ms_per_cell']:.0f}",
                    f"{row['warm_ms_per_cell']:.0f}",
                )
                for row in inside
            ],
        ),
        "",
        "A stage's share is half of a cell's. A run of one cell also finds the card, and the "
        "leaderboard's charts.",
        "",
        "## The command",
        "",
        *table(
            (
                "engine",
                "cells",
                "cold, CPU s",
                "cold, wall s",
                "each further cell, CPU ms",
                "warm, CPU s",
                "warm, wall s",
                "each further cell, CPU ms",
            ),
            [
                (
                    row["engine"],
                    f"{row['cells']:,}",
                    f"{row['cold_cpu_seconds']:.1f}",
                    f"{row['cold_wall_seconds']:.1f}",
                    per_cell(row, "cold"),
                    f"{row['warm_cpu_seconds']:.1f}",
                    f"{row['warm_wall_seconds']:.1f}",
                    per_cell(row, "warm"),
                )
                for row in commands
            ],
        ),
        "",
        "A further cell's cost has the techniques and the latency measurement in it.",
    ]
    write(
        "orchestration",
        "Orchestration",
        lines,
        {
            "command": " ".join(["python", "benchmarks/orchestration.py", *sys.argv[1:]]),
            "machine": describe_machine(),
            "in_process": inside,
            "commands": commands,
        },
    )


if __name__ == "__main__":
    main()
