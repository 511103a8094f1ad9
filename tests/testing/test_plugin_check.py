"""`zoopress plugin check`: what installed plugins register is held to the rules, and told."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plugin_distributions import Install
from zoopress.commands.cli import app
from zoopress.errors import InputError
from zoopress.interface import HOOK_INTERFACE, spelled
from zoopress.moved import MOVED
from zoopress.plugins import Plugins, load_plugins
from zoopress.progress import Reporter
from zoopress.testing import tiny_card
from zoopress.testing.hook_checks import CHECKS, Request
from zoopress.testing.moved_names import moved_names
from zoopress.testing.plugin_check import Finding, check_plugin, chosen_plugins

GOOD = f"""
from pydantic import Field
from zoopress import Claim, Effects, Outcome, Technique, WeightSelection, hookimpl
from zoopress.techniques import MASKS

zoopress_hook_interface = "{spelled(HOOK_INTERFACE)}"


class HalvingConfig(WeightSelection):
    "Which weights."

    share: float = Field(default=0.5, gt=0, lt=1, description="share to prune")


class Halving(Technique[HalvingConfig]):
    "Prune the first part of each row."

    name = "halving"
    family = "pruning"
    config_type = HalvingConfig

    def effects(self):
        return Effects(requires=self.config.properties(), adds=frozenset({{MASKS}}))

    def apply(self, model, context):
        weights = self.config.select(model)
        for weight in weights:
            keep = weight.matrix() > float("inf")
            keep[:, round(self.config.share * keep.shape[1]):] = True
            model.mask(weight, weight.from_matrix(keep))
        return Outcome([weight.name for weight in weights])


@hookimpl
def zoopress_techniques():
    return [Halving]
"""


@pytest.fixture(autouse=True)
def here_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no process for each technique; `test_conformance.py` does."""
    monkeypatch.setattr("zoopress.testing.conformance.check_hash_seed", lambda *_: None)


def check(
    name: str | None, folder: Path, plugins: Plugins | None = None, **options: object
) -> list[Finding]:
    plugins = plugins or load_plugins()
    request = Request(plugins, folder / "work", **options)  # type: ignore[arg-type]
    return [
        finding
        for subject in chosen_plugins(plugins, name)
        for finding in check_plugin(subject, request, Reporter())
    ]


def test_a_good_plugin_passes_by_its_name_or_its_distributions(
    install: Install, tmp_path: Path, brief_evaluation: None
) -> None:
    install("good-dist", "good", GOOD)
    assert [(f.subject, f.on, f.state) for f in check(None, tmp_path)] == [
        ("plugin", "", "passed"),
        ("technique halving", "the tiny models", "passed"),
    ]
    for name in ("good", "Good_Dist"):
        assert [one.plugin for one in chosen_plugins(load_plugins(), name)] == ["good"]


def test_on_a_card_of_ones_own_it_is_tried_there(
    install: Install, tmp_path: Path, brief_evaluation: None
) -> None:
    install("good-dist", "good", GOOD)
    card = tiny_card("lstm", tmp_path / "card")
    findings = check("good", tmp_path, cards=[card])
    # With its default kinds it masks the head, and says nothing it does not do.
    assert [(f.on, f.state) for f in findings if f.subject == "technique halving"] == [
        ("", "passed"),
        ("tiny-lstm", "passed"),
    ]


def test_what_refuses_a_card_in_words_is_no_failure(
    install: Install, tmp_path: Path, brief_evaluation: None
) -> None:
    code = GOOD.replace('"Which weights."', '"Which weights."\n    kinds: tuple = ("conv",)')
    code = code.replace(
        'kinds: tuple = ("conv",)', 'kinds: tuple = Field(("conv",), description="k")'
    )
    install("good-dist", "good", code)
    findings = check("good", tmp_path, cards=[tiny_card("lstm", tmp_path / "card")])
    assert findings[-1].state == "refused"
    assert "No float weight matches kinds" in findings[-1].text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "weights = self.config.select(model)",
            "weights = 1 / 0",
            r"ZeroDivisionError.*_module\.py:",
        ),
        ("weights = self.config.select(model)", "raise SystemExit(3)", "SystemExit: 3"),
        ("adds=frozenset({MASKS})", "", "adds lacks"),
        ('description="share to prune"', "", "'share' has no description"),
        ("return Outcome([weight.name for weight in weights])", "return", "zoopress.Outcome"),
        ("from pydantic", "import torch\nfrom pydantic", "imports torch"),
        ("default=0.5, gt=0", "gt=0", r"not checked.*share.*--recipe"),
    ],
)
def test_what_breaks_a_rule_fails_with_its_message(
    old: str, new: str, message: str, install: Install, tmp_path: Path, brief_evaluation: None
) -> None:
    assert old in GOOD
    install("bad-dist", "bad", GOOD.replace(old, new))
    failed = [finding for finding in check("bad", tmp_path) if finding.state == "failed"]
    assert [finding.subject for finding in failed] == ["technique halving"]
    assert re.search(message, failed[0].text), failed[0].text


