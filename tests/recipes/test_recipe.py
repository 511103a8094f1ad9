"""Recipes: round trip, mutation, and how mistakes are named."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, strategies as st

from zoopress.errors import RecipeError
from zoopress.plugins import Plugins
from zoopress.recipes import Recipe, load_recipe, parse_recipe
from zoopress.yaml_source import parse_yaml

GOOD: dict[str, Any] = {
    "name": "good",
    "seed": 3,
    "targets": {"min_cosine": 0.9},
    "stages": [
        {"technique": "magnitude_pruning", "sparsity": 0.5, "targets": {"min_cosine": 0.5}},
        {"technique": "weight_quantization", "bits": 4, "group_size": 32},
        {"technique": "entropy_coding"},
    ],
}


def parse(data: Any, plugins: Plugins) -> Recipe:
    text = data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False)
    return parse_recipe(parse_yaml(text, Path("recipe.yaml"), RecipeError), plugins, "fallback")


TARGETS = st.fixed_dictionaries(
    {},
    optional={
        "min_cosine": st.floats(-1, 1),
        "min_label_loyalty": st.floats(0, 1),
        "min_compression_ratio": st.floats(0.1, 100),
        "max_size_bytes": st.integers(1, 10**12),
    },
)
STAGES = st.one_of(
    st.builds(
        dict,
        technique=st.just("magnitude_pruning"),
        sparsity=st.floats(0.01, 0.99),
        scope=st.sampled_from(["layer", "global"]),
        targets=TARGETS,
    ),
    st.builds(dict, technique=st.just("magnitude_pruning"), pattern=st.just("2:4")),
    st.builds(
        dict,
        technique=st.just("weight_quantization"),
        bits=st.integers(2, 8),
        group_size=st.none() | st.integers(8, 256),
        symmetric=st.booleans(),
        kinds=st.lists(st.sampled_from(["linear", "conv"]), min_size=1, unique=True),
        exclude=st.lists(st.text(max_size=5), max_size=2),
        targets=TARGETS,
    ),
    st.just({"technique": "entropy_coding"}),
)


@given(
    stages=st.lists(STAGES, min_size=1, max_size=4),
    targets=TARGETS,
    seed=st.integers(0, 2**63 - 1),
    description=st.text(max_size=20),
)
def test_a_recipe_written_as_yaml_is_read_back_equal(
    stages: list[Any], targets: Any, seed: int, description: str, plugins: Plugins
) -> None:
    data = {"stages": stages, "targets": targets, "seed": seed, "description": description}
    recipe = parse(data, plugins)
    again = parse(recipe.as_dict(), plugins)
    assert again.as_dict() == recipe.as_dict()
    assert [s.technique.config for s in again.stages] == [s.technique.config for s in recipe.stages]
    assert [s.targets for s in again.stages] == [s.targets for s in recipe.stages]
    assert (again.name, again.seed, again.targets) == ("fallback", seed, recipe.targets)
    assert again.description == description


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """Return GOOD with one key or item anywhere replaced, removed, renamed or added."""
    data: Any = copy.deepcopy(GOOD)
    place: Any = data
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
            place = place[key]
            continue
        action = draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "replace":
            place[key] = draw(JSON)
        elif action == "remove":
            del place[key]
        elif isinstance(place, dict):
            place[draw(st.text(max_size=8))] = draw(JSON)
        else:
            place.append(draw(JSON))
        return data


@given(mutated())
def test_a_mutated_recipe_parses_or_is_refused_with_a_recipe_error(
    plugins: Plugins, data: Any
) -> None:
    try:
        parse(data, plugins)
    except RecipeError as error:
        assert "recipe.yaml:" in str(error)  # noqa: PT017
        assert len(str(error).splitlines()) <= 9  # noqa: PT017


@given(position=st.integers(0, 400), new=st.text(max_size=3))
def test_a_recipe_with_damaged_text_parses_or_is_refused(
    plugins: Plugins, position: int, new: str
) -> None:
    text = yaml.safe_dump(GOOD, sort_keys=False)
    try:
        parse(text[:position] + new + text[position + 1 :], plugins)
    except RecipeError as error:
        assert "recipe.yaml" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages:\n- technique: magnitude_prunning\n", r":2: .*Did you mean 'magnitude_pruning'"),
        (
            "stages:\n- technique: magnitude_pruning\n  sparsity: 1.5\n",
            r":3: sparsity: .*less than 1, got 1\.5",
        ),
        (
            "stages:\n- technique: magnitude_pruning\n  sparsty: 0.5\n",
            r":3: unknown key 'sparsty'\. Did you mean 'sparsity'\?",
        ),
        ("stages:\n- technique: weight_quantization\n  bits: four\n", r":3: bits: .*got 'four'"),
        (
            "stages:\n- technique: weight_quantization\n  kinds: [liner]\n",
            r":3: kinds\.0: .*'linear'.* got 'liner'",
        ),
        ("stages:\n- sparsity: 1\n", r":2: a stage needs the key 'technique'"),
        ("stages:\n- technique: [a]\n", r":2: a stage needs the key 'technique' with a name"),
        ("stages: []\n", r":1: stages: .*at least 1"),
        ("stags: []\n", r":1: unknown key 'stags'\. Did you mean 'stages'\?"),
        ("name: a\n", r":1: the key 'stages' is missing"),
        ("stages: {a: b}\n", r":1: stages: .*list"),
        ("stages:\n- 5\n", r":2: stages\.0: .*got 5"),
        ("seed: -1\nstages:\n- technique: entropy_coding\n", r":1: seed: .*got -1"),
        (
            "stages:\n- technique: entropy_coding\ntargets:\n  min_cosin: 1\n",
            r":4: unknown key 'targets\.min_cosin'\. Did you mean 'min_cosine'\?",
        ),
        (
            "stages:\n- technique: entropy_coding\n  targets:\n    min_cosine: 2\n",
            r":4: min_cosine: .*got 2",
        ),
        ("stages:\n- technique: entropy_coding\n  targets: 4\n", r":3: expected keys and values"),
        ("stages:\n- technique: a\n  technique: b\n", r":3: the key 'technique' stands here twice"),
        ("", r":1: expected keys and values, got None"),
        ("- a\n", r":1: expected keys and values"),
        ("stages: [\n", r":2: is not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_file_line_key_and_nearest_name(
    text: str, message: str, plugins: Plugins
) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml" + message):
        parse(text, plugins)


def test_an_n_of_m_pattern_needs_no_quotes(plugins: Plugins) -> None:
    recipe = parse("stages:\n- {technique: magnitude_pruning, pattern: 2:4}\n", plugins)
    assert recipe.stages[0].technique.config.pattern == "2:4"


def test_a_recipe_is_found_by_name_by_file_and_by_section(plugins: Plugins, tmp_path: Path) -> None:
    for name in plugins.recipes:
        assert load_recipe(name, plugins).stages
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({"recipes": {"small": {"stages": GOOD["stages"]}}}))
    recipe = load_recipe(f"{path}#recipes.small", plugins)
    assert recipe.name == "small"
    assert [stage.name for stage in recipe.stages] == [s["technique"] for s in GOOD["stages"]]


@pytest.mark.parametrize("reference", ["nothing", "a/b.yaml", "x" * 5000, "", "#a", "no.yaml#a.b"])
def test_a_recipe_that_is_nowhere_is_refused(reference: str, plugins: Plugins) -> None:
    with pytest.raises(RecipeError):
        load_recipe(reference, plugins)
