"""Plugins: broken ones are named and left out, who clashes goes without, any can be blocked."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from plugin_distributions import TECHNIQUE, Install
from zoopress.errors import PluginError
from zoopress.plugins import Plugins, Registry, hookimpl, load_plugins


def names(plugins: Plugins) -> set[str]:
    plugins.check()
    return {item.name for item in plugins.broken} | {item.plugin for item in plugins.clashes}


def assert_rest_works(plugins: Plugins) -> None:
    assert {"magnitude_pruning", "entropy_coding"} <= plugins.techniques.keys()
    assert plugins.cards
    assert "fidelity" in plugins.references["tasks"]


def test_nothing_that_is_installed_is_broken_or_clashes() -> None:
    assert names(load_plugins()) == set()


def test_entry_points_of_importlib_metadata_are_as_good_as_the_standard_librarys() -> None:
    # Once imported it is what finds distributions; some libraries of Dask and Prefect import it.
    code = (
        "import importlib_metadata\n"
        "from zoopress.plugins import load_plugins\n"
        "print(sorted(load_plugins().references['sources']))\n"
    )
    pytest.importorskip("importlib_metadata")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "package" in done.stdout


def test_an_installed_distribution_adds_its_technique(install: Install) -> None:
    install("third-party", "third", TECHNIQUE.format(name="third_technique"))
    plugins = load_plugins()
    assert plugins.technique("third_technique").name == "third_technique"
    origin = plugins.technique_origin("third_technique")
    assert (origin.plugin, origin.distribution, origin.version) == ("third", "third-party", "1.2")


HOOKED = "from zoopress.plugins import hookimpl\n@hookimpl\n"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError.*no_such_module_anywhere"),
        ("def (", "SyntaxError"),
        ("raise RuntimeError('bad day')", "RuntimeError: bad day"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        (HOOKED + "def zoopress_tehcniques():\n    return []", "zoopress_tehcniques"),
        ("def zoopress_techniques():\n    return []", "lacks the decorator: write @hookimpl"),
        (HOOKED + "def zoopress_techniques(wrong):\n    return []", "wrong"),
        (HOOKED + "def zoopress_techniques():\n    raise OSError('gone')", "OSError: gone"),
        (HOOKED + "def zoopress_techniques():\n    pass", "zoopress_techniques: TypeError"),
        (HOOKED + "def zoopress_techniques():\n    yield 1 / 0", "ZeroDivisionError"),
        (HOOKED + "def zoopress_techniques():\n    return [int]", "not a subclass"),
        (
            "from zoopress.techniques import Technique\n"
            + HOOKED
            + "def zoopress_techniques():\n    return [Technique]",
            "lacks name, family, config_type",
        ),
        (HOOKED + "def zoopress_layers():\n    return {'a': int}", "module:attribute"),
        (HOOKED + "def zoopress_tasks():\n    return ['a']", "zoopress_tasks"),
        (HOOKED + "def zoopress_gates():\n    return {'a': 'no colon'}", "module:attribute"),
        (HOOKED + "def zoopress_cards():\n    return ['/no/such/folder']", "/no/such/folder"),
        (HOOKED + "def zoopress_recipes():\n    return None", "zoopress_recipes: TypeError"),
    ],
)
def test_a_broken_plugin_is_named_with_its_distribution_and_the_rest_works(
    code: str, reason: str, install: Install
) -> None:
    install("bad-luck", "unlucky", code)
    install("good-luck", "lucky", TECHNIQUE.format(name="lucky_technique"))
    plugins = load_plugins()
    plugins.check()
    plugins.check()
    (broken,) = plugins.broken
    assert (broken.name, broken.distribution) == ("unlucky", "bad-luck")
    with pytest.raises(PluginError, match=r"plugin 'unlucky' of bad-luck is broken.*" + reason):
        plugins.technique("unlucky_technique")
    assert "lucky_technique" in plugins.techniques
    assert_rest_works(plugins)


def test_the_rest_of_a_plugin_stays_when_one_answer_is_left_out(install: Install) -> None:
    code = HOOKED + "def zoopress_layers():\n    return 3\n\n"
    install("half-luck", "half", TECHNIQUE.format(name="still_there") + code)
    plugins = load_plugins()
    plugins.check()
    (broken,) = plugins.broken
    assert "its answer was left out: zoopress_layers: TypeError" in str(broken)
    assert "still_there" in plugins.techniques


def test_a_crash_names_the_distribution_whose_code_it_is_in(install: Install) -> None:
    install("bad-luck", "unlucky", "def fail():\n    return {}['x']")
    plugins = load_plugins()
    with pytest.raises(KeyError) as theirs:
        importlib.import_module("bad_luck_module").fail()
    said = plugins.crash(theirs.value)
    assert said is not None
    assert "a bug of the plugin 'unlucky' of bad-luck 1.2, not of zoopress" in said
    with pytest.raises(KeyError) as ours:
        plugins.layers["none"]
    assert plugins.crash(ours.value) is None


def test_a_distribution_without_metadata_does_not_take_the_others_down(install: Install) -> None:
    install("no-metadata", "bare", TECHNIQUE.format(name="bare_technique"), metadata=False)
    plugins = load_plugins()
    assert_rest_works(plugins)
    assert "bare_technique" in plugins.techniques


def test_of_two_plugins_of_one_name_the_second_is_left_out_alone(install: Install) -> None:
    install("dist-one", "same", TECHNIQUE.format(name="one"))
    install("dist-two", "same", TECHNIQUE.format(name="two"))
    plugins = load_plugins()
    (left_out,) = plugins.broken
    assert left_out.distribution == "dist-two"
    assert re.search(r"dist-one is called 'same' too.*rename", str(left_out))
    assert "one" in plugins.techniques
    assert "two" not in plugins.techniques
    assert_rest_works(plugins)


def test_one_distribution_found_twice_counts_once(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("dist-one", "one", TECHNIQUE.format(name="one"))
    link = tmp_path / "again"
    link.symlink_to(tmp_path / "site")
    monkeypatch.syspath_prepend(str(link))
    assert "one" in load_plugins().techniques


def folder_hook(kind: str, folder: Path) -> SimpleNamespace:
    hook = hookimpl(lambda: [folder], specname=f"zoopress_{kind}")
    return SimpleNamespace(hook=hook)


def mapping_hook(kind: str) -> SimpleNamespace:
    return SimpleNamespace(
        hook=hookimpl(lambda: {"taken": "json:loads"}, specname=f"zoopress_{kind}")
    )


@pytest.mark.parametrize("kind", get_args(Registry))
def test_a_name_that_two_plugins_register_goes_to_the_first(kind: Registry) -> None:
    both = {"first": mapping_hook(kind), "second": mapping_hook(kind)}
    plugins = load_plugins(extra=both)
    for _ in range(2):  # the second time must not be taken for a plugin's clash with itself
        plugins.check()
        (clash,) = plugins.clashes
        assert (clash.plugin, clash.name) == ("second", "taken")
        assert re.search(r"'taken' was left out, since 'first'.*BLOCK_PLUGINS=first", str(clash))
    assert "taken" in plugins.references[kind]
    assert_rest_works(plugins)
    for blocked in ("first", "second"):
        remedied = load_plugins([blocked], both)
        remedied.check()
        assert not remedied.clashes
        assert "taken" in remedied.references[kind]


@pytest.mark.parametrize("kind", ["cards", "recipes"])
def test_a_file_name_that_two_plugins_bring_goes_to_the_first(kind: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "taken.yaml").touch()
    both = {name: folder_hook(kind, tmp_path / name) for name in ("one", "two")}
    plugins = load_plugins(extra=both)
    plugins.check()
    assert getattr(plugins, kind)["taken"] == tmp_path / "one" / "taken.yaml"
    assert [clash.plugin for clash in plugins.clashes] == ["two"]


@pytest.mark.parametrize("first", ["tryfirst", "trylast"])
def test_who_asks_to_be_called_first_takes_no_name_by_that(first: str) -> None:
    def plugin(reference: str, **options: bool) -> SimpleNamespace:
        return SimpleNamespace(
            hook=hookimpl(lambda: {"taken": reference}, specname="zoopress_gates", **options)
        )

    both = {"senior": plugin("json:loads"), "pushy": plugin("json:dumps", **{first: True})}
    plugins = load_plugins(extra=both)
    assert plugins.references["gates"]["taken"] == "json:loads"
    assert [clash.plugin for clash in plugins.clashes] == ["pushy"]


def test_who_takes_a_technique_name_of_zoopress_goes_without(install: Install) -> None:
    install("a-copy-cat", "a_copycat", TECHNIQUE.format(name="magnitude_pruning"))
    plugins = load_plugins()
    assert plugins.techniques["magnitude_pruning"].__module__.startswith("zoopress_plugins.")
    (clash,) = plugins.clashes
    assert (clash.distribution, clash.name) == ("a-copy-cat", "magnitude_pruning")
    assert_rest_works(plugins)


def test_a_plugin_that_registers_a_technique_twice_is_told(install: Install) -> None:
    code = TECHNIQUE.format(name="double").replace("[Mine]", "[Mine, Mine]")
    install("double-dist", "double", code)
    plugins = load_plugins()
    assert "double" in plugins.techniques
    (clash,) = plugins.clashes
    assert re.search(r"'double' of double-dist: .* 'double' twice", str(clash))


@pytest.mark.parametrize(
    ("kind", "reference", "expected"),
    [
        ("layers", "json:JSONDecoder", "torch.nn.Module"),
        ("tasks", "json:loads", "zoopress.tasks.Task"),
        ("architectures", "json:JSONDecoder", "zoopress.sources.Architecture"),
        ("gates", "json:__name__", "a function"),
    ],
)
def test_what_is_not_of_its_hooks_type_is_refused(
    kind: Registry, reference: str, expected: str
) -> None:
    hook = hookimpl(lambda: {"mine": reference}, specname=f"zoopress_{kind}")
    plugins = load_plugins(extra={"extra": SimpleNamespace(hook=hook)})
    with pytest.raises(PluginError, match=rf"'mine' of plugin 'extra'.*expected.*{expected}"):
        plugins.resolve(kind, "mine")


def test_any_plugin_can_be_blocked(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("third-party", "third", "raise AssertionError('a blocked plugin is never imported')")
    assert names(load_plugins(["third"])) == set()
    monkeypatch.setenv("ZOOPRESS_BLOCK_PLUGINS", " third , magnitude_pruning,,")
    plugins = load_plugins()
    assert names(plugins) == set()
    assert plugins.blocked == {"third", "magnitude_pruning"}
    with pytest.raises(PluginError, match="plugin 'magnitude_pruning' is blocked"):
        plugins.technique("magnitude_pruning")


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("no_such_module_anywhere:x", "No module named 'no_such_module_anywhere'"),
        ("json:no_such_attribute", "no_such_attribute"),
        ("json:", "has no attribute"),
        ("crashing_module:x", "ZeroDivisionError"),
    ],
)
def test_a_reference_that_cannot_be_imported_names_its_plugin(
    reference: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashing_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    hook = hookimpl(lambda: {"mine": reference}, specname="zoopress_layers")
    plugins = load_plugins(extra={"extra": SimpleNamespace(hook=hook)})
    with pytest.raises(PluginError, match=rf"'mine' of plugin 'extra' of \(not inst.*{reason}"):
        plugins.resolve("layers", "mine")
    with pytest.raises(PluginError, match="Did you mean 'mine'"):
        plugins.resolve("layers", "mien")


def test_every_registered_reference_can_be_imported(plugins: Plugins) -> None:
    for kind, mapping in plugins.references.items():
        for name in mapping:
            assert callable(plugins.resolve(kind, name))  # type: ignore[arg-type]
