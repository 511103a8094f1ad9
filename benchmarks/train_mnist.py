"""Train the literature's networks on MNIST and Fashion-MNIST by recipes, and compress them.

Each network is trained from scratch by `benchmarks/mnist/recipes.yaml#train_NAME`, and the result
put through `#compress_NAME`. Accuracy is of the official test parts, which training never
sees, and settings were chosen on parts of the training split; intervals are at 95 %, by bootstrap.
The literature's figures are of Deep Compression (arXiv:1510.00149, table 1) for the LeNets, as
compressed there; the small ResNet has none of its own: the usual ones of Fashion-MNIST are from the
dataset's page, 0.916 for two convolutions to 0.949 for a ResNet-18, not compressed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from data import fetch
from results_files import RESULTS, table, write

from zoopress.cards import load_card
from zoopress.evaluation.machine import describe_machine
from zoopress.pipeline.compress import compress
from zoopress.plugins import load_plugins
from zoopress.progress import terminal
from zoopress.recipes import load_recipe
from zoopress.results import Report
from zoopress.store import Store

HERE = Path(__file__).parent / "mnist"
LITERATURE = {
    "lenet-300-100": "0.9842 at 40×",
    "lenet-5": "0.9926 at 39×",
    "resnet-8": "0.916–0.949",
}


def accuracy(report: Report, which: str) -> str:
    """Return the accuracy of one of a report's models with its interval."""
    figures: dict[str, Any] = report.evaluation["task"]["metrics"]["accuracy"]
    low, high = figures[f"{which}_interval"]
    return f"{figures[which]:.4f} ({low:.4f}–{high:.4f})"


def known() -> dict[str, Any]:
    """Return what earlier runs found: one network at a time is enough, each takes its while."""
    path = RESULTS / "train_mnist.json"
    found: dict[str, Any] = json.loads(path.read_text())["networks"] if path.is_file() else {}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=LITERATURE, default=list(LITERATURE))
    parser.add_argument("--store", help="where stage results are kept")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for data in ("mnist", "fashion-mnist"):
        fetch(data)

    plugins, store, reporter = load_plugins(), Store(options.store), terminal()
    figures = known()
    for name in options.networks:
        trained = compress(
            load_card(str(HERE / f"{name}-initial.yaml"), plugins),
            load_recipe(f"{HERE / 'recipes.yaml'}#train_{name.replace('-', '_')}", plugins),
            HERE / "trained" / name,
            store,
            plugins,
            reporter,
        )
        small = compress(
            load_card(str(HERE / f"{name}.yaml"), plugins),
            load_recipe(f"{HERE / 'recipes.yaml'}#compress_{name.replace('-', '_')}", plugins),
            HERE / "trained" / f"{name}-small",
            store,
            plugins,
            reporter,
        )
        report = small.report
        figures[name] = {
            "row": (
                name,
                LITERATURE[name],
                accuracy(trained.report, "compressed"),
                f"{trained.report.last.seconds:.0f} s",
                accuracy(report, "compressed"),
                f"{report.original_weight_bytes:,}",
                f"{report.last.weight_bytes:,}",
                f"{report.original_weight_bytes / report.last.weight_bytes:.1f}×",
                f"{report.compression_ratio:.1f}×",
            ),
            "training": trained.report.metrics(),
            "training_seconds": trained.report.last.seconds,
            "compressed": report.metrics(),
            "weight_bytes": report.last.weight_bytes,
            "original_weight_bytes": report.original_weight_bytes,
        }
    header = (
        "network",
        "literature",
        "trained",
        "in",
        "compressed",
        "tensor bytes",
        "compressed",
        "ratio",
        "all files",
    )
    write(
        "train_mnist",
        "Training and compressing on MNIST and Fashion-MNIST",
        table(header, [figures[name]["row"] for name in LITERATURE if name in figures]),
        {
            "command": "python benchmarks/train_mnist.py",
            "machine": describe_machine(),
            "networks": figures,
        },
    )


if __name__ == "__main__":
    main()
