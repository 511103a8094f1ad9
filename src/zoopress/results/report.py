"""The report of a run, as data: what each stage gained and cost, and what came out in the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from zoopress.errors import InputError
from zoopress.results.figures import task_figures
from zoopress.results.quality import Quality, judge_stages
from zoopress.results.speed import speeds
from zoopress.results.stage_result import StageResult


@dataclass(frozen=True)
class LayerResult:
    """What the whole chain did to one weight of the original.

    Attributes:
        name: the weight's; tied weights count once, under their first name.
        kind: "linear", "conv", "embedding", "recurrent", "experts" or "parameter".
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
    quality: list[Quality] = field(default_factory=list)
    """What the guard on quality says of each stage's result; empty in reports of versions that had
    none."""
    first_original: dict[str, Any] = field(default_factory=dict)
    """Where the card's model, which everything is compared with, is itself a compressed one: what
    its artifact says of the model that it was first made of (`name`, `source`, `revision`,
    `size_bytes`, `base_model`, `license`), and the techniques of the `stages` in between."""
    schema: int = field(default=3)

    @property
    def name(self) -> str:
        return f"{self.card['name']} × {self.recipe['name']}"

    @property
    def last(self) -> StageResult:
        return self.stages[-1]

    @property
    def judged(self) -> list[Quality]:
        """What the guard on quality says of each stage's result, also in a report that does not."""
        return self.quality or judge_stages(self.recipe, self.stages)

    @property
    def last_judged(self) -> Quality:
        """What it says of the model that came out."""
        return self.judged[-1]

    @property
    def inherited_problem(self) -> str:
        """In what a compressed source already was unlike the original that it was made of."""
        return str(self.first_original.get("unlike", ""))

    @property
    def compression_ratio(self) -> float:
        """Original bytes ÷ compressed bytes, all files."""
        return self.original_size_bytes / self.last.size_bytes

    @property
    def first_original_ratio(self) -> float | None:
        """Bytes of the first original ÷ compressed bytes; None where that is the original."""
        size = self.first_original.get("size_bytes")
        return size / self.last.size_bytes if size else None

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
            "like_original": self.last_judged.like_original and not self.inherited_problem,
        }
        if self.first_original_ratio is not None:
            figures["first_original_ratio"] = round(self.first_original_ratio, 4)
        for name in ("label_loyalty", "probability_loyalty"):
            value = getattr(self.last.fidelity, name)
            if value is not None:
                figures[name] = round(value, 6)
        for row in self.latency:
            figures[f"speed_up_batch_{int(row['batch_size'])}"] = round(row["speed_up"], 3)
        for speed in speeds(self):
            if speed.where:
                key = f"fastest_speed_up_batch_{speed.batch_size}"
                figures[key] = round(speed.speed_up, 3)
                figures[f"fastest_runtime_batch_{speed.batch_size}"] = speed.compressed_runtime
        return {**figures, **task_figures(self)}

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Rebuild from `as_dict`."""
        values = dict(data)
        values["stages"] = [StageResult.from_dict(stage) for stage in values["stages"]]
        values["quality"] = [Quality.from_dict(each) for each in values.get("quality", [])]
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
