"""Half of MiniLM's layers: cut out, and distilled from the whole without labels.

The same three of six layers are kept in both; what is distilled learns on sentences from the
docstrings of Python's standard library, never on those that it is compared on. What 8 bits and
entropy coding make of the distilled one stands beside it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from results_files import table, write

from zoopress.cards import load_card
from zoopress.evaluation.machine import describe_machine
from zoopress.pipeline.compress import compress
from zoopress.plugins import load_plugins
from zoopress.progress import terminal
from zoopress.recipes import load_recipe
from zoopress.store import Store

RECIPES = {
    "three layers, cut out": "three_layers_cut",
    "three layers, distilled": "three_layers_distilled",
    "distilled, 8 bits, entropy coded": "three_layers_int8",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="where stage results are kept")
    parser.add_argument("--threads", type=int, default=1, help="of torch (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    plugins, store, reporter = load_plugins(), Store(options.store), terminal()
    card = load_card("minilm", plugins)
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for title, name in RECIPES.items():
            recipe = load_recipe(f"{Path(__file__).with_name('recipes.yaml')}#{name}", plugins)
            report = compress(card, recipe, Path(folder) / name, store, plugins, reporter).report
            found: dict[str, Any] = report.metrics()
            rows.append(
                (
                    title,
                    f"{found['size_bytes'] / 1e6:.1f}",
                    f"{found['compression_ratio']:.2f}×",
                    f"{found['cosine']:.4f}",
                    f"{found['label_loyalty']:.3f}",
                    f"{found['probability_loyalty']:.3f}",
                    f"{found['speed_up_batch_1']:.2f}×",
                    f"{found['speed_up_batch_32']:.2f}×",
                )
            )
            figures[title] = {**found, "seconds": [stage.seconds for stage in report.stages]}
    header = (
        *("MiniLM", "MB", "ratio", "cosine", "label loyalty", "probability loyalty"),
        *("speed-up, batch 1", "batch 32"),
    )
    write(
        "distillation",
        "Half of MiniLM's layers",
        table(header, rows),
        {
            "command": "python benchmarks/distillation.py",
            "machine": describe_machine(),
            "variants": figures,
        },
    )


if __name__ == "__main__":
    main()
