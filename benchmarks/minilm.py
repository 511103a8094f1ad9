"""Run recipes on the card minilm through the main path, and compare what comes out.

Bytes and fidelity are exact; stages that are in the store are not computed again. Latencies are
measured anew, of the model as `zoopress.load` returns it: original and compressed model take turns
in one process, the speed-up is the ratio of their medians. That is done in several rounds over all
recipes, since the machine may be busy with other work in one of them; the median round is reported,
with the smallest and the largest. One thread is the default because on a busy machine threads spend
most of their time waiting for each other.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from results_files import table, write

from zoopress.artifacts.artifact import load_artifact
from zoopress.cards import load_card
from zoopress.evaluation.latency import measure_latency
from zoopress.evaluation.machine import describe_machine
from zoopress.models.packing import unpack
from zoopress.pipeline.compress import compress
from zoopress.plugins import load_plugins
from zoopress.progress import terminal
from zoopress.recipes import load_recipe
from zoopress.results import Report
from zoopress.sources import detect_architecture, pull
from zoopress.store import Store

ROOT = Path(__file__).parent.parent
RECIPES = {
    "int8": "benchmarks/recipes.yaml#int8",
    "int8_coded": "benchmarks/recipes.yaml#int8_coded",
    "hybrid": "params.yaml#recipes.hybrid",
    "small": "params.yaml#recipes.small",
    "smallest": "smallest",
    "smallest_tuned": "benchmarks/recipes.yaml#smallest_tuned",
    "near_lossless": "benchmarks/recipes.yaml#near_lossless",
    "near_lossless_tuned": "benchmarks/recipes.yaml#near_lossless_tuned",
    "neurons_int8": "benchmarks/recipes.yaml#neurons_int8",
    "low_rank_int8": "benchmarks/recipes.yaml#low_rank_int8",
}


BATCH_SIZES = (1, 32)


def measure_speed_ups(
    card_name: str, artifacts: dict[str, Path], rounds: int
) -> dict[str, dict[int, list[float]]]:
    """Return the speed-up of each artifact by batch size, one for each round."""
    plugins = load_plugins()
    card = load_card(card_name, plugins)
    files = pull(card, plugins)
    architecture = detect_architecture(card, files, plugins)
    task = plugins.resolve("tasks", card.task)(card, files.folder)
    original = architecture.load(files).eval()
    found: dict[str, dict[int, list[float]]] = {
        name: {size: [] for size in BATCH_SIZES} for name in artifacts
    }
    for _ in range(rounds):
        for name, folder in artifacts.items():
            module = load_artifact(folder, plugins)[0].module
            unpack(module, "auto")
            for row in measure_latency(task, original, module, BATCH_SIZES, seconds=2.0):
                found[name][int(row["batch_size"])].append(row["speed_up"])
    return found


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f}× ({min(values):.2f}–{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--card", default="minilm", help="a card's name or file (%(default)s)")
    parser.add_argument("--store", type=Path, help="where stage results are kept")
    parser.add_argument("--rounds", type=int, default=3, help="of latency (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    plugins, store, reporter = load_plugins(), Store(options.store), terminal()
    card = load_card(options.card, plugins)
    reports: dict[str, Report] = {}
    with tempfile.TemporaryDirectory() as folder:
        artifacts = {}
        for name in options.recipes:
            reference = RECIPES[name]
            file = str(ROOT / reference) if "#" in reference else reference
            recipe = load_recipe(file, plugins)
            result = compress(card, recipe, Path(folder) / name, store, plugins, reporter)
            reports[name], artifacts[name] = result.report, result.artifact
        speed_ups = measure_speed_ups(options.card, artifacts, options.rounds)

    rows, figures = [], []
    for name, report in reports.items():
        metrics: dict[str, Any] = {
            key: value for key, value in report.metrics().items() if "speed_up" not in key
        }
        figures.append({"recipe": name, **metrics, "speed_up": speed_ups[name]})
        rows.append(
            (
                f"`{name}`",
                f"{metrics['size_bytes']:,}",
                f"{metrics['compression_ratio']:.2f}×",
                f"{metrics['bits_per_weight']:.2f}",
                f"{metrics['cosine']:.4f}",
                *(
                    f"{metrics[key]:.3f}" if key in metrics else "–"
                    for key in ("label_loyalty", "probability_loyalty")
                ),
                *(spread(speed_ups[name][size]) for size in BATCH_SIZES),
            )
        )
    header = (
        "recipe",
        "bytes, all files",
        "ratio",
        "bits per weight",
        "cosine",
        "label loyalty",
        "probability loyalty",
        *(f"speed-up, batch {size}" for size in BATCH_SIZES),
    )
    samples = card.data.evaluation_samples if card.data else 0
    lines = [
        f"Card `{card.name}`, {samples} evaluation sentences. Original: "
        f"{report.original_size_bytes:,} bytes, {report.original_parameters:,} parameters. "
        "Recipes: `params.yaml` and `benchmarks/recipes.yaml`. Bytes and fidelity are exact. "
        "Speed-up: median latency of the original, eager float32, ÷ that of the compressed model, "
        f"in turns; the median of {options.rounds} rounds, smallest and largest in brackets.",
        "",
        *table(header, rows),
    ]
    write(
        "minilm",
        "Recipes on all-MiniLM-L6-v2",
        lines,
        {
            "command": "python benchmarks/minilm.py",
            "machine": describe_machine(),
            "card": card.name,
            "evaluation_samples": samples,
            "original_size_bytes": report.original_size_bytes,
            "original_parameters": report.original_parameters,
            "recipes": figures,
        },
    )


if __name__ == "__main__":
    main()
