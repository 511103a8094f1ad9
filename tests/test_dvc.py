"""A zoo's repository with real git and real DVC: what runs again, what stays, what is shown."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import repository_tools
from repository_tools import attempt, command, commit_all
from warm import WarmProcess
from zoopress.plugins import load_plugins
from zoopress.recipes import load_recipe
from zoopress.scaffolds.zoo_files import TEMPLATES

ROOT = Path(__file__).parent.parent
PARAMS = """\
matrix:
  cards:
  - example
  recipes:
  - pruned
  - coded
recipes:
  pruned:
    stages:
    - technique: magnitude_pruning
      sparsity: 0.5
  coded:
    # a comment
    stages:
    - technique: weight_quantization
      bits: 4
    - technique: entropy_coding
"""

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture(scope="module", autouse=True)
def warm_commands(warm: WarmProcess) -> Iterator[None]:
    """What a shell or DVC calls `zoopress` need not import torch first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repository_tools, "TOOLS", (str(warm.folder), *repository_tools.TOOLS))
        yield


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new zoo with two recipes, computed and committed."""
    pytest.importorskip("dvc")
    folder = tmp_path_factory.mktemp("dvc") / "zoo"
    command(folder.parent, "zoopress", "init", str(folder), "--card", "example", store=folder)
    (folder / "params.yaml").write_text(PARAMS)
    assert command(folder, "dvc", "repro").count("Running stage") == 3
    commit_all(folder)
    return folder


@pytest.fixture
def zoo(computed: Path, tmp_path: Path) -> Path:
    """A copy of it, with its store."""
    folder = tmp_path / "zoo"
    shutil.copytree(computed, folder)
    shutil.copytree(computed.parent / "store", tmp_path / "store")
    return folder


def change(folder: Path, old: str, new: str, name: str = "params.yaml") -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def state(folder: Path) -> dict[str, bytes]:
    """Return every file of git and every result."""
    names = command(folder, "git", "ls-files").split()
    files = [folder / name for name in names] + sorted(folder.glob("models/*/*/artifact/*"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def figures(folder: Path, recipe: str) -> Any:
    return json.loads((folder / "models" / "example" / recipe / "metrics.json").read_text())


def shown_plots(page: Path) -> dict[str, Any]:
    """Return the Vega-Lite specifications in an HTML page of DVC's by their title."""
    specs = [json.loads(text) for text in re.findall(r"var spec = (\{.*\});", page.read_text())]
    return {spec["title"]["text"]: spec for spec in specs}


def test_one_parameter_moves_its_own_cells_and_is_seen_everywhere(zoo: Path) -> None:
    before = state(zoo)
    assert "up to date" in command(zoo, "dvc", "repro")
    assert state(zoo) == before

    # Somebody else, a scheduled flow say, computes the cell first.
    change(zoo, "bits: 4", "bits: 3")
    command(zoo, "zoopress", "run", "example", "params.yaml#recipes.coded", "--out", "elsewhere")
    printed = command(zoo, "dvc", "repro")
    assert "Running stage 'compress@example-coded'" in printed
    assert "nothing to compute" in printed
    assert "Running stage 'compress@example-pruned'" not in printed
    assert "Running stage 'plots'" in printed

    changed = json.loads(command(zoo, "dvc", "metrics", "diff", "--json"))
    difference = changed["models/example/coded/metrics.json"]["size_bytes"]
    assert difference["new"] < difference["old"]
    assert "models/example/pruned/metrics.json" not in changed
    [params] = json.loads(command(zoo, "dvc", "params", "diff", "--json")).values()
    assert params["recipes.coded.stages"]["new"].count("'bits': 3") == 1
    command(zoo, "dvc", "plots", "diff", "--out", "compared")
    for spec in shown_plots(zoo / "compared" / "index.html").values():
        assert {row["rev"] for row in spec["data"]["values"]} == {"HEAD", "workspace"}

    change(zoo, "bits: 3", "bits: 4")
    assert "nothing to compute" in command(zoo, "dvc", "repro")
    after = state(zoo)
    for name in ("metrics.json", "plots/layers.json", "artifact/zoopress.json"):
        path = f"models/example/coded/{name}"
        assert after[path] == before[path]


