"""The contract with plugins: which hooks they were made for, and what they answer."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from plugin_distributions import TECHNIQUE, Install
from zoopress.cards import Card
from zoopress.cells.plan import make_plan
from zoopress.errors import PluginError, SourceError
from zoopress.interface import HOOK_INTERFACE, not_plain, spelled
from zoopress.plugins import hookimpl, load_plugins
from zoopress.recipes import Recipe, Stage
from zoopress.sources import pull
from zoopress.tasks import open_dataset
from zoopress.techniques import Claim, Config, Effects, Outcome, Technique
from zoopress.testing import run_chain, tiny_card

MAJOR, MINOR = HOOK_INTERFACE
NEWER, OLDER, NEXT = f"{MAJOR}.{MINOR + 2}", f"{MAJOR - 1}.7", f"{MAJOR + 1}.0"
# From where they came: a name alone may be a stranger's package.
UPDATE_US = r"Update zoopress: (pip install --upgrade|install it again from where it came)"
UPDATE_THEM = r"Update some-dist: install it again from where it came"
NEW_HOOK = "\n@hookimpl\ndef zoopress_dreams():\n    return {}\n"


def stated(version: str) -> str:
    return f'zoopress_hook_interface = "{version}"\n'


@pytest.mark.parametrize("version", [spelled(HOOK_INTERFACE), f"{MAJOR}.0", NEWER])
def test_a_plugin_for_these_hooks_or_ones_that_were_added_to_is_loaded(
    version: str, install: Install
) -> None:
    install("some-dist", "some", stated(version) + TECHNIQUE.format(name="some_technique"))
    plugins = load_plugins()
    assert "some_technique" in plugins.techniques
    assert spelled(plugins.made_for["some"] or (0, 0)) == version
    assert not plugins.broken


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (stated(NEXT) + TECHNIQUE, rf"interface {NEXT}, this zoopress has.*{UPDATE_US}"),
        (stated(OLDER) + TECHNIQUE, rf"interface {OLDER}, this zoopress has.*{UPDATE_THEM}"),
        (stated(NEWER) + TECHNIQUE + NEW_HOOK, rf"{NEWER}.*zoopress_dreams.*{UPDATE_US}"),
        # What it imports is not here, so what it says must be read from its source.
        (stated(NEWER) + "import zoopress.dreams", rf"{NEWER}.*zoopress\.dreams.*{UPDATE_US}"),
        (stated(OLDER) + "import zoopress.gone", rf"{OLDER}.*zoopress\.gone.*{UPDATE_THEM}"),
        (stated("one") + TECHNIQUE, r"is str 'one'\. Write the version.*'1\.\d+'"),
        ("zoopress_hook_interface = 1.1\n" + TECHNIQUE, r"is float 1\.1\. Write"),
        (TECHNIQUE + NEW_HOOK, r"no hook 'zoopress_dreams'\..*newer zoopress, update"),
        (TECHNIQUE + NEW_HOOK.replace("dreams", "gate"), r"Did you mean 'zoopress_gates'"),
    ],
)
def test_a_plugin_for_other_hooks_is_told_what_to_update_and_left_out_alone(
    code: str, message: str, install: Install
) -> None:
    install("some-dist", "some", code.replace("{name}", "some_technique"))
    install("good-dist", "good", TECHNIQUE.format(name="good_technique"))
    plugins = load_plugins()
    plugins.check()
    [broken] = plugins.broken
    assert broken.name == "some"
    assert re.search(message, str(broken))
    assert "Traceback" not in str(broken)
    assert "some_technique" not in plugins.techniques
    assert {"good_technique", "magnitude_pruning"} <= plugins.techniques.keys()


COMMANDS = [["techniques"], ["technique", "truncated_svd"], ["recipes"], ["zoo", "list"]]
RUNS = [["run", "CARD", "RECIPE", "--out", "OUT"]]
RUNS += [["zoo", "run", "--cards", "CARD", "--recipes", "RECIPE", "--out", "OUT", "--workers", "2"]]


@pytest.mark.parametrize(
    "words", [*COMMANDS, *(pytest.param(words, marks=pytest.mark.slow) for words in RUNS)]
)
def test_what_a_plugin_lacks_is_told_on_the_command_line_and_the_rest_works(
    words: list[str], install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tiny_card("cnn", tmp_path / "card").model_dump(exclude_none=True, mode="json")
    (tmp_path / "card.yaml").write_text(json.dumps(card))
    recipe = {"stages": [{"technique": "magnitude_pruning", "sparsity": 0.5}]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    monkeypatch.setenv("ZOOPRESS_STORE", str(tmp_path / "store"))
    # Worker processes are started with what finds the plugins, too.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    install("some-dist", "some", stated(NEXT) + TECHNIQUE.format(name="some_technique"))
    install("copy-cat", "copycat", TECHNIQUE.format(name="magnitude_pruning"))
    places = {"CARD": "card.yaml", "RECIPE": "recipe.yaml", "OUT": "out"}
    spelled_out = [str(tmp_path / places[word]) if word in places else word for word in words]
    command = [sys.executable, "-m", "zoopress", *spelled_out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"made for hook interface {NEXT}" in done.stderr
    assert "its technique 'magnitude_pruning' was left out" in done.stderr


# What registered functions answer.

ANSWERS: dict[str, Any] = {
    "a_dict": lambda *_: {"folder": "."},
    "none": lambda *_: None,
    "a_number": lambda *_: 0.5,
    "a_tensor": lambda *_: {"scores": [1.0, torch.ones(2)]},
    "numbered": lambda *_: {"by class": {3: 1.0}},
}


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give plugins in which functions of every registry answer what they should not."""
    monkeypatch.setitem(sys.modules, "answering", SimpleNamespace(**ANSWERS))
    mapping = {name.replace("_", ""): f"answering:{name}" for name in ANSWERS}
    hooks = {
        hook: hookimpl(lambda: mapping, specname=f"zoopress_{hook}")
        for hook in ("sources", "datasets", "measures", "gates")
    }
    return load_plugins(extra={"liar": SimpleNamespace(**hooks)})


