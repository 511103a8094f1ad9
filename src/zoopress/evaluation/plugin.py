"""Register what reports can measure."""

from __future__ import annotations

from zoopress.plugins import hookimpl


@hookimpl
def zoopress_measures() -> dict[str, str]:
    """Register the measures of the evaluation standard."""
    return {
        "computation": "zoopress.evaluation.computation:measure",
        "memory": "zoopress.evaluation.memory:measure",
        "runtimes": "zoopress.evaluation.runtimes:measure",
        "robustness": "zoopress.evaluation.robustness:measure",
        "fairness": "zoopress.evaluation.fairness:measure",
        "explanations": "zoopress.evaluation.explanations:measure",
        "energy": "zoopress.evaluation.energy:measure",
    }
