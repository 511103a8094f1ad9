"""Reports as one HTML page that needs nothing else: no network, no file beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.provenance import COMMIT_KEYS
from zoopress.reports import (
    byte_charts,
    chain_charts,
    change_charts,
    measure_charts,
    runtime_charts,
)
from zoopress.reports.coverage_words import coverage_words, larger_words, lost_words, short_words
from zoopress.reports.drawing import Chart, ChartsMissingError, Spec, draw_svg, require_renderer
from zoopress.reports.facts import facts
from zoopress.reports.first_original import first_original_text
from zoopress.reports.headline import headline, times_fewer, times_smaller
from zoopress.reports.html import render
from zoopress.reports.local_paths import without_local_paths
from zoopress.reports.markdown import one_line, yaml_text
from zoopress.reports.quality_words import unlike_words
from zoopress.reports.report import beside_words, comparison_rows
from zoopress.reports.run_words import evaluation_data, settings_text, shown_recipe
from zoopress.reports.words import TERMS
from zoopress.results.figures import (
    flips,
    macs_reduction,
    mapping,
    number,
    primary_metric,
    task_metrics,
)
from zoopress.results.speed import speeds
from zoopress.units import show_bytes, show_number, show_seconds

if TYPE_CHECKING:
    from zoopress.reports.comparison import Comparison
    from zoopress.results import Report

TEMPLATE = Path(__file__).with_name("report.html.j2")

Draw = Callable[[str, str, "Spec | None"], "list[Chart]"]


@dataclass(frozen=True)
class Tile:
    """A figure that a reader sees first.

    Attributes:
        value: the figure.
        title: what it is.
        detail: what it was before, how sure it is.
    """

    value: str
    title: str
    detail: str


def report_page(reports: Sequence[Report], comparison: Comparison | None = None) -> str:
    """Return the page.

    Args:
        reports: one or more.
        comparison: of all of them, where there are several.
    """
    from markupsafe import Markup

    missing = ""
    draw: Draw = _draw
    try:
        require_renderer()
    except ChartsMissingError as error:
        missing, draw = str(error), lambda title, caption, spec: []
    shown = [without_local_paths(report)[0] for report in reports]
    return render(
        TEMPLATE,
        title=one_line(shown[0].name) if len(shown) == 1 else f"{len(shown)} compressed models",
        articles=[_article(report, draw) for report in shown],
        comparison=comparison,
        comparison_charts=[] if comparison is None or missing else comparison.charts(),
        missing=missing,
        terms=TERMS,
        drawn=lambda chart: Markup(chart.svg),  # Vega escapes the texts in it
    )


def _draw(title: str, caption: str, spec: Spec | None) -> list[Chart]:
    return [] if spec is None else [Chart(title, caption, draw_svg(spec))]


def _article(report: Report, draw: Draw) -> dict[str, Any]:
    """Return what a report's part of the page shows."""
    evaluation = {k: v for k, v in report.evaluation.items() if k != "task"}
    return {
        "name": one_line(report.name),
        "card": one_line(report.card["name"]),
        "description": one_line(report.card.get("description", "")),
        "recipe_description": one_line(report.recipe.get("description", "")),
        "headline": headline(report),
        "unlike": one_line(unlike_words(report)),
        "short": one_line(" ".join(filter(None, (short_words(report), larger_words(report))))),
        "reached": [
            one_line(words)
            for position, result in enumerate(report.stages, start=1)
            if (words := coverage_words(position, result))
        ],
        "lost": one_line(lost_words(report.last)),
        "first_original": first_original_text(report),
        "tiles": tiles(report),
        "rows": comparison_rows(report),
        "metrics": task_metrics(report.evaluation, report.last),
        "mcnemar": _mcnemar(report),
        "byte_charts": _byte_charts(report, draw),
        "layers": _layer_rows(report),
        "stage_charts": _stage_charts(report, draw),
        "stages": _stage_rows(report),
        "quality": chain_charts.quality_name(report),
        "sensitivity_charts": _sensitivity_charts(report, draw),
        "most_sensitive": byte_charts.most_sensitive(report),
        "most_to_gain": byte_charts.most_to_gain(report),
        "flips": flips(report.evaluation),
        "flip_counts": change_charts.counts(report),
        "confusion_charts": draw(
            "How predictions moved",
            "Compressed − original, in inputs. Blue: more right or fewer wrong; orange: fewer "
            "right or more wrong. The diagonal holds what is right.",
            change_charts.confusion_chart(report),
        ),
        "pairs": change_charts.confused_pairs(report),
        "examples": change_charts.examples(report),
        "training": _training(report, draw),
        "measures": [facts(name, data) for name, data in evaluation.items()],
        "runtime_charts": _runtime_charts(report, draw),
        "robustness_charts": draw(
            "Under attack and corruption",
            "Grey: the original, blue: the compressed model, each attacked by itself; further "
            "right is better where a larger score is. Corruptions: mean over all severities.",
            measure_charts.robustness_chart(mapping(evaluation.get("robustness"))),
        ),
        "measured": _measured(report),
        "recipe": yaml_text(shown_recipe(report.recipe)),
        "card_file": yaml_text(report.card),
        "made_with": _made_with(report),
        "revision": one_line(report.revision),
        "sha256": one_line(report.artifact_sha256),
    }


