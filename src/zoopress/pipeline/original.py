"""The original: what it makes of the test split."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from zoopress.errors import SourceError
from zoopress.evaluation.fidelity import Run, run_all
from zoopress.evaluation.repeatability import check_repeats
from zoopress.progress import Reporter
from zoopress.tasks import Task


def run_original(task: Task, module: nn.Module, reporter: Reporter) -> Run:
    """Run the original on the test split, and make sure that it can be compared with.

    Raises:
        SourceError: if its outputs are not finite, or are others each time.
    """
    name = task.card.name
    with reporter.step(f"running the original {name}") as progress:
        run = run_all(task, module, progress)
    if not run.finite:
        raise SourceError(
            f"The original {name} gives NaN or infinity on the card's data, so nothing can be "
            "compared with it. Check the card's 'data' and the weights."
        )
    if not check_repeats(task, module, run):
        return run
    reporter.line(
        f"the outputs of {name} are random; both models get the same seed, so that they are "
        "compared on the same numbers"
    )
    return replace(run, seeded=True)
