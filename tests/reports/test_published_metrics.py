"""Task metrics on the Hub's page: in words, in the table, and for machines."""

from __future__ import annotations

import pytest
from huggingface_hub import ModelCard

from reports.samples import HOSTILE, labelled, unlabelled
from zoopress.plugins import Plugins
from zoopress.publishing.model_card import render_model_card


def test_the_page_has_the_metrics_with_their_intervals(plugins: Plugins) -> None:
    page = render_model_card(labelled(), "me/small", plugins=plugins)
    assert "On the test data: **accuracy 98.9 % → 98.6 % (−0.3 ± 0.2 points)**." in page
    assert "| accuracy | 98.9 % \\[98.2, 99.5\\] | 98.6 % \\[97.9, 99.2\\] |" in page
    assert "95 % confidence intervals" in page
    assert "No accuracy on labelled data" not in page
    assert "the test split of idx:mnist" in page


def test_the_metadata_has_each_metric_of_the_compressed_model(plugins: Plugins) -> None:
    data = ModelCard(render_model_card(labelled(), "me/small", plugins=plugins)).data
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values["accuracy"] == 0.986
    assert values["log_loss"] == 0.0533
    assert data.metrics[0] == "accuracy"
    assert "size_bytes" not in data.metrics


def test_without_labels_the_page_says_that_accuracy_is_unknown(plugins: Plugins) -> None:
    page = render_model_card(unlabelled(), "me/small", plugins=plugins)
    assert "No accuracy on labelled data was measured" in page
    assert "On the test data" not in page


@pytest.mark.parametrize("name", HOSTILE)
def test_a_metrics_name_is_only_text(name: str, plugins: Plugins) -> None:
    metric = {"original": 0.5, "compressed": 0.25, "difference": -0.25, "better": "higher"}
    found = {"samples": 9, "metric": name, "metrics": {name: metric}}
    page = render_model_card(labelled(evaluation={"task": found}), "me/small", plugins=plugins)
    assert ModelCard(page).data.eval_results[0].metric_value == 0.25
    said = [line for line in page.splitlines() if line.startswith(("| ", "**"))]
    assert any("0.25" in line or "25.0 %" in line for line in said)
    assert not any("<script>" in line or "<img" in line or "<b " in line for line in said)
    figures = [line for line in said if line.startswith("| ")][:10]
    assert {line.count("|") for line in figures} == {5}
