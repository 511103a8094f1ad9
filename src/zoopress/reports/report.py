"""The report of a run: what each stage gained and cost, and what came out in the end."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from zoopress.errors import InputError, StoreError
from zoopress.pipeline.gates import StageResult
from zoopress.provenance import COMMIT_KEYS
from zoopress.reports.figures import (
    headline,
    macs_reduction,
    mapping,
    number,
    show_metric,
    task_figures,
    task_metrics,
    times_fewer,
)
from zoopress.store import Entry, write_atomic

if TYPE_CHECKING:
    from zoopress.plugins import Plugins


@dataclass(frozen=True)
class LayerResult:
    """What the whole chain did to one weight of the original.

    Attributes:
        name: the weight's; tied weights count once, under their first name.
        kind: "linear", "conv", "embedding", "recurrent" or "parameter".
        parameters: how many numbers it has in the original.
        bytes_before: of the original's tensor in memory.
        bytes_after: of all that stands for it in the artifact's tensor files.
        relative_error: Frobenius norm of the difference ÷ that of the original; None if its shape
            is another now.
        sensitivity: 1 − mean cosine of the original's outputs with and without this one change;
            None if it was not measured.
    """

    name: str
    kind: str
    parameters: int
    bytes_before: int
    bytes_after: int
    relative_error: float | None
    sensitivity: float | None


@dataclass(frozen=True)
class Report:
    """A compressed model beside its original.

    Sizes are bytes of all files that loading needs; `weight` sizes of the tensor files alone.
    Latencies are medians and 95th percentiles in milliseconds, measured in turns in one process.
    """

    card: dict[str, Any]
    """The card, as its file says."""
    recipe: dict[str, Any]
    """The recipe with its targets, defaults included."""
    revision: str
    """Of the source."""
    original_size_bytes: int
    """Of all files that loading the original needs."""
    original_weight_bytes: int
    """Of the original's tensor files."""
    original_parameters: int
    """How many numbers the original has."""
    stages: list[StageResult]
    """In order."""
    latency: list[dict[str, Any]]
    """A row a batch size, see `zoopress.evaluation.latency`."""
    machine: dict[str, Any]
    """What latency was measured on."""
    kernels: dict[str, int] = field(default_factory=dict)
    """How many packed weights compute in which way, once loaded."""
    loads_as: dict[str, Any] = field(default_factory=dict)
    """The `architecture`, its `class` if it has one, whether the library that it comes from opens
    it, `by_library`, and whether it does so without zoopress, `native`."""
    artifact_sha256: str = ""
    """Of the artifact's zoopress.json, which in turn has those of all its other files."""
    made_with: dict[str, str] = field(default_factory=dict)
    """Versions of what computed it; `commit` and `repository` of the folder it ran in, if known."""
    layers: list[LayerResult] = field(default_factory=list)
    """Every weight of two or more axes, in the order of the model."""
    evaluation: dict[str, Any] = field(default_factory=dict)
    """The task's metrics under "task", each other measure by its name: docs/evaluation.md."""
    store_keys: list[str] = field(default_factory=list)
    """Of the stages' results and of this report, which `zoopress store gc` keeps on request."""
    schema: int = field(default=3)

    @property
    def name(self) -> str:
        return f"{self.card['name']} × {self.recipe['name']}"

    @property
    def last(self) -> StageResult:
        return self.stages[-1]

    @property
    def compression_ratio(self) -> float:
        """Original bytes ÷ compressed bytes, all files."""
        return self.original_size_bytes / self.last.size_bytes

    @property
    def space_saving(self) -> float:
        """1 − compressed ÷ original bytes, all files."""
        return 1 - self.last.size_bytes / self.original_size_bytes

    @property
    def bits_per_weight(self) -> float:
        """Bits of the compressed tensor files per parameter of the original."""
        return 8 * self.last.weight_bytes / self.original_parameters

    def metrics(self) -> dict[str, Any]:
        """Return the final figures, flat, for `metrics.json`."""
        figures: dict[str, Any] = {
            "size_bytes": self.last.size_bytes,
            "compression_ratio": round(self.compression_ratio, 4),
            "space_saving": round(self.space_saving, 4),
            "bits_per_weight": round(self.bits_per_weight, 4),
            "parameters": self.last.parameters,
            "nonzero_parameters": self.last.parameters - self.last.pruned,
            "cosine": round(self.last.fidelity.cosine, 6),
        }
        for name in ("label_loyalty", "probability_loyalty"):
            value = getattr(self.last.fidelity, name)
            if value is not None:
                figures[name] = round(value, 6)
        for row in self.latency:
            figures[f"speed_up_batch_{int(row['batch_size'])}"] = round(row["speed_up"], 3)
        return {**figures, **task_figures(self)}

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Rebuild from `as_dict`."""
        values = dict(data)
        values["stages"] = [StageResult.from_dict(stage) for stage in values["stages"]]
        values["layers"] = [LayerResult(**layer) for layer in values.get("layers", [])]
        return cls(**values)


def read_report(path: Path) -> Report:
    """Read a report.json.

    Raises:
        InputError: if it is missing, damaged, or of another version.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        data: Any = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        [current] = [field.default for field in fields(Report) if field.name == "schema"]
        if isinstance(data, dict) and data.get("schema") != current:
            raise ValueError(f"it is of schema {data.get('schema')!r}, this one reads {current}")
        report = TypeAdapter(Report).validate_python(data)
        if not report.stages:
            raise ValueError("it has no stages")
        return report
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(
            f"{path} is no report of this version of zoopress ({reason}). Run its cell again: "
            "finished stages are in the store. Or move it away."
        ) from error


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"it holds {constant}, which is no JSON")


