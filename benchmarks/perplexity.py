"""Perplexity of SmolLM2-135M on Python's docstrings, as it comes, quantized and coded.

Windows of 256 tokens, packed from whole docstrings; perplexity is exp of the mean loss a token,
with its 95 % interval by bootstrap over windows. The published model is a Q4_1 GGUF, so the
original here is what that holds, as floats.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from data import fetch
from results_files import table, write

from zoopress.cards import load_card
from zoopress.evaluation.machine import describe_machine
from zoopress.pipeline.compress import compress
from zoopress.plugins import load_plugins
from zoopress.progress import terminal
from zoopress.recipes import load_recipe
from zoopress.store import Store

HERE = Path(__file__).parent
RECIPES = (
    *("linear_int8", "linear_int4"),
    *("linear_coded_4_5", "linear_coded_4", "linear_coded_3", "coded_4"),
)


def figure(task: dict[str, Any], name: str, which: str) -> str:
    low, high = task["metrics"][name][f"{which}_interval"]
    return f"{task['metrics'][name][which]:.3f} ({low:.3f}–{high:.3f})"


def growth(task: dict[str, Any], name: str) -> float:
    found: dict[str, float] = task["metrics"][name]
    return found["compressed"] / found["original"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--store", help="where stage results are kept")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fetch("smollm2")

    plugins, store, reporter = load_plugins(), Store(options.store), terminal()
    card = load_card(str(HERE / "smollm2.yaml"), plugins)
    rows: list[tuple[str, ...]] = []
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.recipes:
            recipe = load_recipe(f"{HERE / 'recipes.yaml'}#{name}", plugins)
            report = compress(card, recipe, Path(folder) / name, store, plugins, reporter).report
            task = report.evaluation["task"]
            if not rows:
                before = f"{report.original_size_bytes / 1e6:.1f}"
                original = figure(task, "perplexity", "original")
                rows.append(("original", before, "32", original, "1", "1", "1"))
            fidelity = report.last.fidelity
            rows.append(
                (
                    name,
                    f"{report.last.size_bytes / 1e6:.1f}",
                    f"{report.metrics()['bits_per_weight']:.2f}",
                    figure(task, "perplexity", "compressed"),
                    f"{growth(task, 'perplexity'):.3f}",
                    f"{fidelity.label_loyalty:.3f}",
                    f"{fidelity.probability_loyalty:.3f}",
                )
            )
            figures[name] = {**report.metrics(), "task": task["metrics"]}
    header = (
        *("SmolLM2-135M", "MB, all files", "bits per weight", "perplexity", "÷ the original's"),
        *("next-token loyalty", "probability loyalty"),
    )
    write(
        "perplexity",
        "Perplexity of SmolLM2-135M",
        table(header, rows),
        {
            "command": "python benchmarks/perplexity.py",
            "machine": describe_machine(),
            "recipes": figures,
        },
    )


if __name__ == "__main__":
    main()
