"""Measure what zoopress itself costs: starting, refusing a typo, finding nothing to do, stages.

CPU seconds of the process, children included, since wall time depends on what else the machine is
doing; each is the smallest of several runs. The overhead of a stage is the CPU time of a run on a
model of about 20,000 parameters, less that of the techniques' own `apply`, divided by the stages:
loading, evaluating, saving, reloading, hashing and the gates, on one thread. It grows with the
model and its data.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results_files import table, write

TYPO = "stages:\n  - technique: magnitude_pruning\n    sparsty: 0.5\n"
CARD = """\
name: tiny
source: path:cnn.safetensors
factory: zoopress.testing.models:cnn
data:
  random: {"0": {shape: [3, 16, 16]}}
  calibration_samples: 16
  evaluation_samples: 64
"""


def cpu_seconds(command: list[str], status: int = 0, repeat: int = 5) -> tuple[float, float]:
    """Return the smallest CPU and wall seconds of a command."""
    best = (float("inf"), float("inf"))
    for _ in range(repeat):
        before, start = os.times(), time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wall, after = time.perf_counter() - start, os.times()
        if done.returncode != status:
            raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr}")
        cpu = after.children_user + after.children_system
        cpu -= before.children_user + before.children_system
        best = (min(best[0], cpu), min(best[1], wall))
    return best


def recipe_text(stages: int) -> str:
    """Return a recipe that prunes a little more with each stage; every one makes the file smaller.

    The first prunes 30 %, since a mask must be paid for before it saves bytes.
    """
    lines = ["stages:"]
    for i in range(stages):
        sparsity = 0.3 + 0.6 * i / stages
        lines += ["  - technique: magnitude_pruning", f"    sparsity: {sparsity:.4f}"]
    return "\n".join(lines) + "\n"


def stage_overhead(folder: Path, stages: int) -> dict[str, float]:
    """Run a chain in this process; returns CPU milliseconds a stage besides the technique's own."""
    import zoopress.pipeline.workbench as stages_module
    from zoopress.cards import load_card
    from zoopress.evaluation.latency import measure_latency
    from zoopress.pipeline.compress import compress
    from zoopress.plugins import load_plugins
    from zoopress.recipes import load_recipe
    from zoopress.store import Store
    from zoopress_plugins.pruning.magnitude_pruning import MagnitudePruning

    spent = {"apply": 0.0, "latency": 0.0}

    def timed(name: str, work: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return work(*args, **options)
            finally:
                spent[name] += time.process_time() - start

        return run

    plugins = load_plugins()
    (folder / "chain.yaml").write_text(recipe_text(stages))
    card = load_card(str(folder / "card.yaml"), plugins)
    recipe = load_recipe(str(folder / "chain.yaml"), plugins)
    originals = MagnitudePruning.apply, measure_latency
    MagnitudePruning.apply = timed("apply", MagnitudePruning.apply)  # type: ignore[method-assign]
    stages_module.measure_latency = timed("latency", measure_latency)
    try:
        with tempfile.TemporaryDirectory() as store:
            start = time.process_time()
            compress(card, recipe, folder / "out", Store(Path(store)), plugins)
            total = time.process_time() - start
    finally:
        MagnitudePruning.apply, stages_module.measure_latency = originals  # type: ignore[method-assign]
    own = total - spent["apply"] - spent["latency"]
    return {"stages": stages, "overhead_ms_per_stage": 1e3 * own / stages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="runs of each command (%(default)s)")
    options = parser.parse_args()
    program = [str(Path(sys.executable).with_name("zoopress"))]

    rows, figures = [], {}

    def command(what: str, words: list[str], status: int = 0) -> None:
        cpu, wall = cpu_seconds(words, status, options.repeat)
        figures[what] = {"cpu_seconds": cpu, "wall_seconds": wall}
        rows.append((what, f"{cpu:.2f}", f"{wall:.2f}"))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        import torch
        from safetensors.torch import save_file

        from zoopress.evaluation.machine import describe_machine
        from zoopress.testing.models import cnn

        # On a busy machine torch's threads burn CPU time while they wait for each other.
        torch.set_num_threads(1)
        save_file(cnn().state_dict(), folder / "cnn.safetensors")
        (folder / "card.yaml").write_text(CARD)
        (folder / "typo.yaml").write_text(TYPO)
        (folder / "recipe.yaml").write_text(recipe_text(4))
        card, store = str(folder / "card.yaml"), ["--store", str(folder / "store")]
        run = [*program, "run", card, str(folder / "recipe.yaml"), "-o", str(folder / "out")]

        command("`python -c pass`", [sys.executable, "-c", "pass"])
        command("`import zoopress`", [sys.executable, "-c", "import zoopress"])
        command("`zoopress --help`", [*program, "--help"])
        command("a typo in a recipe", [*program, "run", card, str(folder / "typo.yaml")], status=1)
        subprocess.run([*run, *store, "--quiet"], check=True)
        command("an unchanged job", [*run, *store, "--quiet"])
        command("`import torch`", [sys.executable, "-c", "import torch"])

        chains = [stage_overhead(folder, count) for count in (2, 2, 8, 16)][1:]
    lines = [
        *table(("command", "CPU seconds", "wall seconds"), rows),
        "",
        *table(
            ("stages in a chain", "overhead a stage, CPU ms"),
            [(str(row["stages"]), f"{row['overhead_ms_per_stage']:.0f}") for row in chains],
        ),
        "",
        "The smallest of several runs. An unchanged job finds its report in the store, checks the "
        "files of its last stage against their SHA-256, and publishes them again; it does not "
        "import torch. The overhead of a stage, on a model of about 20,000 parameters and 64 "
        "samples, is all of a run but the techniques themselves and the latency measurement at "
        "the end.",
    ]
    write(
        "overhead",
        "Overhead",
        lines,
        {
            "command": "python benchmarks/overhead.py",
            "machine": describe_machine(),
            "commands": figures,
            "chains": chains,
        },
    )


if __name__ == "__main__":
    main()
