"""The example plugin, installed like a stranger's, works from the command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from warm import WarmProcess
from zoopress.testing import tiny_card

EXAMPLES = Path(__file__).parents[1] / "examples"
EXAMPLE = EXAMPLES / "zoopress-weight-sharing"
PARTS = EXAMPLES / "zoopress-criterion-loss-block"
RECIPE = """\
stages:
  - technique: magnitude_pruning
    sparsity: 0.6
  - technique: weight_sharing
    bits: 4
  - technique: entropy_coding
"""


def python(
    site: Path, *arguments: str, program: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    """Run this Python with what is installed in `site`, too."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(EXAMPLE, tmp_path_factory.mktemp("example"))


@pytest.fixture(scope="module")
def site_of_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(PARTS, tmp_path_factory.mktemp("parts"))


def installed(example: Path, folder: Path) -> Path:
    """Install an example into a folder, with the setuptools that torch brings."""
    # A copy: setuptools builds in the source folder.
    shutil.copytree(example, folder / "source")
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet")
    source, target = str(folder / "source"), str(folder / "site")
    done = python(folder, "-m", "pip", "install", *options, "--target", target, source)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_its_own_tests_pass_where_it_is_installed(site: Path, warm: WarmProcess) -> None:
    test = EXAMPLE / "test_weight_sharing.py"
    options = ("-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib")
    done = python(site, "-m", "pytest", *options, str(test), program=warm.python)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_recipe_with_it_runs_from_the_command_line(
    site: Path, tmp_path: Path, warm: WarmProcess
) -> None:
    card = tiny_card("transformer", tmp_path)
    (tmp_path / "card.yaml").write_text(card.model_dump_json(exclude_none=True))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    files = str(tmp_path / "card.yaml"), str(tmp_path / "recipe.yaml")
    out = tmp_path / "out"
    words = ("-m", "zoopress", "run", *files, "--json", "--out", str(out))
    done = python(site, *words, program=warm.python)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["compression_ratio"] > 4

    manifest = json.loads((out / "artifact" / "zoopress.json").read_text())
    packed = {edit["packing"] for edit in manifest["edits"] if edit["edit"] == "pack"}
    assert packed == {"weight_sharing"}
    assert manifest["lineage"][1]["distribution"] == "zoopress-weight-sharing"
    needed = {"kind": "layer", "name": "weight_sharing", "distribution": "zoopress-weight-sharing"}
    assert manifest["requires"] == [{**needed, "version": "0.1.0"}]
    page = (out / "artifact" / "README.md").read_text()
    assert "It needs zoopress 0.1.0 and zoopress-weight-sharing 0.1.0 or newer, from" in page

    code = f"import zoopress; zoopress.load({str(out / 'artifact')!r}, factory=dict)"
    for _ in range(2):
        done = python(tmp_path, "-c", code)
        assert "ArtifactError" in done.stderr
        assert "the layer 'weight_sharing' is not registered here" in done.stderr
        assert "zoopress-weight-sharing 0.1.0, which is not installed" in done.stderr
        assert "pip install 'zoopress-weight-sharing>=0.1.0'" in done.stderr
        # An artifact from before there were requirements tells by its lineage.
        manifest.pop("requires", None)
        (out / "artifact" / "zoopress.json").write_text(json.dumps(manifest))


def test_without_it_the_recipe_is_refused_and_its_absence_named(tmp_path: Path) -> None:
    card = tiny_card("transformer", tmp_path)
    (tmp_path / "card.yaml").write_text(card.model_dump_json(exclude_none=True))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    files = str(tmp_path / "card.yaml"), str(tmp_path / "recipe.yaml")
    done = python(tmp_path, "-m", "zoopress", "plan", *files)
    assert done.returncode == 1
    assert "There is no technique 'weight_sharing'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_plugin_check_finds_nothing_wrong_with_it(site: Path, tmp_path: Path) -> None:
    card = tiny_card("transformer", tmp_path)
    (tmp_path / "card.yaml").write_text(card.model_dump_json(exclude_none=True))
    words = ("plugin", "check", "zoopress-weight-sharing", "--card", str(tmp_path / "card.yaml"))
    done = python(site, "-m", "zoopress", *words, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads(done.stdout)["checks"]
    assert {check["state"] for check in checks} == {"passed"}
    assert {"technique weight_sharing", "plugin"} < {check["subject"] for check in checks}


def test_tests_of_the_criterion_the_loss_and_the_block_pass(site_of_parts: Path) -> None:
    test = PARTS / "test_criterion_loss_block.py"
    options = ("-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib")
    done = python(site_of_parts, "-m", "pytest", *options, str(test))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_recipe_of_their_page_runs_and_needs_only_the_layer_to_load(
    site_of_parts: Path, tmp_path: Path
) -> None:
    card = tiny_card("cnn", tmp_path, labelled=True)
    (tmp_path / "card.yaml").write_text(card.model_dump_json(exclude_none=True))
    readme = (PARTS / "README.md").read_text()
    recipe = readme.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "recipe.yaml").write_text(recipe)
    files = str(tmp_path / "card.yaml"), str(tmp_path / "recipe.yaml")
    out = tmp_path / "out"
    done = python(site_of_parts, "-m", "zoopress", "run", *files, "--json", "--out", str(out))
    assert done.returncode == 0, done.stderr

    manifest = json.loads((out / "artifact" / "zoopress.json").read_text())
    assert "spatially_separable_conv" in json.dumps(manifest["edits"])
    stages = json.loads((out / "report.json").read_text())["stages"]
    assert stages[1]["config"]["criterion"] == {"name": "filter_entropy", "bins": 8}
    assert stages[1]["recovery"]["losses"][0]["loss"] == "attention_maps"

    done = python(tmp_path, "-m", "zoopress", "plan", *files)
    assert done.returncode == 1
    assert "recipe.yaml:4: block: There is no block 'spatially_separable'" in done.stderr


def test_plugin_check_tries_criteria_and_losses_and_blocks(site_of_parts: Path) -> None:
    words = ("plugin", "check", "zoopress-criterion-loss-block", "--json")
    done = python(site_of_parts, "-m", "zoopress", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads(done.stdout)["checks"]
    assert {check["state"] for check in checks} == {"passed"}
    assert {"criterion filter_entropy", "loss attention_maps", "block spatially_separable"} < {
        check["subject"] for check in checks
    }