def tiles(report: Report) -> list[Tile]:
    """Return the figures that are seen first: size, speed, quality, what changed."""
    last = report.last
    ratio, _, word = times_smaller(report.compression_ratio).partition(" ")
    sizes = f"{show_bytes(report.original_size_bytes)} → {show_bytes(last.size_bytes)}"
    found = [Tile(ratio, word, f"{sizes}, all files")]
    if measured := speeds(report):
        first, *others = measured
        times = " → ".join(map(show_number, (first.original_ms, first.compressed_ms)))
        detail = [f"{times} ms at batch size {first.batch_size}"]
        detail += [first.where] if first.where else []
        detail += [f"{speed.speed_up:.2f}× at {speed.batch_size}" for speed in others]
        found.append(Tile(f"{first.speed_up:.2f}×", "as fast", "; ".join(map(one_line, detail))))
    metric = primary_metric(report)
    worst = last.fidelity.worst()
    if metric is not None:
        detail_text = f"was {metric.show(metric.original)} ({metric.difference_text})"
        found.append(Tile(metric.show(metric.compressed), metric.title, detail_text))
    else:
        similarity = f"{worst.value:.4f}"
        detail_text = "similarity of outputs to the original's; 1 is equal"
        if not worst.usual and len(last.fidelity.outputs) > 1:
            detail_text = f"the worst of {len(last.fidelity.outputs)} outputs; 1 is equal"
        found.append(Tile(similarity, worst.of_output, detail_text))
    changed = flips(report.evaluation)
    if changed is not None:
        kinds = [f"{count:,} {title}" for title, count in change_charts.counts(report) if count]
        detail_text = "; ".join(kinds) or "labels that differ from the original's"
        of = f"of {changed[1]:,} flipped"
        found.append(Tile(f"{changed[0]:,}", of, detail_text))
    elif last.fidelity.label_loyalty is not None:
        kept = f"{100 * last.fidelity.label_loyalty:.1f} %"
        found.append(Tile(kept, "label loyalty", "samples that keep the original's label"))
    reduction = macs_reduction(report)
    if reduction is not None and not 0.995 < reduction < 1.005:
        macs = mapping(report.evaluation.get("computation"))
        both = [number(macs.get(f"{which}_macs")) for which in ("original", "compressed")]
        detail_text = " → ".join(f"{value:,.0f}" for value in both if value is not None)
        value, word = times_fewer(reduction)
        found.append(Tile(value, f"{word} MACs", f"{detail_text} for one input"))
    return found


def _runtime_charts(report: Report, draw: Draw) -> list[Chart]:
    found = []
    for threads, size, rows in runtime_charts.groups(report.evaluation):
        found += draw(
            f"{size} at a time, {threads} thread{'' if threads == 1 else 's'}",
            "Milliseconds of a call: the mark is the median, the line ends at the 95th percentile. "
            "Grey: the original, blue: the compressed model; further left is faster.",
            runtime_charts.chart(rows),
        )
    return found


def _mcnemar(report: Report) -> str:
    """Return what the paired test says, in a sentence; empty if it was not made."""
    found = mapping(mapping(report.evaluation.get("task")).get("mcnemar"))
    p = number(found.get("p_value", found.get("p")))
    if p is None:
        return ""
    verdict = "may well be chance" if p >= 0.05 else "is hardly chance"
    shown = "below 0.0001" if p < 0.0001 else show_number(p, 2)
    return f"McNemar's test: p is {shown}, so the difference in accuracy {verdict}."


def _byte_charts(report: Report, draw: Draw) -> list[Chart]:
    charts = draw(
        "What the bytes are",
        "All files of both models on one scale. Small tensors are biases, norms and what a tensor "
        "file says of itself; other files are tokenizer and configs.",
        byte_charts.parts_chart(report),
    )
    if report.layers:
        charts += draw(
            "Layer by layer",
            "Pale: before, full: after; the largest first.",
            byte_charts.layers_chart(report),
        )
    return charts