def test_a_change_of_the_environment_asks_the_store_about_every_cell(zoo: Path) -> None:
    before = state(zoo)
    command(zoo, "git", "commit", "--quiet", "--allow-empty", "-m", "something else")
    change(zoo, "torch==", "# torch==", "requirements.txt")
    printed = command(zoo, "dvc", "repro")
    assert printed.count("Running stage 'compress@") == 2
    assert printed.count("nothing to compute") == 2
    # What came out is the same, so reports still name the commit that they named before.
    after = state(zoo)
    names = {name for name in after if after[name] != before.get(name)}
    assert names == {"requirements.txt", "dvc.lock"}


def test_a_cell_that_fails_keeps_its_last_result_and_stops_no_other(zoo: Path) -> None:
    before = state(zoo)
    text = PARAMS.replace("bits: 4", "bits: 5").replace("sparsity: 0.5", "sparsity: 0.9")
    (zoo / "params.yaml").write_text(
        text.replace("  coded:", "    targets: {min_cosine: 0.999}\n  coded:")
    )
    done = attempt(zoo, "dvc", "repro", "--keep-going")
    assert done.returncode != 0
    assert "did not pass the gate 'fidelity_kept'" in done.stdout + done.stderr
    after = state(zoo)
    kept = {n: v for n, v in after.items() if n.startswith("models/example/pruned/")}
    assert kept == {n: v for n, v in before.items() if n.startswith("models/example/pruned/")}
    assert after["models/example/coded/report.json"] != before["models/example/coded/report.json"]
    status = json.loads(command(zoo, "dvc", "status", "--json"))
    assert "compress@example-pruned" in status
    assert "compress@example-coded" not in status


@pytest.mark.slow
def test_an_experiment_changes_one_stage_of_a_recipe(zoo: Path) -> None:
    command(zoo, "dvc", "exp", "run", "--name", "few", "-S", "recipes.coded.stages.0.bits=2")
    assert figures(zoo, "coded")["cosine"] < 0.99
    difference = command(zoo, "git", "diff", "params.yaml")
    assert re.findall(r"^[-+] .*", difference, re.MULTILINE) == ["-      bits: 4", "+      bits: 2"]
    shown = json.loads(command(zoo, "dvc", "exp", "show", "--json"))
    assert "few" in json.dumps(shown)
    # The parameter is not in brackets, whatever one may have read.
    done = attempt(zoo, "dvc", "exp", "run", "-S", "recipes.coded.stages[0].bits=2")
    assert done.returncode != 0


@pytest.mark.slow
def test_queued_experiments_run_side_by_side(zoo: Path) -> None:
    for bits in (2, 3):
        setting = f"recipes.coded.stages.0.bits={bits}"
        command(zoo, *("dvc", "exp", "run", "--queue", "--name", f"bits-{bits}", "-S", setting))
    command(zoo, "dvc", "exp", "run", "--run-all", "-j", "2")
    sizes = []
    for bits in (2, 3):
        command(zoo, "dvc", "exp", "apply", f"bits-{bits}")
        sizes.append(figures(zoo, "coded")["size_bytes"])
        assert "up to date" in command(zoo, "dvc", "status")
    assert sizes[0] < sizes[1]


def test_charts_show_all_cells(zoo: Path) -> None:
    command(zoo, "dvc", "plots", "show", "--out", "shown")
    plots = shown_plots(zoo / "shown" / "index.html")
    assert set(plots) == {"Fidelity against bytes", "Sensitivity of layers", "Time of stages"}
    assert "<DVC_METRIC" not in json.dumps(plots)

    rows = plots["Fidelity against bytes"]["data"]["values"]
    assert [(row["recipe"], row["technique"]) for row in rows] == [
        ("coded", "weight_quantization"),
        ("coded", "entropy_coding"),
        ("pruned", "magnitude_pruning"),
    ]
    for recipe in ("coded", "pruned"):
        last = [row for row in rows if row["recipe"] == recipe][-1]
        assert last["size_bytes"] == figures(zoo, recipe)["size_bytes"]
        assert last["cosine"] == pytest.approx(figures(zoo, recipe)["cosine"], abs=1e-6)
    layers = plots["Sensitivity of layers"]["data"]["values"]
    assert {row["name"] for row in layers} == {"0.weight", "2.weight"}
    assert all(0 < row["sensitivity"] < 1 for row in layers)


