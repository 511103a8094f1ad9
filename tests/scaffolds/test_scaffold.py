"""`zoopress plugin new` writes a plugin that installs, passes its own test and can be run."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from warm import WarmProcess
from zoopress.commands.plugin import FamilyName
from zoopress.errors import InputError
from zoopress.plugins import load_plugins
from zoopress.scaffolds.plugin import plugin_files, write_plugin
from zoopress.techniques import Family


def python(
    *arguments: str, path: Path | None = None, program: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run this Python with what is in `path` installed, too."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def install(folder: Path, target: Path) -> None:
    """Install a plugin for real, with the setuptools that torch brings, and without a network."""
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet")
    python("-m", "pip", "install", *options, "--target", str(target), str(folder))


def test_the_written_plugin_installs_and_passes_its_own_test(
    tmp_path: Path, warm: WarmProcess
) -> None:
    folder = write_plugin("row_rounding", tmp_path / "row-rounding")
    assert sorted(path.name for path in folder.iterdir()) == [
        "pyproject.toml",
        "row_rounding.py",
        "test_row_rounding.py",
    ]
    install(folder, tmp_path / "site")
    listed = python("-m", "zoopress", "techniques", path=tmp_path / "site")
    assert "row_rounding" in listed.stdout
    done = python(
        *("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"),
        str(folder / "test_row_rounding.py"),
        path=tmp_path / "site",
        program=warm.python,
    )
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("family", get_args(Family))
def test_what_is_written_for_each_family_does_its_work_and_keeps_the_rules(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brief_evaluation: None
) -> None:
    name = f"my_{family}"
    folder = write_plugin(name, tmp_path / "plugin", family)
    modules = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("test_")}
    project = (folder / "pyproject.toml").read_text()
    [listed] = re.findall(r"^py-modules = (\[.*\])$", project, re.M)
    assert set(json.loads(listed)) == modules
    # As installed as `pip install -e` makes it, without the seconds that pip takes.
    info = folder / f"{name}-0.1.0.dist-info"
    info.mkdir()
    [points] = re.findall(r"^\[project.entry-points.zoopress\]\n(.*?)\n\n", project, re.M | re.S)
    (info / "entry_points.txt").write_text(f"[zoopress]\n{points}".replace('"', ""))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(folder))
    try:
        kind = load_plugins().technique(name)
        assert kind.family == family
        kind.config_type()  # so that `zoopress plugin check` needs no recipe
        importlib.import_module(f"test_{name}").test_it_conforms()
    finally:
        for module in (*modules, f"test_{name}"):
            sys.modules.pop(module, None)


@pytest.mark.parametrize("family", get_args(Family))
def test_what_is_written_is_well_formed(family: str) -> None:
    for file, text in plugin_files("row_pruning", family).items():
        assert not re.search(r"@[A-Z]+@", text), file
        assert all(len(line) <= 100 for line in text.splitlines())


def test_the_command_offers_every_family() -> None:
    assert tuple(family.value for family in FamilyName) == get_args(Family)


def test_a_family_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no family 'quantisation'.*'quantization'"):
        write_plugin("row_rounding", tmp_path / "new", "quantisation")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name", ["", "RowPruning", "row-pruning", "1st", "row__pruning", "_row", "class", "test_row"]
)
def test_a_name_that_is_no_snake_case_noun_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot name a technique.*row_pruning"):
        write_plugin(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_name_that_would_hide_another_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        write_plugin("json", tmp_path / "new")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        write_plugin("row_pruning", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        write_plugin("row_pruning", tmp_path / "taken")
