"""Recipes of the literature that ship: each trains a real model of 4 bits, which stays good."""

from __future__ import annotations

from pathlib import Path

import pytest

from digits_reader import digits_card, reader
from zoopress.artifacts.artifact import load_artifact
from zoopress.models.input_grid import input_grids
from zoopress.models.packing import packed_weights
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins
from zoopress.recipes import load_recipe
from zoopress.store import Store

pytestmark = [pytest.mark.more, pytest.mark.usefixtures("brief_evaluation")]
RECIPES = {
    "quantized_distillation": None,
    "qkd": 4,
    "speq": 4,
    "pqk": None,
    "soft_weight_sharing": None,
}


@pytest.mark.parametrize("name", list(RECIPES))
def test_it_trains_4_bits_that_hold(name: str, tmp_path: Path, plugins: Plugins) -> None:
    card = digits_card(tmp_path)
    recipe = load_recipe(name, plugins)
    made = compress(card, recipe, tmp_path / "out", Store(tmp_path / "store"), plugins)
    last = made.report.last
    assert last.metric_drop is not None
    assert last.metric_drop < 0.06
    module = load_artifact(made.artifact, plugins, reader)[0].module
    packed = packed_weights(module)
    assert packed
    assert {weight.bits for weight in packed.values()} == {4}  # type: ignore[attr-defined]
    bits = {grid.bits for grid in input_grids(module).values()}
    assert bits == (set() if RECIPES[name] is None else {RECIPES[name]})
    if name == "pqk":
        assert last.pruned / last.parameters > 0.4
