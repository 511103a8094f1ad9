"""`zoopress schema` and `technique --json`: what editors and machines are told of what there is."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from pydantic import Field
from typer.testing import CliRunner

from zoopress.cards.schema import card_schema
from zoopress.commands.cli import app
from zoopress.plugins import Plugins, hookimpl, load_plugins
from zoopress.recipes.recipe import BESIDES
from zoopress.recipes.schema import _BESIDE, recipe_schema
from zoopress.techniques import Config, Effects, Outcome, Technique

ROOT = Path(__file__).parents[2]


def shipped() -> Iterator[tuple[str, str, Any]]:
    """Yield every card and recipe of the repository: its kind, where it is, and what is in it."""
    folders = ("benchmarks", "flows", "zoo", "examples", "src/zoopress/scaffolds")
    files = [ROOT / "params.yaml", *(f for name in folders for f in (ROOT / name).rglob("*.yaml"))]
    for file in files:
        data, where = (
            yaml.safe_load(file.read_text().replace("@CARD@", "x")),
            str(file.relative_to(ROOT)),
        )
        if "source" in data:
            yield "card", where, data
        yield from recipes(data, where)


def recipes(data: Any, where: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the recipes in a file: all of it, or what stands in its sections."""
    if isinstance(data, dict):
        if isinstance(data.get("stages"), list):
            yield "recipe", where, data
        for key, item in data.items():
            yield from recipes(item, f"{where}#{key}")


CASES = list(shipped())


def errors(schema: dict[str, Any], data: Any) -> list[str]:
    Draft7Validator.check_schema(schema)
    return [error.message for error in Draft7Validator(schema).iter_errors(data)]


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict[str, Any]]:
    """Give both schemas as the command prints them."""
    return {
        kind: json.loads(CliRunner().invoke(app, ["schema", kind]).stdout)
        for kind in ("card", "recipe")
    }


def test_there_is_something_to_validate() -> None:
    assert {kind for kind, _, _ in CASES} == {"card", "recipe"}
    assert len(CASES) > 20


@pytest.mark.parametrize(("kind", "where", "data"), CASES, ids=[where for _, where, _ in CASES])
def test_what_is_shipped_is_valid(
    kind: str, where: str, data: Any, schemas: dict[str, dict[str, Any]]
) -> None:
    assert errors(schemas[kind], data) == []


PRUNING = {"technique": "magnitude_pruning", "sparsity": 0.5}
TUNING = {"technique": "fine_tuning", "steps": 3}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (PRUNING, None),
        ({**PRUNING, "targets": {"min_cosine": 0.9}, "recovery": TUNING}, None),
        ({**PRUNING, "sparsty": 0.5}, "'sparsty' was unexpected"),
        ({**PRUNING, "sparsity": 1.5}, "1.5 is not valid under any"),
        ({**PRUNING, "scope": "globl"}, "'globl' is not one of"),
        ({**PRUNING, "bits": 4}, "'bits' was unexpected"),  # another technique's key
        ({**PRUNING, "technique": "magnitude_prunning"}, "'magnitude_prunning' is not one of"),
        ({"sparsity": 0.5}, "'technique' is a required property"),
        ({"technique": "neuron_pruning"}, "'sparsity' is a required property"),
        ({**PRUNING, "targets": {"min_cosin": 0.9}}, "'min_cosin' was unexpected"),
        ({**PRUNING, "recovery": PRUNING}, "is not valid under any"),  # it trains nothing
        ({**PRUNING, "recovery": {**TUNING, "stepps": 3}}, "is not valid under any"),
        ({**PRUNING, "recovery": {**TUNING, "recovery": TUNING}}, "is not valid under any"),
    ],
)
def test_a_stage_has_the_keys_of_its_technique(
    stage: dict[str, Any], message: str | None, schemas: dict[str, dict[str, Any]]
) -> None:
    found = errors(schemas["recipe"], {"stages": [stage]})
    assert found == [] if message is None else any(message in error for error in found), found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"sorce": "path:x"}, "'sorce' was unexpected"),
        ({"source": "hubb:org/name"}, "'hubb:org/name' does not match"),
        ({"task": "image-clasification"}, "'image-clasification' is not one of"),
        ({"measures": ["computations"]}, "'computations' is not one of"),
        ({"data": {"dataset": "csv:x"}}, "is not valid under any"),
        ({"data": {"text": "a.txt", "file": "b.npz"}}, "is not valid under any"),
        ({"data": {"text": "a.txt", "batchsize": 3}}, "is not valid under any"),
    ],
)
def test_a_typo_in_a_card_is_found(
    change: dict[str, Any], message: str | None, schemas: dict[str, dict[str, Any]]
) -> None:
    card = {"name": "x", "source": "path:x", "data": {"text": "python-docstrings"}, **change}
    found = errors(schemas["card"], card)
    assert found == [] if message is None else any(message in error for error in found), found


def test_every_key_is_described(schemas: dict[str, dict[str, Any]]) -> None:
    definitions = schemas["recipe"]["$defs"]
    stage = definitions["stage:magnitude_pruning"]["properties"]
    assert stage["sparsity"]["description"]
    assert definitions["stage"]["properties"]["technique"]["enumDescriptions"]
    for kind in ("card", "recipe"):
        keys = schemas[kind]["properties"]
        assert [key for key in keys if not keys[key].get("description")] == []


def test_every_key_beside_a_techniques_own_is_in_the_schema() -> None:
    assert _BESIDE.keys() == set(BESIDES)


class OddConfig(Config):
    """Hold what JSON cannot."""

    change: type[Plugins] = Field(default=Plugins, description="no JSON form")


class Odd(Technique[OddConfig]):
    """Do something odd."""

    name = "odd"
    family = "coding"
    config_type = OddConfig

    def effects(self) -> Effects:
        return Effects(adds=frozenset({"oddness"}))

    def apply(self, model: Any, context: Any) -> Outcome:
        raise NotImplementedError


@pytest.fixture
def odd() -> Plugins:
    hook = hookimpl(lambda: [Odd], specname="zoopress_techniques")
    gate = hookimpl(lambda: {"odd": "odd:task"}, specname="zoopress_tasks")
    return load_plugins(extra={"odd": SimpleNamespace(hook=hook, gate=gate)})


def test_a_plugins_techniques_and_tasks_are_in_the_schemas(odd: Plugins) -> None:
    schema = recipe_schema(odd)
    # What has no JSON form is left unchecked, and nothing else is.
    assert errors(schema, {"stages": [{"technique": "odd", "change": 3}, PRUNING]}) == []
    assert errors(schema, {"stages": [{**PRUNING, "change": 3}]})
    assert errors(card_schema(odd), {"name": "x", "source": "path:x", "task": "odd"}) == []


def test_technique_as_json_says_what_it_can_be_told_and_what_it_does() -> None:
    done = CliRunner().invoke(app, ["technique", "weight_quantization", "--json"])
    told = json.loads(done.stdout)
    assert told["family"] == "quantization"
    assert told["distribution"] == "zoopress"
    assert told["config"]["properties"]["bits"]["description"]
    assert "float linear weights" in told["effects"]["destroys"]
    assert told["effects"]["activations"] == "rounded"
    assert told["needs"] == []
    needy = json.loads(CliRunner().invoke(app, ["technique", "fine_tuning", "--json"]).stdout)
    assert needy["effects"] is None  # its config has no defaults that are valid
    assert needy["needs"] == ["calibration", "training"]
    assert needy["recovers"] is True
