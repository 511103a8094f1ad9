"""Run one technique on one card in a process of its own; see `check_hash_seed`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from zoopress.cards import Card
from zoopress.plugins import load_plugins
from zoopress.testing.tiny import run_chain


def main() -> None:
    """Print the folder of the artifact that the order in the first argument makes."""
    order = json.loads(sys.argv[1])
    plugins = load_plugins()
    technique = plugins.technique(order["technique"])
    made = technique(technique.config_type.model_validate(order["config"]))
    card = Card.model_validate(order["card"])
    print(run_chain([made], card, Path(order["folder"]), plugins).artifact)


if __name__ == "__main__":
    main()