def times_smaller(ratio: float) -> str:
    """Say a compression ratio in words; an original that was packed already may be smaller."""
    return f"{ratio:.2f}× smaller" if ratio >= 1 else f"{1 / ratio:.2f}× larger"


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
                f"{row['original_ms_p50']:.2f} ms",
                f"{row['compressed_ms_p50']:.2f} ms",
                f"{row['speed_up']:.2f}× as fast",
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
    for name in ("label_loyalty", "probability_loyalty"):
        value = getattr(fidelity, name)
        if value is not None:
            rows.append((name.replace("_", " "), "1", f"{value:.4f}", ""))
    return rows


def stage_line(position: int, count: int, result: StageResult, from_store: bool) -> str:
    """Return one line on a stage: what it did to bytes and fidelity."""
    loyalty = result.fidelity.label_loyalty
    parts = [
        f"stage {position}/{count}  {result.technique:<20}",
        f"{result.weight_bytes_before / 1e6:8.3f} → {result.weight_bytes / 1e6:.3f} MB",
        f"cosine {result.fidelity.cosine:.4f}",
    ]
    if loyalty is not None:
        parts.append(f"label loyalty {loyalty:.3f}")
    if result.metric is not None:
        value = show_metric(result.metric, result.metrics.get(result.metric))
        parts.append(f"{result.metric.replace('_', ' ')} {value}")
    parts.append("from the store" if from_store else f"{result.seconds:.1f} s")
    return "  ".join(parts)


def markdown(report: Report) -> str:
    """Return the report as Markdown."""
    machine = report.machine
    return "\n".join(
        [
            f"# {report.name}",
            "",
            f"{', '.join(headline(report))}.",
            "",
            *_table(("", "original", "compressed", ""), comparison_rows(report)),
            "",
            f"Latency: in turns in one process, {machine['threads']} threads on "
            f"{machine['processor']} ({machine['capability']}), torch {machine['torch']}.",
            *_kernel_line(report),
            "",
            "## Stages",
            "",
            *_stage_table(report),
            "",
        ]
    )


def _kernel_line(report: Report) -> list[str]:
    if not report.kernels:
        return []
    used = ", ".join(f"{count} × {name}" for name, count in sorted(report.kernels.items()))
    return ["", f"How packed weights compute: {used}."]


def _stage_table(report: Report) -> list[str]:
    metric = report.last.metric
    rows = []
    for i, stage in enumerate(report.stages, start=1):
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
                f"{stage.fidelity.cosine:.4f}",
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


def write_results(
    report: Report, entry: Entry, folder: Path, plugins: Plugins | None = None
) -> None:
    """Write artifact and report into a folder, each in one step; what is right already stays.

    Args:
        report: the report.
        entry: the stored result with the artifact.
        folder: gets `artifact/`, `report.json`, `report.md`, `metrics.json` and `plots/`.
        plugins: know what the techniques are; everything installed by default.

    Raises:
        StoreError: if the folder cannot be written.
    """
    from zoopress.publishing.model_card import render_model_card  # these import this module
    from zoopress.reports.plots import plot_files

    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Here, not in the store: that may be read-only, or another one.
        lock = folder / ".lock"
        with FileLock(lock):
            report = _with_known_commit(report, folder / "report.json")
            _replace_artifact(entry, folder, render_model_card(report, plugins=plugins))
            write_atomic(folder / "report.json", _json(report.as_dict()))
            write_atomic(folder / "report.md", markdown(report))
            write_atomic(folder / "metrics.json", _json(report.metrics()))
            (folder / "plots").mkdir(exist_ok=True)
            for name, text in plot_files([report]).items():
                write_atomic(folder / "plots" / name, text)
            lock.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"Cannot write to {folder}: {error.strerror or error}. All stages are safe in the "
            "store; run again with another --out."
        ) from error


def _with_known_commit(report: Report, path: Path) -> Report:
    """Keep the commit that a report which says all the same names: it reproduces it as well.

    So nothing changes in what is published when something else in the repository does.
    """

    def said(of: Report) -> Any:
        made_with = {k: v for k, v in of.made_with.items() if k not in COMMIT_KEYS}
        return json.loads(_json(replace(of, made_with=made_with).as_dict()))

    try:
        before = Report.from_dict(json.loads(path.read_bytes()))
        return before if said(before) == said(report) else report
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return report  # none, or one of another version


def _replace_artifact(entry: Entry, folder: Path, readme: str) -> None:
    target = folder / "artifact"
    is_ours = (target / "zoopress.json").is_file()
    if target.exists() and not is_ours and not (target.is_dir() and not any(target.iterdir())):
        raise StoreError(
            f"{target} is there already and is no artifact of zoopress; nothing was overwritten. "
            "Move it away, or choose another --out."
        )
    for leftover in folder.glob(".artifact.*"):  # of a killed run; we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=".artifact.", dir=folder))
    try:
        shutil.copytree(entry.artifact, new / "new")
        (new / "new" / "README.md").write_text(readme, encoding="utf-8")
        if target.exists():
            os.rename(target, new / "old")
        os.rename(new / "new", target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"
