"""What happens in zoopress arrives in MLflow, and nothing unless it is asked for."""

import json
import sys
from pathlib import Path

import pytest
import zoopress_mlflow

from zoopress.errors import GateError
from zoopress.pipeline.compress import compress
from zoopress.plugins import load_plugins
from zoopress.recipes import load_recipe
from zoopress.store import Store
from zoopress.testing import tiny_card

STAGES = """
stages:
  - {technique: magnitude_pruning, sparsity: 0.5}
  - {technique: entropy_coding}
"""


def run(folder, recipe=STAGES):
    plugins = load_plugins()
    assert "mlflow" in plugins.origins
    (folder / "small.yaml").write_text(recipe)
    card = tiny_card("cnn", folder)
    chain = load_recipe(str(folder / "small.yaml"), plugins)
    return compress(card, chain, folder / "out", Store(folder / "store"), plugins)


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """Return a function that gives the runs of MLflow, oldest first."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)

    def runs():
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("zoopress").experiment_id
        return client, client.search_runs([experiment], order_by=["attributes.start_time ASC"])

    return runs


def test_without_an_address_nothing_is_tracked_or_imported(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = {name for name in sys.modules if name.startswith("mlflow")}
    run(tmp_path)
    assert {name for name in sys.modules if name.startswith("mlflow")} == before
    assert zoopress_mlflow.tracker.open() is None


def test_params_metrics_tags_and_the_report_arrive(tmp_path, tracked):
    made = run(tmp_path)
    run(tmp_path)
    client, (first, second) = tracked()
    assert (first.info.status, second.info.status) == ("FINISHED", "FINISHED")
    assert first.info.run_name == "tiny-cnn × small"
    assert first.data.params["stage_1.technique"] == "magnitude_pruning"
    assert float(first.data.params["stage_1.sparsity"]) == 0.5
    assert first.data.params["recipe.name"] == "small"

    history = client.get_metric_history(first.info.run_id, "cosine")
    expected = [stage.fidelity.cosine for stage in made.report.stages]
    assert [(point.step, point.value) for point in history] == [*enumerate(expected, start=1)]
    for tracked_run, computed in ((first, 1), (second, 0)):
        points = client.get_metric_history(tracked_run.info.run_id, "computed")
        assert [point.value for point in points] == [computed, computed]
    assert first.data.metrics["final.size_bytes"] == made.report.last.size_bytes

    keys = [first.data.tags[f"zoopress.key.{i}"] for i in (1, 2)]
    assert [*keys, first.data.tags["zoopress.report_key"]] == made.report.store_keys
    names = {item.path for item in client.list_artifacts(first.info.run_id)}
    assert names == {"report.json", "report.md", "metrics.json"}
    report = client.download_artifacts(first.info.run_id, "report.json", str(tmp_path))
    assert json.loads(Path(report).read_text()) == made.report.as_dict()


def test_a_failure_arrives_with_what_was_measured(tmp_path, tracked):
    with pytest.raises(GateError):
        run(tmp_path, STAGES + "targets: {min_cosine: 0.999999}\n")
    _, [failed] = tracked()
    assert failed.info.status == "FAILED"
    assert failed.data.tags["zoopress.failed_stage"] == "1 magnitude_pruning"
    assert "min_cosine" in failed.data.tags["zoopress.error"]
    assert failed.data.metrics["cosine"] < 0.999999
    assert "final.cosine" not in failed.data.metrics
