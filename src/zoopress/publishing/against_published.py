"""The gate against the last published model: a new one may not be worse unasked.

A recipe's targets say what is good enough; what is online may be much better than that, and its
users have come to rely on it. So what would replace it is held to the figures on its page: how much
worse than the original the task's metric is, where there are labels, and else how like the
original's the outputs are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoopress.errors import GateError
from zoopress.hub.client import Hub, RemoteModel
from zoopress.results import Report
from zoopress.results.figures import mapping, metric_of_figures, number

MARGIN = 0.005
"""How much worse a figure may be, as a share of the original's: as much as measuring it varies."""
ROLLED_BACK = "Rolled back from the model with zoopress.json "
"""Begins the line of a commit's description that says what it took back."""


def refuse_worse(hub: Hub, report: Report, repo_id: str, branch: str, margin: float) -> None:
    """Refuse to replace a published model by one that is worse, or that was taken back.

    Args:
        hub: where it is published.
        report: of the model that shall take its place.
        repo_id: where to.
        branch: which version of it.
        margin: how much worse it may be, as a share of the original's figure.

    Raises:
        GateError: with both figures, and what to do.
        HubError: if the Hub cannot tell what is published.
    """
    published = hub.find(repo_id, branch)
    if published is None:
        return
    _refuse_taken_back(hub, report, published, branch)
    data = mapping(published.card.get("zoopress"))
    words = worse(report, mapping(data.get("metrics")), margin)
    if words:
        was = data.get("recipe")
        raise GateError(
            f"{report.name} is not published: {words} than that of the model which is in {repo_id}"
            f"{f' (recipe {was})' if was else ''}, and would take its place. Publish it under "
            "another name or on another branch; or replace the better one all the same with "
            "--allow-worse (in params.yaml: publish: {allow_worse: true})."
        )


def worse(report: Report, published: Mapping[str, Any], margin: float) -> str:
    """Say in what a model is worse than a published one, "" if in nothing.

    Args:
        report: of the model.
        published: figures of the other, as `Report.metrics` gives them.
        margin: how much worse it may be, as a share of the original's figure.
    """
    figures = report.metrics()
    # One sample more or less says nothing.
    sample = 1.5 / max(1, report.last.fidelity.samples)
    metric, before = metric_of_figures(figures), metric_of_figures(published)
    if metric is not None and before is not None and metric.name == before.name:
        drop, was = number(figures[f"{metric.name}_drop"]), number(published[f"{metric.name}_drop"])
        allowed = max(margin, sample) * abs(metric.original or 1.0)
        if drop is not None and was is not None and drop - was > allowed:
            return (
                f"its {metric.name} is {metric.compressed:.4g}, {drop - was:.4g} worse "
                f"({before.compressed:.4g})"
            )
        return ""
    for name, allowed in (("cosine", margin), ("label_loyalty", max(margin, sample))):
        value, was = number(figures.get(name)), number(published.get(name))
        if value is not None and was is not None and was - value > allowed:
            return f"its {name.replace('_', ' ')} is {value:.4f}, {was - value:.4f} less"
    return ""


def _refuse_taken_back(hub: Hub, report: Report, published: RemoteModel, branch: str) -> None:
    last = hub.call(
        f"asking what was committed to {published.repo_id}",
        lambda: hub.api.list_repo_commits(published.repo_id, revision=branch),
        published.repo_id,
    )
    if last and ROLLED_BACK + report.artifact_sha256 in (last[0].message or ""):
        raise GateError(
            f"{report.name} is not published: {published.repo_id} was rolled back from this very "
            f"model ({last[0].title}). Publish another one; or bring it back all the same with "
            "--allow-worse."
        )
