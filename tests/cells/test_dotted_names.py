"""Names of recipes that have dots, as versions have."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoopress.cells.selection import select_cells
from zoopress.errors import RecipeError, RepositoryError
from zoopress.plugins import Plugins
from zoopress.recipes import load_recipe
from zoopress.repository import Repository

PARAMS = """
matrix: {cards: [card.yaml], recipes: [v1.0, v1.0.2]}
recipes:
  v1.0: {stages: [{technique: weight_quantization, bits: 8}]}
  v1.0.2: {stages: [{technique: weight_quantization, bits: 4}]}
  group: {inner: {stages: [{technique: weight_quantization, bits: 3}]}}
"""


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS)
    return path


@pytest.mark.parametrize(
    ("section", "name", "bits"),
    [
        ("recipes.v1.0", "v1.0", 8),
        ("recipes.v1.0.2", "v1.0.2", 4),
        ("recipes.group.inner", "inner", 3),
    ],
)
def test_a_recipe_is_found_by_its_whole_name(
    params: Path, plugins: Plugins, section: str, name: str, bits: int
) -> None:
    recipe = load_recipe(f"{params}#{section}", plugins)
    assert (recipe.name, recipe.stages[0].technique.config.bits) == (name, bits)


def test_a_matrix_may_name_them(params: Path, plugins: Plugins) -> None:
    selection = select_cells([], [], str(params), plugins)
    assert [recipe.name for recipe in selection.recipes] == ["v1.0", "v1.0.2"]
    assert all(recipe.problem is None for recipe in selection.recipes)


def test_one_that_is_not_there_is_told_by_its_whole_name(params: Path, plugins: Plugins) -> None:
    with pytest.raises(RecipeError, match=r"no 'v1\.1' here.*Did you mean 'v1\.0'"):
        load_recipe(f"{params}#recipes.v1.1", plugins)


def test_dvc_cannot_have_them_and_the_refusal_says_what_can_be_done(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("matrix: {cards: [net], recipes: [v1.0]}\n")
    pipeline = (
        "stages:\n  compress:\n    matrix: {card: '${matrix.cards}', recipe: '${matrix.recipes}'}\n"
        "    cmd: zoopress run ${item.card} ${item.recipe}\n    params: [PARAMS]\n"
    )
    (tmp_path / "dvc.yaml").write_text(pipeline.replace("PARAMS", "'recipes.${item.recipe}'"))
    with pytest.raises(RepositoryError, match=r"'v1\.0'.*Call it 'v1-0', or .*params: \[recipes\]"):
        _ = Repository(tmp_path, tmp_path / ".git").cells
    (tmp_path / "dvc.yaml").write_text(pipeline.replace("PARAMS", "recipes"))
    assert ("net", "v1.0") in Repository(tmp_path, tmp_path / ".git").cells
