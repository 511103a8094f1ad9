"""How fast both models are: in their fastest runtimes where these were timed, else in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zoopress.results.figures import mapping, number

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from zoopress.results import Report

EAGER = "eager"


@dataclass(frozen=True)
class Speed:
    """Medians for one batch size.

    Attributes:
        batch_size: samples of a call.
        original_ms: of the original, in milliseconds.
        compressed_ms: of the compressed model.
        original_runtime: which is the fastest of those that run the original.
        compressed_runtime: the same of the compressed model.
        threads: that both had; None if they had as many as the report's machine says.
    """

    batch_size: int
    original_ms: float
    compressed_ms: float
    original_runtime: str = EAGER
    compressed_runtime: str = EAGER
    threads: int | None = None

    @property
    def speed_up(self) -> float:
        """The original's median ÷ that of the compressed model."""
        return self.original_ms / self.compressed_ms

    @property
    def where(self) -> str:
        """Where they run, in words; empty if only eager PyTorch was timed."""
        if self.threads is None:
            return ""
        if self.original_runtime == self.compressed_runtime:
            return f"both in {self.compressed_runtime}"
        return f"in {self.compressed_runtime}, the original in {self.original_runtime}"


def speeds(report: Report) -> list[Speed]:
    """Return a report's speeds by batch size, the smallest first.

    Those of the measure `runtimes` with the most threads, else those in eager PyTorch.
    """
    return _in_runtimes(report.evaluation) or [
        Speed(int(row["batch_size"]), row["original_ms_p50"], row["compressed_ms_p50"])
        for row in sorted(report.latency, key=lambda row: row["batch_size"])
    ]


def _in_runtimes(evaluation: Mapping[str, Any]) -> list[Speed]:
    rows = mapping(evaluation.get("runtimes")).get("fastest")
    found = []
    for row in map(mapping, rows if isinstance(rows, list) else []):
        size, threads, before, after = (
            number(row.get(key))
            for key in ("batch_size", "threads", "original_ms_p50", "compressed_ms_p50")
        )
        if size and threads and before and after:
            names = str(row.get("original_runtime")), str(row.get("compressed_runtime"))
            found.append(Speed(int(size), before, after, *names, threads=int(threads)))
    most = max((speed.threads or 0 for speed in found), default=0)
    return sorted((s for s in found if s.threads == most), key=lambda speed: speed.batch_size)
