"""The example tracker, installed like a stranger's, hears of runs from the command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zoopress.testing import tiny_card

pytest.importorskip("mlflow", reason="the example needs mlflow-skinny, of the dependency group dev")
pytest.importorskip("sqlalchemy", reason="MLflow needs it to write into a file")

EXAMPLE = Path(__file__).parents[1] / "examples" / "zoopress-mlflow"
PARAMS = """
recipes:
  good: {stages: [{technique: magnitude_pruning, sparsity: 0.5}, {technique: entropy_coding}]}
  bad:
    stages: [{technique: magnitude_pruning, sparsity: 0.5}]
    targets: {min_cosine: 0.999999}
"""


def python(site: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with what is installed in `site`, too."""
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=site.parent,
        env={**environment, **more},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example into a folder, with the setuptools that torch brings."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(EXAMPLE, folder / "source")
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet")
    source, target = str(folder / "source"), str(folder / "site")
    done = python(folder / "site", "-m", "pip", "install", *options, "--target", target, source)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_its_own_tests_pass_where_it_is_installed(site: Path) -> None:
    test = EXAMPLE / "test_tracker.py"
    # The example's own settings: what MLflow deprecates is no fault of the example.
    settings = ("-c", str(EXAMPLE / "pyproject.toml"))
    options = (*settings, "-q", "-p", "no:cacheprovider", "--import-mode=importlib")
    done = python(site, "-m", "pytest", *options, str(test))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


@pytest.mark.slow
def test_a_zoo_runs_cells_are_runs_below_its_own(site: Path, tmp_path: Path) -> None:
    card = tiny_card("cnn", tmp_path)
    (tmp_path / "card.yaml").write_text(card.model_dump_json(exclude_none=True))
    (tmp_path / "params.yaml").write_text(PARAMS)
    files = ("--cards", f"{tmp_path}/card.yaml", "--recipes", f"{tmp_path}/params.yaml#recipes")
    out = ("--out", str(tmp_path / "out"), "--store", str(tmp_path / "store"), "-j", "1")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    more = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": "mine"}
    done = python(site, "-m", "zoopress", "zoo", "run", *files, *out, **more)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "observer failed" not in done.stderr
    read = """if True:
        import json, os, sys
        from mlflow import MlflowClient
        client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
        runs = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
        print(json.dumps([run.to_dictionary() for run in runs]))
    """
    found = json.loads(python(site, "-c", read, **more).stdout)
    runs = {run["info"]["run_name"]: run for run in found}
    assert {name: run["info"]["status"] for name, run in runs.items()} == {
        "zoo run of 2 cells": "FAILED",
        "tiny-cnn × good": "FINISHED",
        "tiny-cnn × bad": "FAILED",
    }
    above = runs["zoo run of 2 cells"]["info"]["run_id"]
    for name in ("good", "bad"):
        assert runs[f"tiny-cnn × {name}"]["data"]["tags"]["mlflow.parentRunId"] == above
    assert "final.cosine" in runs["tiny-cnn × good"]["data"]["metrics"]