def test_a_recipe_gives_configs(install: Install, tmp_path: Path, brief_evaluation: None) -> None:
    install("needy-dist", "needy", GOOD.replace("default=0.5, gt=0", "gt=0"))
    plugins = load_plugins()
    kind = plugins.technique("halving")
    given = {"halving": [kind(kind.config_type(share=0.25))]}
    findings = check("needy", tmp_path, plugins, techniques=given)
    assert [finding.state for finding in findings] == ["passed", "passed"]


def test_broken_ones_clashes_and_other_registered_things_are_told(
    install: Install, tmp_path: Path
) -> None:
    hook = "from zoopress.plugins import hookimpl\n@hookimpl\ndef zoopress_"
    install("broken-dist", "broken", "import no_such_module_at_all")
    install("clash-dist", "clash", hook + "tasks():\n    return {'fidelity': 'a:b'}")
    install("layer-dist", "layer", hook + "layers():\n    return {'odd': 'torch.nn:Linear'}")
    install("gate-dist", "gate", hook + "gates():\n    return {'no_gate': 'no_module:gate'}")
    told = {
        finding.plugin: finding for finding in check(None, tmp_path) if finding.state == "failed"
    }
    assert "no_such_module_at_all" in told["broken"].text
    assert "'fidelity' was left out" in told["clash"].text
    assert "from_module" in told["layer"].text
    assert told["gate"].subject == "gate no_gate"
    assert "No module named 'no_module'" in told["gate"].text


@pytest.mark.parametrize(
    ("line", "old"),
    [
        ("import zoopress.technique", "zoopress.technique"),
        ("from zoopress.model import Model", "zoopress.model"),
        ("from zoopress import packing", "zoopress.packing"),
        ("from zoopress.hub.licenses import x", "zoopress.hub.licenses"),
        ("x = 'zoopress.testing_models:cnn'", "zoopress.testing_models"),
        ("import zoopress.techniques, os", None),
        ("from .technique import x", None),
        ("x = 'see zoopress.technique'", None),
    ],
)
def test_moved_names_are_found_in_the_source(line: str, old: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f"# a\ntry:\n    {line}\nexcept ImportError:\n    raise\n")
    found = [(name.line, name.old, name.new) for name in moved_names([tmp_path / "a.py"])]
    assert found == ([(3, old, MOVED[old])] if old else [])


def test_a_plugin_that_uses_moved_names_works_and_is_told_the_new_ones(
    install: Install, tmp_path: Path, brief_evaluation: None
) -> None:
    install(
        "old-dist", "old", GOOD.replace("zoopress.techniques import", "zoopress.technique import")
    )
    findings = check("old", tmp_path)
    assert [finding.state for finding in findings] == ["passed", "outdated", "passed"]
    assert "old_dist_module.py:4: zoopress.technique is now zoopress.techniques" in findings[1].text


def test_the_command_prints_a_line_a_check_and_ends_with_1_on_failure(
    install: Install, brief_evaluation: None
) -> None:
    install("good-dist", "good", "print('noise')\n" + GOOD)
    install("broken-dist", "broken", "import no_such_module_at_all")
    run = CliRunner().invoke
    done = run(app, ["plugin", "check", "good"])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines() if line != "noise"] == [
        "passed"
    ] * 2
    done = run(app, ["plugin", "check", "broken-dist", "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout.removeprefix("noise\n"))
    assert told["failed"] == 1
    assert told["checks"][0]["plugin"] == "broken"


def test_who_is_not_there_is_an_error_that_names_the_nearest(install: Install) -> None:
    with pytest.raises(InputError, match=r"No plugin is installed.*plugin new"):
        chosen_plugins(load_plugins(), None)
    install("good-dist", "good", GOOD)
    with pytest.raises(InputError, match=r"'good-dits' is installed.*'good-dist'"):
        chosen_plugins(load_plugins(), "good-dits")
    with pytest.raises(InputError, match=r"'good' is blocked"):
        chosen_plugins(load_plugins(["good"]), "good")


@pytest.mark.parametrize(
    "name",
    ["zoo", "flows", "weight_quantization", pytest.param("evaluation", marks=pytest.mark.slow)],
)
def test_what_zoopress_brings_passes(name: str, tmp_path: Path, brief_evaluation: None) -> None:
    findings = check(name, tmp_path)
    assert [str(finding) for finding in findings if finding.state == "failed"] == []
    assert len(findings) > 1


def test_every_check_is_of_something_that_there_is(plugins: Plugins) -> None:
    kinds = {kind for plugin in plugins.origins for kind, _ in plugins.registered_by(plugin)}
    assert CHECKS.keys() <= kinds | {"command"}  # zoopress's own are no plugin's


COMMANDS = """
from zoopress import hookimpl
from zoopress.plugins import Command


def show():
    print("shown")


@hookimpl
def zoopress_commands():
    return {{"show-me": Command("{module}:{attribute}", "Show something.")}}
"""


@pytest.mark.parametrize(
    ("attribute", "state", "told"),
    [("show", "passed", ""), ("gone", "failed", "gone"), ("__doc__", "failed", "neither")],
)
def test_commands_are_checked(
    attribute: str, state: str, told: str, install: Install, tmp_path: Path
) -> None:
    install("with-verb", "verbs", COMMANDS.format(module="with_verb_module", attribute=attribute))
    findings = [item for item in check("verbs", tmp_path) if item.subject == "command show-me"]
    assert [item.state for item in findings] == [state]
    assert told in str(findings[0])
