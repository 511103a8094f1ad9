"""Verbs of plugins: listed with their line, imported when used, and no harm to the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
from zoopress.plugins import Command, hookimpl

@hookimpl
def zoopress_commands():
    return {commands}
"""
VERB = """
from typing import Annotated
import typer

def complete(incomplete: str):
    return [name for name in ("alpha", "beta") if name.startswith(incomplete)]

def greet(name: Annotated[str, typer.Argument(autocompletion=complete)], loud: bool = False):
    "Greet somebody."
    from zoopress.errors import InputError
    if name == "nobody":
        raise InputError("There is nobody to greet. Name somebody.")
    print(f"hello {name}" + "!" * loud)

group = typer.Typer(help="Two greetings.", no_args_is_help=True)
group.command("one")(greet)

@group.command("two")
def second():
    print("second")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    plugins = {
        "greetings": (
            "{'greet': Command('verb:greet', 'Greet.'), "
            "'greetings': Command('verb:group', 'More.')}"
        ),
        "thief": "{'run': Command('verb:greet', 'Mine.'), 'greet': Command('verb:greet', 'Mine.')}",
        "wrecked": (
            "{'lost': Command('no_such_module:x', 'Lost.'), 'odd': Command('verb:VALUE', 'Odd.')}"
        ),
        "careless": "{'Bad Name': Command('verb:greet', 'Bad.')}",
        "untyped": "{'untyped': 'verb:greet'}",
    }
    (folder / "verb.py").write_text(VERB + "\nVALUE = 3\n")
    for name, commands in plugins.items():
        (folder / f"plugin_{name}.py").write_text(PLUGIN.format(commands=commands))
        info = folder / f"dist_{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[zoopress]\n{name} = plugin_{name}\n")
    return folder


def zoopress(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "zoopress", *arguments],
        env={**variables, **environment},
        capture_output=True,
        text=True,
    )


def test_help_lists_verbs_by_the_line_that_the_hook_gives_and_imports_none(site: Path) -> None:
    listed = zoopress(site, "--help")
    assert listed.returncode == 0, listed.stderr
    rows = dict(re.findall(r"│ ([a-z-]+) +(\S.*?) +│", listed.stdout))
    assert rows["greet"] == "Greet."
    assert rows["greetings"] == "More."
    assert rows["lost"] == "Lost."
    assert rows["run"].startswith("Compress a model")
    code = (
        "import sys; from zoopress.commands.cli import main; sys.argv = ['zoopress', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'verb' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0


def test_a_function_becomes_a_verb_with_arguments_and_help(site: Path) -> None:
    done = zoopress(site, "greet", "you", "--loud")
    assert done.stdout == "hello you!\n", done.stderr
    told = zoopress(site, "greet", "--help").stdout
    assert "Greet somebody." in told
    assert "zoopress greet" in told
    assert zoopress(site, "greet").returncode == 2


def test_an_app_becomes_a_verb_with_verbs(site: Path) -> None:
    assert zoopress(site, "greetings", "two").stdout == "second\n"
    assert zoopress(site, "greetings", "one", "you").stdout == "hello you\n"
    assert "Two greetings." in zoopress(site, "greetings", "--help").stdout


def test_a_users_mistake_in_it_shows_no_traceback(site: Path) -> None:
    done = zoopress(site, "greet", "nobody")
    assert done.returncode == 1
    assert done.stderr == "error: There is nobody to greet. Name somebody.\n"


@pytest.mark.parametrize(
    ("verb", "reason"), [("lost", "No module named 'no_such_module'"), ("odd", "got 3")]
)
def test_a_broken_one_is_told_when_it_is_called(verb: str, reason: str, site: Path) -> None:
    done = zoopress(site, verb)
    assert done.returncode == 1
    assert f"The command '{verb}' of plugin 'wrecked' of dist-wrecked cannot be used" in done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_who_claims_a_verb_that_is_there_goes_without_and_is_told(site: Path) -> None:
    warned = zoopress(site, "techniques").stderr
    assert "its command 'greet' was left out, since 'greetings' of dist-greetings has" in warned
    assert "its command 'run' was left out, since zoopress has a command of that name" in warned
    listed = zoopress(site, "plugin", "list").stdout
    assert re.search(r"^thief .*'run' was left out", listed, re.M)
    assert "Usage: python -m zoopress run" in zoopress(site, "run", "--help").stdout


def test_what_is_no_command_is_told_with_what_would_be(site: Path) -> None:
    listed = zoopress(site, "plugin", "list").stdout
    assert re.search(r"^careless .*broken: .*kebab-case.*'Bad Name'", listed, re.M)
    assert re.search(r"^untyped .*broken: .*expected zoopress.plugins.Command", listed, re.M)


def test_an_unknown_verb_is_a_mistake_of_the_user(site: Path) -> None:
    done = zoopress(site, "gret")
    assert done.returncode == 2
    assert "No such command" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [("zoopress gree", {"greet", "greetings"}), ("zoopress greet al", {"alpha"})],
)
def test_completion_knows_verbs_and_their_arguments(
    words: str, expected: set[str], site: Path
) -> None:
    code = "import sys; sys.argv[0] = 'zoopress'; from zoopress.commands.cli import main; main()"
    variables = {
        **os.environ,
        "PYTHONPATH": str(site),
        "_ZOOPRESS_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True
    )
    assert set(done.stdout.split()) == expected, done.stderr
