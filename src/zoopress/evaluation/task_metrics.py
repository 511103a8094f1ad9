"""The task's metrics of both models, with confidence intervals and a paired test."""

from __future__ import annotations

from typing import Any

from zoopress.evaluation.comparison import Comparison


def measure_task(comparison: Comparison) -> dict[str, Any]:
    """Return plain data for the report."""
    raise NotImplementedError
