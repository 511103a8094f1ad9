"""Cards: what is read, and how mistakes are named."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, strategies as st

from zoopress.cards import Card, load_card
from zoopress.errors import CardError
from zoopress.plugins import Plugins

GOOD: dict[str, Any] = {
    "name": "tiny",
    "source": "path:tiny.safetensors",
    "factory": "tiny_factory.py:build",
    "task": "fidelity",
    "data": {"random": {"input": {"shape": [8]}}, "batch_size": 4},
}


def write(folder: Path, data: Any) -> str:
    path = folder / "card.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))
    return str(path)


def test_a_card_remembers_the_folder_that_its_paths_start_from(
    tmp_path: Path, plugins: Plugins
) -> None:
    card = load_card(write(tmp_path, GOOD), plugins)
    assert card.root == tmp_path
    assert (card.scheme, card.location) == ("path", "tiny.safetensors")


def test_every_card_that_a_plugin_brings_loads_by_its_name(plugins: Plugins) -> None:
    assert plugins.cards
    for name in plugins.cards:
        assert isinstance(load_card(name, plugins), Card)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sorce": "path:x"}, r"card\.yaml:\d+: unknown key 'sorce'.*Did you mean 'source'\?"),
        ({"source": 5}, r"card\.yaml:2: source: .* got 5"),
        ({"source": "nowhere"}, r"card\.yaml:2: source: .*'nowhere'"),
        ({"source": "pth:x"}, r"card\.yaml:2: there is no source 'pth'\. Did you mean 'path'\?"),
        ({"task": "fidelty"}, r"card\.yaml:4: there is no task 'fidelty'\. Did you mean"),
        ({"name": "../evil"}, r"card\.yaml:1: name: .*'\.\./evil'"),
        ({"factory": "nothing"}, r"card\.yaml:3: factory: .*'nothing'"),
        ({"factory": None, "factory_arguments": {"a": 1}}, r"'factory_arguments' needs a"),
        ({"data": {}}, r"data: give exactly one of"),
        ({"data": {"text": "a", "file": "b"}}, r"data: give exactly one of .*not"),
        ({"data": {"random": {}}}, r"'random' needs at least one input"),
        ({"data": {"random": {"x": {"shape": [0]}}}}, r"every size in a shape must be at least 1"),
        ({"data": {"random": {"x": {"shape": [1], "dtpe": "a"}}}}, r"Did you mean 'dtype'\?"),
        ({"data": {"text": "a", "batch_size": 0}}, r"card\.yaml:\d+: data\.batch_size: .* got 0"),
    ],
)
def test_a_mistake_is_named_with_file_line_and_remedy(
    change: dict[str, Any], message: str, tmp_path: Path, plugins: Plugins
) -> None:
    with pytest.raises(CardError, match=message) as refused:
        load_card(write(tmp_path, {**GOOD, **change}), plugins)
    assert len(str(refused.value).splitlines()) <= 9


@pytest.mark.parametrize("text", ["", "- a", "just text", "name: [", "name: a\nname: b"])
def test_what_is_no_mapping_is_refused(text: str, tmp_path: Path, plugins: Plugins) -> None:
    with pytest.raises(CardError, match=r"card\.yaml"):
        load_card(write(tmp_path, text), plugins)


def test_an_unknown_name_points_to_the_nearest_card(plugins: Plugins) -> None:
    name = next(iter(plugins.cards))
    with pytest.raises(CardError, match=f"Did you mean '{name}'"):
        load_card(name[:-1], plugins)
    with pytest.raises(CardError, match="There is no card"):
        load_card("x" * 5000, plugins)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted(Card.model_fields)), value=JSON)
def test_a_mutated_card_loads_or_is_refused_with_a_card_error(
    key: str, value: Any, plugins: Plugins, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        load_card(write(folder, {**GOOD, key: value}), plugins)
    except CardError as error:
        assert "card.yaml" in str(error)  # noqa: PT017
