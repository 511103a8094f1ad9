"""`dvc repro` over the matrix, with real DVC in a repository of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from small_zoo import write_zoo
from zoopress.plugins import load_plugins
from zoopress.recipe import load_recipe

ROOT = Path(__file__).parent.parent
PARAMS = """
matrix:
  cards: [perceptron]
  recipes: [pruned, coded]
recipes:
  pruned:
    stages:
      - {technique: magnitude_pruning, sparsity: 0.5}
  coded:
    stages:
      - {technique: weight_quantization, bits: 4}
      - {technique: entropy_coding}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own dvc.yaml over a small card."""
    folder = tmp_path_factory.mktemp("repository")
    zoo = folder / "zoo" / "zoopress_zoo" / "cards"
    write_zoo(zoo)
    (zoo / "card.yaml").rename(zoo / "perceptron.yaml")
    pipeline = (ROOT / "dvc.yaml").read_text()
    # The project's cards are found by name; these are not installed.
    pipeline = pipeline.replace("zoopress run ${item.card}", "zoopress run ${item.card_file}")
    pipeline = pipeline.replace("${item.card_file}", "zoo/zoopress_zoo/cards/${item.card}.yaml")
    (folder / "dvc.yaml").write_text(pipeline)
    (folder / "params.yaml").write_text(PARAMS)
    command(folder, "git", "init", "-q")
    command(folder, "dvc", "init", "-q")
    return folder


def command(folder: Path, *words: str) -> str:
    tools = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "ZOOPRESS_STORE": str(folder / "store"),
        "DVC_NO_ANALYTICS": "1",
    }
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_repro_computes_once_shows_metrics_and_follows_one_parameter(repository: Path) -> None:
    first = command(repository, "dvc", "repro")
    assert first.count("Running stage") == 2
    again = command(repository, "dvc", "repro")
    assert "Running stage" not in again
    assert "up to date" in again

    shown = json.loads(command(repository, "dvc", "metrics", "show", "--json"))
    metrics = shown[""]["data"]["models/perceptron/coded/metrics.json"]["data"]
    assert metrics["compression_ratio"] > 4

    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(text.replace("bits: 4", "bits: 3"))
    changed = command(repository, "dvc", "repro")
    assert "Running stage 'compress@perceptron-coded'" in changed
    assert "Running stage 'compress@perceptron-pruned'" not in changed


def test_a_cell_computed_by_a_run_is_not_computed_again_by_repro(repository: Path) -> None:
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(text.replace("sparsity: 0.5", "sparsity: 0.6"))
    card = "zoo/zoopress_zoo/cards/perceptron.yaml"
    command(
        *(repository, "zoopress", "run", card, "params.yaml#recipes.pruned", "--out", "elsewhere")
    )
    printed = command(repository, "dvc", "repro")
    assert "Running stage 'compress@perceptron-pruned'" in printed
    assert "nothing to compute" in printed


def test_the_matrix_and_the_shipped_recipe_are_one_and_the_same_cell() -> None:
    plugins = load_plugins()
    shipped = load_recipe("hybrid", plugins).as_dict()
    ours = load_recipe(f"{ROOT / 'params.yaml'}#recipes.hybrid", plugins).as_dict()
    for key in ("seed", "stages", "targets"):
        assert ours[key] == shipped[key]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(params["matrix"]["recipes"]) <= set(params["recipes"])
    assert set(params["matrix"]["cards"]) <= set(plugins.cards)
