"""Ways to round SmolLM2-135M's linear layers to 4 bits, by perplexity on Python's docstrings.

Windows of 256 tokens, as in perplexity.py; calibration sees 32 others. All have a step for each 64
weights. CPU seconds are of the whole run: reading, measuring, rounding, checking and evaluating.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from data import fetch
from perplexity import figure, growth
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
    *("linear_int4", "linear_int4_hqq", "linear_int4_awq", "linear_int4_gptq"),
    *("linear_int4_symmetric", "linear_int4_symmetric_hqq", "linear_int4_symmetric_gptq"),
)


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
            started = time.process_time()
            result = compress(card, recipe, Path(folder) / name, store, plugins, reporter)
            spent = time.process_time() - started
            report, task = result.report, result.report.evaluation["task"]
            if not rows:
                original = figure(task, "perplexity", "original")
                size = f"{report.original_size_bytes / 1e6:.1f}"
                rows.append(("original", size, original, "1", ""))
            # A run that found its stages in the store tells nothing of what they cost.
            cost = f"{spent:.0f}" if result.computed else "stored"
            rows.append(
                (
                    name,
                    f"{report.last.size_bytes / 1e6:.1f}",
                    figure(task, "perplexity", "compressed"),
                    f"{growth(task, 'perplexity'):.3f}",
                    cost,
                )
            )
            figures[name] = {
                **report.metrics(),
                "task": task["metrics"],
                "cpu_seconds": spent if result.computed else None,
            }
    header = ("SmolLM2-135M", "MB, all files", "perplexity", "÷ the original's", "CPU s of the run")
    chosen = "" if options.recipes == list(RECIPES) else " --recipes " + " ".join(options.recipes)
    write(
        "quantization",
        "Ways to round SmolLM2-135M to 4 bits",
        table(header, rows),
        {
            "command": f"python benchmarks/quantization.py{chosen}",
            "machine": describe_machine(),
            "recipes": figures,
        },
    )


if __name__ == "__main__":
    main()
