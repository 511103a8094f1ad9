"""Whether a technique makes the same in a process of its own, where sets have another order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from zoopress.cards import Card
from zoopress.plugins import Plugins, load_plugins
from zoopress.techniques import Technique
from zoopress.testing.rules import ConformanceError as ConformanceError, require
from zoopress.testing.tiny import artifact_bytes, learns_from_labels, run_chain, tiny_card, workable


def check_hash_seed(technique: Technique[Any], plugins: Plugins | None = None) -> None:
    """Check that what a technique makes does not follow from the order of a set of names.

    That order changes from process to process: another one, of another hash seed, must make the
    same files of the same model.

    Args:
        technique: of an installed plugin.
        plugins: what is registered; everything installed by default.

    Raises:
        ConformanceError: if the files differ.
    """
    plugins = plugins or load_plugins()
    labelled = learns_from_labels(technique)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        card = tiny_card(workable(technique, folder, plugins), folder / "card", labelled=labelled)
        made = artifact_bytes(run_chain([technique], card, folder / "here", plugins).artifact)
        order = {
            "card": card.as_dict(),
            "technique": technique.name,
            "folder": str(folder / "there"),
        }
        order["config"] = technique.config.model_dump(mode="json")
        here = os.environ.get("PYTHONHASHSEED", "")
        done = subprocess.run(
            [sys.executable, "-m", "zoopress.testing.elsewhere", json.dumps(order)],
            env={
                **os.environ,
                "PYTHONHASHSEED": "2" if here == "1" else "1",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        require(done.returncode == 0, f"in a process of its own it fails: {done.stderr[-2000:]}")
        there = artifact_bytes(Path(done.stdout.splitlines()[-1]))
    names = (made.keys() | there.keys()) - {"README.md"}  # it tells of times
    different = sorted(n for n in names if made.get(n) != there.get(n))
    require(
        not different,
        f"in another process, with another PYTHONHASHSEED, it makes other files: {different}. "
        "Iterate over lists, dicts or sorted(...), never over a set of names",
    )


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
