"""Reports that tests look at."""

from pathlib import Path

import pytest

from zoopress.cards import Card
from zoopress.pipeline.compress import Result, compress
from zoopress.plugins import Plugins
from zoopress.recipes import load_recipe

RECIPE = """
stages:
  - {technique: magnitude_pruning, sparsity: 0.5}
  - {technique: entropy_coding}
"""


@pytest.fixture
def finished(tiny_card: Card, tmp_path: Path, plugins: Plugins) -> Result:
    """A cell that was really run."""
    (tmp_path / "pruned.yaml").write_text(RECIPE)
    recipe = load_recipe(str(tmp_path / "pruned.yaml"), plugins)
    return compress(tiny_card, recipe, tmp_path / "out" / "tiny" / "pruned", plugins=plugins)
