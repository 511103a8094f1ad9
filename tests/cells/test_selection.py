"""What the cards and recipes of a zoo run may be given as."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_zoo import CHAIN, write_zoo
from zoopress.cells.selection import select_cells
from zoopress.errors import InputError
from zoopress.plugins import Plugins
from zoopress.units import parse_bytes

PARAMS = """
matrix: {cards: [perceptron, minilm], recipes: [pruned, coded]}
recipes:
  pruned:
    stages: [{technique: magnitude_pruning, sparsity: 0.5}]
  coded:
    stages: [{technique: entropy_coding}]
"""


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with cards and params.yaml, from elsewhere."""
    write_zoo(tmp_path / "zoo" / "cards")
    (tmp_path / "zoo" / "cards" / "card.yaml").rename(tmp_path / "zoo/cards/perceptron.yaml")
    (tmp_path / "zoo" / "cards" / "recipe.yaml").rename(tmp_path / "zoo/chain.yaml")
    (tmp_path / "zoo" / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "zoo"


def names(cards: list[str], recipes: list[str], matrix: str | None, plugins: Plugins) -> list[str]:
    cells = select_cells(cards, recipes, matrix, plugins).cells()
    return [f"{card.name} {recipe.name}" for card, recipe in cells]


def test_a_matrix_names_cards_beside_it_and_cards_of_plugins(zoo: Path, plugins: Plugins) -> None:
    every = ["perceptron pruned", "perceptron coded", "minilm pruned", "minilm coded"]
    assert names([], [], "zoo/params.yaml", plugins) == every
    assert names(["minilm"], [], "zoo/params.yaml", plugins) == every[2:]
    assert names([], ["zoo/params.yaml#recipes.coded"], "zoo/params.yaml", plugins) == every[1::2]


@pytest.mark.parametrize("cards", ["zoo/cards", "zoo/cards/*.yaml", "zoo/cards/perceptron.yaml"])
@pytest.mark.parametrize(
    ("recipes", "expected"),
    [
        ("zoo/params.yaml#recipes", ["pruned", "coded"]),
        ("zoo/chain.yaml", ["chain"]),
        ("zoo/ch*.yaml", ["chain"]),
        ("hybrid", ["hybrid"]),
    ],
)
def test_patterns_folders_and_sections(
    zoo: Path, plugins: Plugins, cards: str, recipes: str, expected: list[str]
) -> None:
    assert names([cards], [recipes], None, plugins) == [f"perceptron {name}" for name in expected]


def test_references_are_found_from_any_folder(
    zoo: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(zoo)
    selection = select_cells(["perceptron"], ["params.yaml#recipes", "chain.yaml"], None, plugins)
    references = [one.reference for one in (*selection.cards, *selection.recipes)]
    assert all(Path(reference).is_absolute() for reference in references)


def test_what_is_malformed_is_kept_with_its_problem(zoo: Path, plugins: Plugins) -> None:
    (zoo / "typo.yaml").write_text(CHAIN.replace("sparsity", "sparsty"))
    selection = select_cells(
        ["zoo/cards", "no-such-card"], ["zoo/typo.yaml", "hybrid"], None, plugins
    )
    problems = [one.problem for one in (*selection.cards, *selection.recipes)]
    assert problems[0] is None
    assert problems[3] is None
    assert "no card 'no-such-card'" in str(problems[1])
    assert "typo.yaml:3" in str(problems[2])
    assert [one.name for one in selection.recipes] == ["typo", "hybrid"]


@pytest.mark.parametrize(
    ("cards", "recipes", "matrix", "message"),
    [
        ([], ["hybrid"], None, "No cards to run"),
        (["minilm"], [], None, "No recipes to run"),
        (["zoo/none*.yaml"], ["hybrid"], None, "matches nothing"),
        (["minilm"], ["zoo/params.yaml#recipes.codde"], None, "Did you mean 'coded'"),
        ([], [], "zoo/chain.yaml", "matrix"),
        (["minilm"], ["hybrid", "zoo/hybrid.yaml"], None, "Two recipes are called 'hybrid'"),
    ],
)
def test_mistakes_are_told(
    zoo: Path,
    plugins: Plugins,
    cards: list[str],
    recipes: list[str],
    matrix: str | None,
    message: str,
) -> None:
    (zoo / "hybrid.yaml").write_text(CHAIN)
    with pytest.raises(InputError, match=message):
        select_cells(cards, recipes, matrix, plugins)


@pytest.mark.parametrize(
    ("text", "size"),
    [("20GB", 20 * 10**9), ("1.5 GiB", 3 * 2**29), ("300M", 3 * 10**8), ("7", 7), ("2KiB", 2048)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1.5.5", "12 parsecs", "5i", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no size"):
        parse_bytes(text)
