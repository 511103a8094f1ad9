"""What a leaderboard says of one cell: plain figures, taken from its report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from zoopress.results import Report
from zoopress.results.figures import TaskMetric, macs_reduction, primary_metric
from zoopress.results.speed import speeds

State = Literal["done", "failed", "stopped"]


@dataclass(frozen=True)
class CellOutcome:
    """How a cell of a zoo run ended.

    Attributes:
        card: the card's name.
        recipe: the recipe's name.
        state: "stopped" if the run ended before the cell did.
        reason: why it is not done; may have several lines.
        folder: where its results are.
        report: what was measured; every cell that is done has one.
        computed: names of the stages that were computed; the others were in the store.
        seconds: wall time of the cell.
        cpu_seconds: CPU time of all threads and processes that worked on it; of attempts whose
            worker died it is not known, and left out.
        log: file with what happened, if there is one.
    """

    card: str
    recipe: str
    state: State
    reason: str | None = None
    folder: str | None = None
    report: Report | None = None
    computed: tuple[str, ...] = ()
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    log: str | None = None

    def __post_init__(self) -> None:
        """Hold a cell that is done to what it measured.

        Raises:
            ValueError: if it has no report.
        """
        if self.state == "done" and self.report is None:
            raise ValueError(f"{self.card} × {self.recipe} is done, but has no report")


@dataclass(frozen=True)
class StageGain:
    """What a stage did to the bytes of the tensor files, and where it left fidelity."""

    technique: str
    computed: bool
    seconds: float
    weight_bytes_before: int
    weight_bytes: int
    cosine: float | None

    @property
    def ratio(self) -> float:
        """Bytes before ÷ bytes after; below 1 for a stage that added some."""
        return max(1, self.weight_bytes_before) / max(1, self.weight_bytes)


@dataclass(frozen=True)
class Latency:
    """Medians in milliseconds for one batch size, measured in turns in one process."""

    batch_size: int
    original_ms_p50: float | None
    compressed_ms_p50: float | None
    speed_up: float | None
    runtime: str = ""
    """Where the compressed model is fastest, and the original in its own; "" if only eager PyTorch
    was timed."""


@dataclass(frozen=True)
class Figures:
    """The measures of a cell that is done. Those that are None were not measured."""

    original_size_bytes: int
    size_bytes: int
    bits_per_weight: float | None
    cosine: float | None
    label_loyalty: float | None
    probability_loyalty: float | None
    latency: tuple[Latency, ...] = ()
    """By batch size, the smallest first."""
    stages: tuple[StageGain, ...] = ()
    processor: str = ""
    """Where latency was measured."""
    metric: TaskMetric | None = None
    """What the task is judged by, if it has labels."""
    macs_reduction: float | None = None
    """The original's MACs ÷ the compressed model's."""
    like_original: bool | None = None
    """What the guard on quality says; None if unknown."""

    @property
    def compression_ratio(self) -> float:
        """Original bytes ÷ compressed bytes, all files."""
        return self.original_size_bytes / max(1, self.size_bytes)

    @property
    def single(self) -> Latency | None:
        """Latency for one sample at a time."""
        return next((row for row in self.latency if row.batch_size == 1), None)

    @property
    def largest(self) -> Latency | None:
        """Latency for the largest batch."""
        return self.latency[-1] if self.latency else None

    @property
    def measures(self) -> tuple[float | None, ...]:
        """What the Pareto front compares, larger is better; the same for cards of any size."""
        return (
            self.compression_ratio,
            self.single.speed_up if self.single else None,
            self.cosine,
        )


@dataclass(frozen=True)
class Standing:
    """A cell's line on the leaderboard."""

    card: str
    recipe: str
    state: State
    reason: str | None = None
    folder: str | None = None
    seconds: float = 0.0
    figures: Figures | None = None
    """Of a cell that is done."""
    on_front: bool = False
    """Whether it is on the Pareto front of the whole zoo."""
    on_card_front: bool = False
    """Whether it is on the Pareto front of its card."""
    cpu_seconds: float | None = None
    """None where it is not known."""
    log: str | None = None
    """File with what happened to it."""

    @property
    def name(self) -> str:
        return f"{self.card} × {self.recipe}"

    @property
    def reason_line(self) -> str:
        """The first line of the reason."""
        return next(iter((self.reason or "").strip().splitlines()), "no reason was given")

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, with the figures that follow from others."""
        data = asdict(self)
        if self.figures is not None:
            data["figures"]["compression_ratio"] = self.figures.compression_ratio
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Standing:
        """Rebuild from `as_dict`."""
        values = dict(data)
        if values["figures"] is not None:
            figures = dict(values["figures"])
            figures.pop("compression_ratio")
            figures["latency"] = tuple(Latency(**row) for row in figures["latency"])
            figures["stages"] = tuple(StageGain(**stage) for stage in figures["stages"])
            if figures.get("metric") is not None:
                figures["metric"] = TaskMetric.from_dict(figures["metric"])
            values["figures"] = Figures(**figures)
        return cls(**values)


def standing(outcome: CellOutcome) -> Standing:
    """Return what a leaderboard says of a cell."""
    done = outcome.report if outcome.state == "done" else None
    return Standing(
        card=outcome.card,
        recipe=outcome.recipe,
        state=outcome.state,
        reason=outcome.reason,
        folder=outcome.folder,
        seconds=_known(outcome.seconds) or 0.0,
        cpu_seconds=_known(outcome.cpu_seconds),
        log=outcome.log,
        figures=figures_of(done, outcome.computed) if done is not None else None,
    )


def figures_of(report: Report, computed: tuple[str, ...] = ()) -> Figures:
    """Return the measures that a report holds.

    Args:
        report: of the cell.
        computed: names of the stages that were computed, not in the store.
    """
    last, fidelity = report.last, report.last.fidelity
    latency = [
        Latency(
            speed.batch_size,
            _known(speed.original_ms),
            _known(speed.compressed_ms),
            _known(speed.speed_up),
            speed.compressed_runtime if speed.where else "",
        )
        for speed in speeds(report)
    ]
    # What is in the store are the first stages, so those that were computed are the last.
    found = len(report.stages) - len(computed)
    return Figures(
        original_size_bytes=report.original_size_bytes,
        size_bytes=last.size_bytes,
        bits_per_weight=_known(report.bits_per_weight),
        cosine=_known(fidelity.cosine),
        label_loyalty=_known(fidelity.label_loyalty),
        probability_loyalty=_known(fidelity.probability_loyalty),
        latency=tuple(sorted(latency, key=lambda row: row.batch_size)),
        stages=tuple(
            StageGain(
                technique=stage.technique,
                computed=position >= found,
                seconds=stage.seconds,
                weight_bytes_before=stage.weight_bytes_before,
                weight_bytes=stage.weight_bytes,
                cosine=_known(stage.fidelity.cosine),
            )
            for position, stage in enumerate(report.stages)
        ),
        processor=str(report.machine.get("processor", "")),
        metric=primary_metric(report),
        macs_reduction=macs_reduction(report),
        like_original=report.last_judged.like_original and not report.inherited_problem,
    )


def _known(value: float | None) -> float | None:
    """Return a figure that JSON can hold."""
    return value if value is not None and math.isfinite(value) else None
