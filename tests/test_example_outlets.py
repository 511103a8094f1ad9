"""The example with a runtime, an exporter, a coder and a command, installed like a stranger's."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zoopress.testing import tiny_card

EXAMPLE = Path(__file__).parents[1] / "examples" / "zoopress-outlets"
RECIPE = """\
stages:
  - technique: weight_quantization
    bits: 4
  - technique: entropy_coding
    coder: lzma
"""


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with what is installed in `site`, too."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(site),
        "OMP_NUM_THREADS": "1",
        "ZOOPRESS_CACHE": str(site.parent / "cache"),
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source")
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet")
    source, target = str(folder / "source"), str(folder / "site")
    done = python(folder, "-m", "pip", "install", *options, "--target", target, source)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def run(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compress a model by a recipe that names the coder, and return the folder of it all."""
    folder = tmp_path_factory.mktemp("run")
    card = tiny_card("cnn", folder)
    (folder / "card.yaml").write_text(card.model_dump_json(exclude_none=True))
    (folder / "recipe.yaml").write_text(RECIPE)
    files = str(folder / "card.yaml"), str(folder / "recipe.yaml")
    out, store = str(folder / "out"), str(folder / "store")
    done = python(site, "-m", "zoopress", "run", *files, "--out", out, "--store", store)
    assert done.returncode == 0, done.stderr
    return folder


def test_its_own_tests_pass_where_it_is_installed(site: Path) -> None:
    options = ("-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib")
    done = python(site, "-m", "pytest", *options, str(EXAMPLE / "test_outlets.py"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_its_runtime_evaluates_what_its_coder_coded(site: Path, run: Path) -> None:
    artifact, card = str(run / "out" / "artifact"), str(run / "card.yaml")
    options = ("--runtime", "exported_program", "--json")
    done = python(site, "-m", "zoopress", "evaluate", artifact, card, *options)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["runtime"] == "exported_program"
    assert figures["runtime_difference"] < 0.1
    (kept,) = (site.parent / "cache" / "runtimes" / "exported_program").glob("*/model.pt2")
    written = kept.stat().st_mtime_ns
    done = python(site, "-m", "zoopress", "evaluate", artifact, card, *options)
    assert done.returncode == 0, done.stderr
    assert kept.stat().st_mtime_ns == written  # taken from the cache the second time


def test_without_it_the_coder_its_distribution_and_the_remedy_are_named(run: Path) -> None:
    artifact, card = str(run / "out" / "artifact"), str(run / "card.yaml")
    done = python(run, "-m", "zoopress", "evaluate", artifact, card)
    assert done.returncode == 1
    assert "'lzma'" in done.stderr
    assert "pip install 'zoopress-outlets>=" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_it_a_recipe_with_its_coder_is_refused_at_its_line(run: Path) -> None:
    files = str(run / "card.yaml"), str(run / "recipe.yaml")
    done = python(run, "-m", "zoopress", "plan", *files)
    assert done.returncode == 1
    assert "recipe.yaml:5: coder: no plugin registers it under 'entropy_coders'" in done.stderr
    assert "Valid: adaptive, auto, huffman, static." in done.stderr


def test_its_exporter_writes_from_the_command_line(site: Path, run: Path) -> None:
    artifact, card = str(run / "out" / "artifact"), str(run / "card.yaml")
    out = str(run / "arrays")
    options = ("--to", "numpy", "--out", out, "--card", card, "--json")
    done = python(site, "-m", "zoopress", "export", artifact, *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["files"] == [f"{out}/weights.npz"]
    assert result["difference"] <= result["bound"]


def test_its_command_is_listed_and_runs(site: Path, run: Path) -> None:
    listed = python(site, "-m", "zoopress", "--help").stdout
    assert "integers" in listed
    assert "Show which integers and scales" in listed
    artifact, card = str(run / "out" / "artifact"), str(run / "card.yaml")
    done = python(site, "-m", "zoopress", "integers", artifact, card, "--most", "1")
    assert done.returncode == 0, done.stderr
    assert "4 bits" in done.stdout


def test_its_coder_encodes_and_decodes_a_checkpoint(site: Path, tmp_path: Path) -> None:
    tensor = torch.arange(5000).remainder(7).to(torch.int8).view(50, 100)
    save_file({"weight": tensor}, tmp_path / "model.safetensors")
    original = (tmp_path / "model.safetensors").read_bytes()
    command = ("-m", "zoopress", "encode", str(tmp_path / "model.safetensors"), "--coder", "lzma")
    done = python(site, *command)
    assert done.returncode == 0, done.stderr
    coded = (tmp_path / "model.zpz").read_bytes()
    assert coded[4] == 3
    assert len(coded) < 300
    done = python(site, "-m", "zoopress", "decode", str(tmp_path / "model.zpz"), "--force")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.safetensors").read_bytes() == original
