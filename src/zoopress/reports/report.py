"""The report of a run: what each stage gained and cost, and what came out in the end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from zoopress.reports.coverage_words import (
    coverage_words,
    larger_words,
    lost_words,
    short_words,
    stage_words,
    worst_layers,
)
from zoopress.reports.first_original import first_original_text
from zoopress.reports.headline import headline, times_fewer, times_smaller
from zoopress.reports.markdown import one_line, text
from zoopress.reports.quality_words import MARK, MEANING, unlike_words
from zoopress.results import Quality, Report, StageResult
from zoopress.results.figures import (
    macs_reduction,
    mapping,
    number,
    show_metric,
    task_metrics,
)
from zoopress.results.speed import speeds
from zoopress.units import show_bytes, show_number


def comparison_rows(report: Report, latency: bool = True) -> list[tuple[str, str, str, str]]:
    """Return the table: figure, original, compressed, and the two compared."""
    last, fidelity = report.last, report.last.fidelity
    rows = [
        (
            "bytes, all files",
            f"{report.original_size_bytes:,}",
            f"{last.size_bytes:,}",
            times_smaller(report.compression_ratio),
        ),
        *_first_original_row(report),
        (
            "bytes, tensors",
            f"{report.original_weight_bytes:,}",
            f"{last.weight_bytes:,}",
            f"{report.bits_per_weight:.2f} bits per weight",
        ),
        (
            "parameters",
            f"{report.original_parameters:,}",
            f"{last.parameters:,}",
            f"{last.parameters / report.original_parameters:.1%}",
        ),
        (
            "non-zero parameters",
            f"{report.original_parameters:,}",
            f"{last.parameters - last.pruned:,}",
            f"{(last.parameters - last.pruned) / report.original_parameters:.1%}",
        ),
    ]
    for row in report.latency if latency else []:
        rows.append(
            (
                f"latency p50, batch {int(row['batch_size'])}",
                f"{row['original_ms_p50']:,.2f} ms",
                f"{row['compressed_ms_p50']:,.2f} ms",
                f"{row['speed_up']:.2f}× as fast",
            )
        )
    for speed in speeds(report) if latency else []:
        if speed.where:
            rows.append(
                (
                    f"fastest runtime, batch {speed.batch_size}",
                    f"{one_line(speed.original_runtime)}, {speed.original_ms:,.2f} ms",
                    f"{one_line(speed.compressed_runtime)}, {speed.compressed_ms:,.2f} ms",
                    f"{speed.speed_up:.2f}× as fast",
                )
            )
    for metric in task_metrics(report.evaluation, last):
        texts = (metric.original_text, metric.compressed_text, metric.difference_text)
        rows.append((metric.title, *texts))
    macs = mapping(report.evaluation.get("computation"))
    if (reduction := macs_reduction(report)) is not None:
        before, after = (
            f"{number(macs.get(f'{which}_macs')) or 0:,.0f}" for which in ("original", "compressed")
        )
        rows.append(("MACs, one input", before, after, " ".join(times_fewer(reduction))))
    rows.append(("cosine", "1", f"{fidelity.cosine:.4f}", f"over {fidelity.samples} samples"))
    worst = fidelity.worst()
    if not worst.usual:
        rows.append((f"worst: {worst.of_output}", "1", f"{worst.value:.4f}", ""))
    for name in ("label_loyalty", "probability_loyalty"):
        value = getattr(fidelity, name)
        if value is not None:
            rows.append((name.replace("_", " "), "1", f"{value:.4f}", ""))
    return rows


def _first_original_row(report: Report) -> list[tuple[str, str, str, str]]:
    ratio = report.first_original_ratio
    if ratio is None:
        return []
    sizes = (f"{report.first_original['size_bytes']:,}", f"{report.last.size_bytes:,}")
    return [("bytes, beside the first original", *sizes, times_smaller(ratio))]


def stage_line(
    position: int,
    count: int,
    result: StageResult,
    from_store: bool,
    quality: Quality | None = None,
) -> str:
    """Return one line on a stage: what it did to bytes and fidelity, and if that is too much."""
    loyalty = result.fidelity.label_loyalty
    parts = [
        f"stage {position}/{count}  {result.technique:<20}",
        f"{result.weight_bytes_before / 1e6:8.3f} → {result.weight_bytes / 1e6:.3f} MB",
        f"cosine {result.fidelity.cosine:.4f}",
    ]
    if not (worst := result.fidelity.worst()).usual:
        parts[-1] = str(worst)
    if loyalty is not None:
        parts.append(f"label loyalty {loyalty:.3f}")
    if result.metric is not None:
        value = show_metric(result.metric, result.metrics.get(result.metric))
        parts.append(f"{result.metric.replace('_', ' ')} {value}")
    parts.append("from the store" if from_store else f"{result.seconds:.1f} s")
    if reached := stage_words(result):
        parts.append(reached)
    if quality is not None and not quality.like_original:
        parts.append(f"{MEANING}: {quality.problem}")
    return "  ".join(parts)


def beside_words(machine: Mapping[str, Any]) -> str:
    """Say that latency was not measured alone, if it was not."""
    if not machine.get("beside"):
        return ""
    named = ", ".join(map(text, machine["beside"]))
    return f"Other work ran on the machine meanwhile ({named}): take it with care."


def markdown(report: Report) -> str:
    """Return the report as Markdown."""
    machine = report.machine
    return "\n".join(
        [
            f"# {report.name}",
            "",
            f"{', '.join(headline(report))}.",
            "",
            *([f"**{MARK} {text(words)}**", ""] if (words := unlike_words(report)) else []),
            *([f"**{MARK} {text(words)}**", ""] if (words := short_words(report)) else []),
            *([f"**{MARK} {text(words)}**", ""] if (words := larger_words(report)) else []),
            *([said, ""] if (said := first_original_text(report)) else []),
            *_table(("", "original", "compressed", ""), comparison_rows(report)),
            "",
            f"Latency: in turns in one process, {machine['threads']} threads on "
            f"{machine['processor']} ({machine['capability']}), torch {machine['torch']}."
            + (f" {said}" if (said := beside_words(machine)) else ""),
            *_kernel_line(report),
            "",
            *runtime_lines(report),
            *_reached_lines(report),
            "## Stages",
            "",
            *_stage_table(report),
            "",
            *_output_table(report),
        ]
    )


def _output_table(report: Report) -> list[str]:
    """Return how each output was compared, if there are several or one has no cosine."""
    fidelity = report.last.fidelity
    if len(fidelity.outputs) < 2 and fidelity.worst().usual and not fidelity.seeded:
        return []
    rows = []
    for each in fidelity.outputs:
        told = each.at()
        error = "–" if each.relative_error is None else f"{each.relative_error:.4g}"
        judged = "yes" if each.judged else "no"
        value = each.problem or f"{told.value:.4f}"
        rows.append((f"`{text(each.name)}`", each.kind, told.measure, value, error, judged))
    header = ("output", "kind", "measure", "value", "relative error", "judged")
    seeded = "The original's outputs are random: both models were given the same seed."
    return ["## Outputs", "", *_table(header, rows), "", *([seeded, ""] if fidelity.seeded else [])]


def _reached_lines(report: Report) -> list[str]:
    """Say what each stage reached, and which layers changed most."""
    lines = []
    for position, result in enumerate(report.stages, start=1):
        lines += [text(coverage_words(position, result)), ""] * (result.coverage is not None)
    if lost := lost_words(report.last):
        lines += [f"**{MARK} {text(lost[0].upper() + lost[1:])}.**", ""]
    if worst := worst_layers(report.last):
        lines += [f"Furthest from the original's, by relative error: {text(worst)}.", ""]
    return lines


def runtime_lines(report: Report) -> list[str]:
    """Return what each runtime takes, as Markdown; nothing if none was timed."""
    found = mapping(report.evaluation.get("runtimes"))
    rows = []
    memory = {m.get("runtime"): m for m in map(mapping, found.get("memory") or ())}
    for row in map(mapping, found.get("rows") or ()):
        name = row.get("runtime")
        cells = [f"`{text(name)}`", f"{row.get('threads')}", f"{row.get('batch_size')}"]
        for which in ("original", "compressed"):
            values = [number(row.get(f"{which}_ms_{each}")) for each in ("p50", "p95")]
            cells += ["–" if v is None else show_number(v) for v in values]
        rate = number(row.get("compressed_samples_per_second"))
        cells.append("–" if rate is None else f"{rate:,.0f}")
        peaks = memory.get(name, {})
        for which in ("original", "compressed"):
            peak = number(peaks.get(f"{which}_bytes"))
            cells.append("–" if peak is None else show_bytes(int(peak)))
        rows.append(tuple(cells))
    if not rows:
        return []
    header = (
        *("runtime", "threads", "batch", "original p50, ms", "p95", "compressed p50, ms", "p95"),
        *("samples/s", "original's memory", "memory"),
    )
    refused = [
        f"- `{text(name)}` does not run the {text(which)} model: {text(reason)}"
        for name, reasons in mapping(found.get("refused")).items()
        for which, reason in mapping(reasons).items()
    ]
    return ["## Runtimes", "", *_table(header, rows), "", *refused, *([""] if refused else [])]


def _kernel_line(report: Report) -> list[str]:
    if not report.kernels:
        return []
    used = ", ".join(f"{count} × {name}" for name, count in sorted(report.kernels.items()))
    return ["", f"How packed weights compute: {used}."]


def _stage_table(report: Report) -> list[str]:
    metric = report.last.metric
    rows = []
    for i, (stage, quality) in enumerate(zip(report.stages, report.judged, strict=True), start=1):
        config = ", ".join(f"{key}: {json.dumps(value)}" for key, value in stage.config.items())
        measured = () if metric is None else (show_metric(metric, stage.metrics.get(metric)),)
        rows.append(
            (
                str(i),
                f"`{stage.technique}`",
                config or "–",
                str(len(stage.touched)),
                f"{stage.weight_bytes:,}",
                *measured,
                f"{stage.fidelity.cosine:.4f}" + ("" if quality.like_original else f" {MARK}"),
                _or_dash(stage.fidelity.label_loyalty),
            )
        )
    named = () if metric is None else (metric.replace("_", " "),)
    header = ("", "technique", "config", "changed", "tensor bytes", *named, "cosine")
    return _table((*header, "label loyalty"), rows)


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    lines = [header, tuple("---" for _ in header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