@pytest.mark.parametrize(
    ("hook", "name", "message"),
    [
        (
            "sources",
            "adict",
            r"zoopress_sources\) must return zoopress\.sources\.SourceFiles; .*di",
        ),
        ("datasets", "none", r"zoopress_datasets\) must return zoopress\.tasks\.Dataset; .* None"),
        ("measures", "atensor", r"must return plain data.*Tensor.* at scores\[1\]"),
        ("measures", "numbered", r"the key int 3 at by class"),
        (
            "gates",
            "anumber",
            r"must return None or True where it passes, or a sentence.*; it returned float 0\.5",
        ),
    ],
)
def test_a_wrong_answer_names_plugin_hook_and_what_was_expected(
    hook: Any, name: str, message: str, answering: Any
) -> None:
    with pytest.raises(PluginError, match=rf"{name!r} of plugin 'liar'.*{message}") as caught:
        answering.ask(hook, name, None, None)
    assert "ZOOPRESS_BLOCK_PLUGINS=liar" in str(caught.value)


def test_sources_and_datasets_are_asked_so(answering: Any) -> None:
    card = Card.model_validate(
        {"name": "x", "source": "adict:x", "data": {"dataset": "none:x"}, "task": "fidelity"}
    )
    with pytest.raises(PluginError, match="zoopress_sources"):
        pull(card, answering)
    with pytest.raises(PluginError, match="zoopress_datasets"):
        open_dataset(card, answering)


def test_a_source_that_names_a_file_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoopress.sources import SourceFiles

    lying = SimpleNamespace(find=lambda card: SourceFiles(tmp_path, "1", ("model.safetensors",)))
    monkeypatch.setitem(sys.modules, "lying", lying)
    hook = hookimpl(lambda: {"lying": "lying:find"}, specname="zoopress_sources")
    plugins = load_plugins(extra={"lying": SimpleNamespace(hook=hook)})
    with pytest.raises(SourceError, match=r"'lying' found no file 'model\.safetensors'"):
        pull(Card(name="x", source="lying:x"), plugins)


def test_plain_data_is_what_json_holds() -> None:
    plain = {"a": [1, 2.5, None, True, "x", (1, {"b": float("nan")})]}
    assert not_plain(plain) is None
    json.dumps(plain)
    assert not_plain({"a": {1, 2}}) == "set {1, 2} at a"


# What techniques answer.


class Answering(Technique[Config]):
    """Answer what it is given."""

    name = "answering"
    family = "coding"
    config_type = Config
    effect: Any = Effects()
    outcome: Any = None

    def effects(self) -> Any:
        return self.effect

    def apply(self, model: Any, context: Any) -> Any:
        return self.outcome


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (None, r"apply\(\) must return zoopress\.Outcome; it returned None"),
        (["a"], r"it returned list \['a'\]"),
        (Outcome(touched="0.weight"), r"'touched'.*str '0\.weight'"),
        (Outcome(["0"], [("bits", 4, 4)]), r"zoopress\.Claim.*tuple"),  # type: ignore[list-item]
        (Outcome(["0"], [Claim("bits", 4, torch.ones(()))]), r"Claim of plain"),  # type: ignore[arg-type]
        (Outcome(["0"], notes={"scale": torch.ones(1)}), r"plain data.*Tensor.*notes\.scale"),
    ],
)
def test_an_outcome_that_cannot_be_stored_names_the_technique(
    outcome: Any, message: str, tmp_path: Path
) -> None:
    kind = type("Answering", (Answering,), {"outcome": outcome})
    hook = hookimpl(lambda: [kind], specname="zoopress_techniques")
    plugins = load_plugins(extra={"answering": SimpleNamespace(hook=hook)})
    with pytest.raises(PluginError, match=rf"technique 'answering' .*{message}"):
        run_chain([kind(Config())], tiny_card("cnn", tmp_path), tmp_path / "run", plugins)


@pytest.mark.parametrize(
    ("effect", "message"),
    [
        (None, r"effects\(\) must return zoopress\.Effects; it returned None"),
        (Effects(requires=["masks"]), r"frozenset of strings as 'requires'.*list"),  # type: ignore[arg-type]
    ],
)
def test_effects_of_another_type_name_the_technique(
    effect: Any, message: str, tmp_path: Path
) -> None:
    kind = type("Answering", (Answering,), {"effect": effect})
    recipe = Recipe("test", (Stage(kind(Config())),))
    with pytest.raises(PluginError, match=message):
        make_plan(tiny_card("cnn", tmp_path), recipe)
