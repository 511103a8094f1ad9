"""Train the literature's networks with rounded weights and inputs, and compare with float.

Each network is trained from scratch in float; its result is the start and the teacher of each
quantization-aware training, of as many epochs. First and last layers are rounded like the others.
Accuracy is of the official test parts, which training never sees; intervals are at 95 %, by
bootstrap.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from data import fetch
from results_files import table, write

from zoopress.cards import Card, load_card
from zoopress.evaluation.machine import describe_machine
from zoopress.pipeline.compress import Result, compress
from zoopress.plugins import Plugins, load_plugins
from zoopress.progress import terminal
from zoopress.recipes import Recipe, Stage
from zoopress.store import Store

HERE = Path(__file__).parent / "mnist"
NETWORKS = ("lenet-300-100", "lenet-5", "resnet-8")
KINDS: dict[str, dict[str, Any]] = {
    "4/4 bits": {
        "weights": "learned_step",
        "bits": 4,
        "inputs": "learned_step",
        "input_bits": 4,
    },
    "ternary": {"weights": "ternary"},
    "binary": {"weights": "scaled_sign"},
}
TRAINING = {"batch_size": 128, "learning_rate": 2e-3, "schedule": "one_cycle", "warm_up": 0.2}


def run(
    card: Card, technique: str, config: dict[str, Any], folder: Path, plugins: Plugins
) -> Result:
    """Run a recipe of one technique."""
    kind = plugins.technique(technique)
    stage = Stage(kind(kind.config_type.model_validate(config)))
    recipe = Recipe(technique, (stage,))
    return compress(card, recipe, folder, Store(None), plugins, terminal())


def accuracy(result: Result) -> tuple[float, str]:
    """Return the accuracy on the test part, and how it is shown."""
    figures: dict[str, Any] = result.report.evaluation["task"]["metrics"]["accuracy"]
    low, high = figures["compressed_interval"]
    return figures["compressed"], f"{figures['compressed']:.4f} ({low:.4f}–{high:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--epochs", type=float, default=20, help="of each training (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for data in ("mnist", "fashion-mnist"):
        if data == "mnist" or "resnet-8" in options.networks:
            fetch(data)
    plugins = load_plugins()
    training = {**TRAINING, "epochs": options.epochs, "evaluations": 2}
    rows, figures = [], dict[str, Any]()
    for name in options.networks:
        folder = HERE / "trained" / f"{name}-float"
        first = load_card(str(HERE / f"{name}-initial.yaml"), plugins)
        trained = run(first, "fine_tuning", training, folder, plugins)
        base, shown = accuracy(trained)
        rows.append((name, "float", shown, "", ""))
        card = load_card(str(HERE / f"{name}.yaml"), plugins)
        source = f"path:{(folder / 'artifact' / 'compressed.safetensors').resolve()}"
        card = card.model_copy(update={"source": source})
        for kind in options.kinds:
            config = {**KINDS[kind], "training": {**training, "alpha": 0.5, "temperature": 4}}
            place = HERE / "trained" / f"{name}-{kind.replace(' ', '-').replace('/', '-')}"
            small = run(card, "quantization_aware_training", config, place, plugins)
            reached, shown = accuracy(small)
            bits = small.report.last.notes["bits_per_weight"]
            points = f"{100 * (reached - base):+.2f}"
            rows.append((name, kind, shown, points, f"{bits:.2f}"))
            figures[f"{name} {kind}"] = {"accuracy": reached, "float": base, "bits": bits}
    header = ("network", "rounded", "accuracy", "points", "bits a weight")
    epochs = f"--epochs {options.epochs:g} --networks {' '.join(options.networks)}"
    write(
        "train_quantized",
        "Quantization-aware training on MNIST and Fashion-MNIST",
        table(header, rows),
        {
            "command": f"python benchmarks/train_quantized.py {epochs}",
            "machine": describe_machine(),
            "epochs": options.epochs,
            "trained": figures,
        },
    )


if __name__ == "__main__":
    main()