def workflow_steps(folder: Path) -> list[str]:
    jobs = yaml.safe_load((folder / ".github" / "workflows" / "zoo.yml").read_text())["jobs"]
    return [step["run"] for step in jobs["zoo"]["steps"] if "run" in step]


def test_models_are_shared_and_fetched_elsewhere_without_computing(
    zoo: Path, tmp_path: Path
) -> None:
    assert command(zoo, "git", "status", "--porcelain") == ""
    before, artifacts = state(zoo), set(zoo.glob("models/*/*/artifact"))
    again = json.loads(command(zoo, "zoopress", "init", "--json", "--remote", "../remote"))
    assert set(again["files"].values()) == {"there"}
    assert again["remote"] == str(tmp_path / "remote")
    changed = command(zoo, "git", "show", "--name-only", "--format=").split()
    assert changed == [".dvc/config"]
    assert json.loads(command(zoo, "zoopress", "init", "--json"))["commit"] is None
    command(zoo, "dvc", "push")

    clone, empty = tmp_path / "clone", tmp_path / "empty-store"
    command(tmp_path, "git", "clone", "--quiet", "zoo", "clone")
    command(clone, "dvc", "pull", store=empty)
    assert len(artifacts) == 2
    expected = {**before, ".dvc/config": (zoo / ".dvc/config").read_bytes()}
    assert state(clone) == expected

    # What the workflow runs in CI, on a fresh machine.
    for folder in (*clone.glob("models/*/*/artifact"), clone / ".dvc/cache"):
        shutil.rmtree(folder)
    install, *steps = workflow_steps(clone)
    assert install == "pip install -r requirements.txt"
    for step in steps:
        summary = f"GITHUB_STEP_SUMMARY={tmp_path}/summary.md"
        printed = command(clone, "env", summary, "bash", "-euc", step, store=empty)
        assert "Running stage" not in printed
    assert state(clone) == expected
    assert command(clone, "git", "status", "--porcelain") == ""
    assert not empty.exists() or not list(empty.glob("entries/*"))


def test_plots_of_a_folder_without_results_say_what_is_expected(zoo: Path) -> None:
    done = attempt(zoo, "zoopress", "zoo", "plots", "cards")
    assert done.returncode == 1
    assert "expected cards/CARD/RECIPE/report.json" in done.stderr
    (zoo / "models" / "example" / "coded" / "report.json").write_text("{}")
    done = attempt(zoo, "zoopress", "zoo", "plots", "models")
    assert done.returncode == 1
    assert "models/example/coded/report.json is no report" in done.stderr


def test_this_projects_pipeline_is_the_one_of_a_new_zoo() -> None:
    ours, new = (
        yaml.safe_load(path.read_text()) for path in (ROOT / "dvc.yaml", TEMPLATES / "dvc.yaml")
    )
    dependencies = ours["stages"]["compress"].pop("deps")
    del new["stages"]["compress"]["deps"]
    assert ours == new
    for card in yaml.safe_load((ROOT / "params.yaml").read_text())["matrix"]["cards"]:
        assert all((ROOT / path.replace("${item.card}", card)).exists() for path in dependencies)
    for template in (TEMPLATES / "plots").iterdir():
        assert (ROOT / ".dvc" / "plots" / template.name).read_bytes() == template.read_bytes()


@pytest.mark.skipif(shutil.which("dvc") is None, reason="needs the extra 'versions'")
def test_dvc_reads_this_project_as_it_is_cloned(tmp_path: Path) -> None:
    for folder in ("src", "plugins", "zoo", "flows", ".dvc/plots"):
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skipped)
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", "constraints.txt", ".dvc/config"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    command(tmp_path, "git", "init", "--quiet")
    printed = command(tmp_path, "dvc", "repro", "--dry", "compress")
    for recipe in ("hybrid", "small"):
        assert f"Running stage 'compress@minilm-{recipe}'" in printed


def test_the_matrix_and_the_shipped_recipe_are_one_and_the_same_cell() -> None:
    plugins = load_plugins()
    shipped = load_recipe("hybrid", plugins).as_dict()
    ours = load_recipe(f"{ROOT / 'params.yaml'}#recipes.hybrid", plugins).as_dict()
    for key in ("seed", "stages", "targets"):
        assert ours[key] == shipped[key]
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(params["matrix"]["recipes"]) <= set(params["recipes"])
    assert set(params["matrix"]["cards"]) <= set(plugins.cards)
