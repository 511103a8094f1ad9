"""Gates in recipes: chosen, configured, asked again of what is stored, and told when wrong."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import yaml

import zoopress.config
from zoopress.errors import ArtifactError, GateError, RecipeError
from zoopress.pipeline.compress import compress
from zoopress.plugins import Plugins, hookimpl, load_plugins
from zoopress.publishing.release import open_release
from zoopress.recipes import Recipe, load_recipe
from zoopress.recipes.schema import recipe_schema
from zoopress.results import GateInput
from zoopress.store import Store
from zoopress.testing import tiny_card

STAGES = [{"technique": "magnitude_pruning", "sparsity": 0.3}, {"technique": "entropy_coding"}]
asked: list[str] = []


def refuse(given: GateInput) -> str | None:
    asked.append(given.result.technique)
    return "it is not liked here."


class ConfiguredConfig(zoopress.config.Config):
    bound: float = 0.5


class Configured:
    config_type: Any = ConfiguredConfig

    def __init__(self, config: ConfiguredConfig) -> None:
        if config.bound == 13:
            raise ZeroDivisionError("unlucky")

    def __call__(self, given: GateInput) -> str | None:
        assert given.previous is None or given.position == 2
        assert given.last == (given.position == given.count == 2)
        return None


class NoConfig(Configured):
    config_type = int


class NoJudge:
    pass


@pytest.fixture
def with_gates(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """All that is installed, and a plugin with gates of its own."""
    names = {
        "refuse": "refuse",
        "configured": "Configured",
        "no_config": "NoConfig",
        "no_judge": "NoJudge",
    }
    hook = hookimpl(
        lambda: {name: f"gates_of_a_plugin:{of}" for name, of in names.items()},
        specname="zoopress_gates",
    )
    monkeypatch.setitem(sys.modules, "gates_of_a_plugin", sys.modules[__name__])
    asked.clear()
    return load_plugins(extra={"extra": SimpleNamespace(hook=hook)})


def read(folder: Path, plugins: Plugins, gates: Any = None, of_stage: Any = None) -> Recipe:
    recipe: dict[str, Any] = {"stages": [dict(stage) for stage in STAGES]}
    if gates is not None:
        recipe = {"gates": gates, **recipe}
    if of_stage is not None:
        recipe["stages"][0]["gates"] = of_stage
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return load_recipe(str(path), plugins)


def run(folder: Path, recipe: Recipe, plugins: Plugins, out: str = "out") -> Any:
    card = tiny_card("cnn", folder)
    return compress(card, recipe, folder / out, Store(folder / "store"), plugins)


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        (
            ["layer_eror"],
            r"recipe\.yaml:2: There is no gate 'layer_eror'\. Did you mean 'layer_e",
        ),
        (["layer_eror"], "No installed plugin registers .*zoopress gates"),
        ([{"gate": "layer_error", "bond": 1}], r"yaml:3: unknown key 'bond'\. Did .* 'bound'"),
        ([{"gate": "layer_error", "bound": "x"}], r"recipe\.yaml:3: bound: .*number.*got 'x'"),
        ([{"gate": "refuse", "bound": 1}], r"yaml:3: the gate 'refuse' has no options; remove"),
        ([{"bound": 1}], r"recipe\.yaml:2: a gate is a name, or {gate: NAME"),
        ([3], r"recipe\.yaml:2: a gate is a name, or .*got 3"),
        ("layer_error", r"recipe\.yaml:1: gates: .*list"),
        (["refuse", {"gate": "refuse"}], r"recipe\.yaml:3: the gate 'refuse' stands here twice"),
        (["outputs_finite"], r"recipe\.yaml:2: the gate 'outputs_finite' is always asked"),
        (["no_config"], r"'no_config' is the class NoConfig, whose config_type is no subclass"),
        (["no_judge"], r"'no_judge' is the class NoJudge, which has no method __call__"),
        ([{"gate": "configured", "bound": 13}], r"yaml:2: the gate 'configured' .*unlucky"),
    ],
)
def test_a_mistake_in_gates_names_place_and_remedy(
    tmp_path: Path, with_gates: Plugins, gates: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, with_gates, gates)


def test_a_mistake_in_a_stages_gates_is_named_too(tmp_path: Path, with_gates: Plugins) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml:5: There is no gate 'layer'"):
        read(tmp_path, with_gates, of_stage=["layer"])
    with pytest.raises(RecipeError, match=r"recipe\.yaml:4: 'gates' must be a list"):
        read(tmp_path, with_gates, of_stage="layer_error")


def test_a_stages_gate_takes_the_place_of_the_recipes(tmp_path: Path, with_gates: Plugins) -> None:
    shared = ["no_dead_layer", {"gate": "layer_error", "bound": 0.1}]
    recipe = read(tmp_path, with_gates, shared, [{"gate": "layer_error", "bound": 2}])
    assert [gate.as_dict() for gate in recipe.gates_of(1)] == [
        {"gate": "no_dead_layer", "min_nonzero": 0.0},
        {"gate": "layer_error", "bound": 2.0},
    ]
    assert recipe.gates_of(2) == recipe.gates


def test_a_gate_that_is_not_named_is_never_asked(tmp_path: Path, with_gates: Plugins) -> None:
    run(tmp_path, read(tmp_path, with_gates), with_gates)
    run(tmp_path, read(tmp_path, with_gates, ["configured"]), with_gates)
    assert asked == []


def test_a_stored_result_is_asked_again_and_a_gate_is_no_part_of_its_key(
    tmp_path: Path, with_gates: Plugins
) -> None:
    first = run(tmp_path, read(tmp_path, with_gates), with_gates)
    with pytest.raises(GateError, match=r"Stage 1 \(magnitude_pruning\) .*'refuse': it is not"):
        run(tmp_path, read(tmp_path, with_gates, ["refuse"]), with_gates)
    assert asked == ["magnitude_pruning"]
    again = run(tmp_path, read(tmp_path, with_gates, ["layer_error", "no_dead_layer"]), with_gates)
    assert first.computed
    assert again.computed == ()
    assert again.report.store_keys == first.report.store_keys


def test_gates_measure_every_layer_after_every_stage(tmp_path: Path, with_gates: Plugins) -> None:
    result = run(tmp_path, read(tmp_path, with_gates), with_gates)
    pruned, coded = result.report.stages
    assert pruned.layers == coded.layers
    measured = {layer.name: layer.relative_error for layer in result.report.layers}
    found = {layer.name: layer.relative_error for layer in coded.layers}
    assert found == pytest.approx(measured)
    assert sum(layer.zero_share > 0.2 for layer in coded.layers) == len(found) > 2
    bound = max(error for error in found.values() if error is not None)
    run(tmp_path, read(tmp_path, with_gates, [{"gate": "layer_error", "bound": bound}]), with_gates)
    tight = [{"gate": "layer_error", "bound": bound * 0.999}]
    with pytest.raises(GateError, match=r"'layer_error': the layer .* has a relative error of"):
        run(tmp_path, read(tmp_path, with_gates, of_stage=tight), with_gates)


def test_a_report_carries_its_gates_and_publishing_asks_them_again(
    tmp_path: Path, with_gates: Plugins
) -> None:
    gates = [{"gate": "layer_error", "bound": 3}, "configured"]
    result = run(tmp_path, read(tmp_path, with_gates, gates, ["bytes_saved"]), with_gates)
    path = result.folder / "report.json"
    report = json.loads(path.read_text())
    assert report["recipe"]["gates"] == [gates[0], {"gate": "configured", "bound": 0.5}]
    assert report["recipe"]["stages"][0]["gates"] == [{"gate": "bytes_saved", "at_least": 0.01}]
    assert "gate: layer_error" in (result.artifact / "README.md").read_text()
    open_release(result.folder, with_gates)

    with pytest.raises(ArtifactError, match=r"cannot be asked here: .*no gate 'configured'.*inst"):
        open_release(result.folder, load_plugins())
    report["recipe"]["gates"] = [{"gate": "layer_error", "bound": 0.001}]
    path.write_text(json.dumps(report))
    with pytest.raises(GateError, match="'layer_error'"):
        open_release(result.folder, with_gates)


@pytest.mark.parametrize(
    ("gates", "valid"),
    [
        (["no_dead_layer", {"gate": "layer_error", "bound": 0.1}, "refuse"], True),
        ([{"gate": "layer_error", "bond": 0.1}], False),
        ([{"gate": "refuse", "bound": 0.1}], False),
        (["layer_eror"], False),
        (["outputs_finite"], False),
        ("layer_error", False),
    ],
)
def test_editors_are_told_the_gates_that_there_are(
    with_gates: Plugins, gates: Any, valid: bool
) -> None:
    check = jsonschema.Draft202012Validator(recipe_schema(with_gates)).is_valid
    assert check({"gates": gates, "stages": STAGES}) is valid
    assert check({"stages": [{**STAGES[0], "gates": gates}]}) is valid
