"""What docs/write-a-plugin.md shows works as it stands there."""

import json
import re
from pathlib import Path

import pytest

from page_packages import blocks_of, files_of, install_page, python
from warm import WarmProcess
from zoopress.plugins import HookSpecs
from zoopress.testing import tiny_card

PAGE = Path(__file__).parents[1] / "docs" / "write-a-plugin.md"
BLOCKS = blocks_of(PAGE)
FILES = files_of(PAGE)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page's files and install them like anyone would, but without a network."""
    return install_page(PAGE, tmp_path_factory.mktemp("page"))


def test_every_python_block_is_a_file_of_the_package() -> None:
    blocks = [content for language, content in BLOCKS if language == "python"]
    assert len(blocks) == sum(name.endswith(".py") for name in FILES) == 7
    assert all(content.startswith("# file: ") for content in blocks)


def test_the_pages_own_tests_pass(installed: Path, warm: WarmProcess) -> None:
    options = ("-q", "-W", "error", "-p", "no:cacheprovider", "--import-mode=importlib")
    done = python(
        installed, "-m", "pytest", *options, "source/test_tutorial.py", program=warm.python
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_its_techniques_gate_source_and_observer_run_from_the_command_line(
    installed: Path, tmp_path: Path, warm: WarmProcess
) -> None:
    card = tiny_card("cnn", tmp_path / "shelf").model_dump(exclude_none=True)
    card["source"] = "shelf:cnn"
    (tmp_path / "card.yaml").write_text(json.dumps(card))
    stages = ["input_norm_pruning", "ternary_weights", "entropy_coding"]
    gates = ["cosine_positive", {"gate": "pruned_at_most", "share": 0.95}]
    recipe = {"gates": gates, "stages": [{"technique": name} for name in stages]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    files = str(tmp_path / "card.yaml"), str(tmp_path / "recipe.yaml")
    out = str(tmp_path / "out")
    words = ("-m", "zoopress", "run", *files, "--out", out, "--json")
    done = python(installed, *words, program=warm.python)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stderr.splitlines() if "observed" in line] == stages
    assert json.loads(done.stdout)["compression_ratio"] > 8
    recipe["gates"][1]["share"] = 0
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    done = python(installed, "-m", "zoopress", "run", *files, "--out", out)
    assert done.returncode == 1
    assert "did not pass the gate 'pruned_at_most'" in done.stderr
    assert "observed" not in done.stderr  # it failed at the first of them


def test_a_plugin_is_left_out_when_it_is_blocked(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOPRESS_BLOCK_PLUGINS", "more_hooks")
    listed = python(installed, "-m", "zoopress", "plugin", "list").stdout
    assert re.search(r"^more_hooks +blocked$", listed, re.M)
    assert re.search(r"^ternary_weights +zoopress-tutorial 0\.1\.0 +loaded$", listed, re.M)


def test_every_hook_is_on_the_page() -> None:
    hooks = [name for name in vars(HookSpecs) if name.startswith("zoopress_")]
    text = PAGE.read_text(encoding="utf-8")
    assert hooks
    assert [name for name in hooks if f"`{name}" not in text] == []