def _layer_rows(report: Report) -> list[tuple[str, ...]]:
    ranked = sorted(report.layers, key=lambda layer: -layer.bytes_before)
    return [
        (
            one_line(layer.name),
            byte_charts.KINDS.get(layer.kind, layer.kind),
            show_bytes(layer.bytes_before),
            show_bytes(layer.bytes_after),
            f"{layer.bytes_before / layer.bytes_after:.2f}×" if layer.bytes_after else "–",
            "–" if layer.relative_error is None else show_number(layer.relative_error),
            "–" if layer.sensitivity is None else show_number(layer.sensitivity, 2),
        )
        for layer in ranked
    ]


def _stage_charts(report: Report, draw: Draw) -> list[Chart]:
    name = chain_charts.quality_name(report)
    return draw(
        "What each stage gained",
        "Bytes of the tensor files after each stage. A stage that only prepares, such as pruning "
        "before entropy coding, gains little by itself.",
        chain_charts.stages_chart(report),
    ) + draw(
        "Size against quality",
        f"The way from the original through the numbered stages: right is smaller, up is a larger "
        f"{name}.",
        chain_charts.trail_chart(report),
    )


def _stage_rows(report: Report) -> list[dict[str, str]]:
    before = report.original_size_bytes
    rows = []
    steps = chain_charts.steps(report)
    for step, previous, stage in zip(steps[1:], steps, report.stages, strict=False):
        gain = previous.weight_bytes / max(1, step.weight_bytes)
        rows.append(
            {
                "name": step.title,
                "settings": one_line(settings_text(stage.config)),
                "bytes": f"{show_bytes(previous.weight_bytes)} → {show_bytes(step.weight_bytes)}",
                "gain": f"{gain:.2f}×",
                "ratio": f"{before / max(1, step.size_bytes):.2f}×",
                "quality": step.quality_text,
                "cosine": f"{stage.fidelity.cosine:.4f}",
                "changed": f"{len(stage.touched):,}",
                "time": show_seconds(stage.seconds),
            }
        )
    return rows


def _sensitivity_charts(report: Report, draw: Draw) -> list[Chart]:
    if not byte_charts.has_sensitivity(report):
        return []
    return draw(
        "Sensitivity of layers",
        "A mark a layer. High: compressing it alone moves the outputs most, so treat it more "
        "gently. Far right and low: many bytes left that matter little, so compress it more.",
        byte_charts.sensitivity_chart(report),
    )


def _training(report: Report, draw: Draw) -> list[dict[str, Any]]:
    found = []
    for curve in chain_charts.curves(report)[: chain_charts.MAX_CURVES]:
        caption = "Mean training loss since the mark before, and that of the validation split."
        if curve.best_step:
            caption += f" The weights after step {curve.best_step} were kept (dashed)."
        elif curve.best_step == 0:
            caption += " Training made nothing better, so the model was left as it was."
        if curve.stopped_early:
            caption += " It stopped early, since nothing got better any more."
        charts = draw("Loss", caption, chain_charts.loss_chart(curve))
        for name, points in list(curve.metrics.items())[:2]:
            if points:
                title = name.replace("_", " ").capitalize()
                spec = chain_charts.metric_chart(curve, name)
                charts += draw(title, "On the validation split.", spec)
        found.append({"title": curve.title, "caption": caption, "charts": charts})
    return found


def _measured(report: Report) -> list[str]:
    """Return how the figures came about, a sentence each."""
    machine, task = report.machine, mapping(report.evaluation.get("task"))
    samples = report.last.fidelity.samples
    found = [
        f"Both models were given the same {samples:,} inputs, which no stage has seen: "
        f"{evaluation_data(report)[1]}."
    ]
    if number(task.get("resamples")):
        found.append(
            f"Intervals: 95 % confidence, by {int(task['resamples']):,} resamples of the test "
            "inputs, the same for both models."
        )
    if report.latency:
        runs = int(report.latency[0].get("runs", 0))
        processor = one_line(machine.get("processor") or "a CPU")
        found.append(
            f"Latency: both models in turns in one process after a warm-up, median of {runs} "
            f"calls, {machine.get('threads', 1)} thread(s) on {processor} "
            f"({one_line(machine.get('capability', ''))}), PyTorch "
            f"{one_line(machine.get('torch', ''))}."
        )
        if beside := beside_words(machine):
            found.append(beside)
    if report.kernels:
        used = (f"{count} × {one_line(name)}" for name, count in sorted(report.kernels.items()))
        found.append(f"How packed weights compute: {', '.join(used)}.")
    return found


def _made_with(report: Report) -> str:
    """Return versions and commit in a sentence or two."""
    made = {one_line(key): one_line(value) for key, value in report.made_with.items()}
    versions = [f"{name} {version}" for name, version in made.items() if name not in COMMIT_KEYS]
    said = f"Made with {', '.join(versions)}." if versions else ""
    if made.get("commit"):
        changed = ", with changes that were not committed" if made.get("changed") else ""
        said += f" It ran at commit {made['commit']}{changed}."
    return said
