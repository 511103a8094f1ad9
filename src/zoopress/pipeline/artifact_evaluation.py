"""Compare an artifact with its card's original, apart from any run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoopress.artifacts.artifact import load_artifact
from zoopress.artifacts.manifest import size_bytes
from zoopress.cards import Card
from zoopress.cells.cell import open_original
from zoopress.evaluation.comparison import Comparison
from zoopress.evaluation.evaluate import evaluate
from zoopress.evaluation.fidelity import compare_runs, run_all
from zoopress.evaluation.latency import measure_latency
from zoopress.models.packing import unpack
from zoopress.pipeline.deployment import start_on_task
from zoopress.pipeline.original import run_original
from zoopress.plugins import Plugins
from zoopress.progress import Reporter


def evaluate_artifact(
    folder: Path,
    card: Card,
    plugins: Plugins,
    measures: Sequence[str] = (),
    reporter: Reporter | None = None,
    runtime: str = "eager",
) -> dict[str, Any]:
    """Compare an artifact with its card's original.

    Args:
        folder: the artifact.
        card: its original and the data.
        plugins: what is registered.
        measures: what to measure besides size, fidelity, latency and the task's metrics.
        reporter: where progress goes; nowhere by default.
        runtime: what runs the compressed model for outputs, metrics and latency; `measures` look at
            the module itself.

    Returns:
        Flat figures, and under "evaluation" what `zoopress.evaluation.evaluate.evaluate` returns.

    Raises:
        ZoopressError: if either cannot be loaded, or they do not fit the card's data.
    """
    reporter = reporter or Reporter()
    opened = open_original(card, plugins)
    files, architecture, task = opened.files, opened.architecture, opened.task
    factory = getattr(architecture, "factory", None)
    model, built, manifest = load_artifact(folder, plugins, factory)
    original = opened.model.load()
    reference = run_original(task, original, reporter)
    module = model.module
    in_runtime: dict[str, Any] = {}
    if runtime != "eager":
        with reporter.step(f"preparing the runtime {runtime}"):
            started = start_on_task(runtime, model, built, manifest, folder, task, plugins)
        module = started.module
        in_runtime = {"runtime": started.runtime, "runtime_difference": started.difference}
    with reporter.step("running the compressed model") as progress:
        run = run_all(task, module, progress)
    fidelity = compare_runs(task, reference, run, original)
    figures: dict[str, Any] = {
        "size_bytes": size_bytes(folder, manifest),
        "compression_ratio": files.size_bytes() / size_bytes(folder, manifest),
        "finite": run.finite and all(each.finite for each in fidelity.outputs),
        **in_runtime,
        **{name: value for name, value in asdict(fidelity).items() if value is not None},
    }
    unpack(model.module, "auto")  # as users get it
    sizes = sorted({1, min(32, task.data.batch_size)})
    with reporter.step("measuring latency") as progress:
        for row in measure_latency(task, original, module, sizes, progress=progress):
            figures[f"speed_up_batch_{int(row['batch_size'])}"] = row["speed_up"]
    comparison = Comparison(task, original, model, reference, run, folder, plugins)
    return {**figures, "evaluation": evaluate(comparison, measures, reporter)}
