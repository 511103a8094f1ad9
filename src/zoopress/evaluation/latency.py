"""Latency: both models in turns, on the same inputs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from zoopress.evaluation.randomness import seeded
from zoopress.tasks import Task, inputs_given_away
from zoopress.tasks.batches import batch_length, copied, first_samples, named_tensors, typical_batch

if TYPE_CHECKING:
    from zoopress.progress import Progress


def measure_latency(
    task: Task,
    original: nn.Module,
    compressed: nn.Module,
    batch_sizes: Sequence[int] = (1, 32),
    seconds: float = 4.0,
    progress: Progress = lambda item, fraction=None: None,
) -> list[dict[str, Any]]:
    """Time both models on the same inputs, in turns, after a warm-up.

    Args:
        task: gives the inputs and runs the models.
        original: the model to compare with.
        compressed: the model that was made from it.
        batch_sizes: how many samples a call gets.
        seconds: about how long to measure each batch size.
        progress: called before each batch size; never while something is timed.

    Returns:
        For each batch size and backend, which is "eager", the median and 95th percentile of both in
        milliseconds; their throughput, samples a second at the median; and the speed-up: median of
        the original ÷ median of the compressed model.
    """
    batch = typical_batch(task)
    rows = []
    for done, size in enumerate(batch_sizes):
        progress(f"batch size {size}", done / len(batch_sizes))
        inputs = first_samples(batch, size)
        own = copied(inputs)
        pairs = list(zip(named_tensors(inputs).values(), named_tensors(own).values(), strict=True))
        times: tuple[list[float], list[float]] = ([], [])
        until = 0.0
        runs = -2
        while runs < 3 or (time.perf_counter() < until and runs < 200):
            for module, collected in ((original, times[0]), (compressed, times[1])):
                # A model may write into its inputs; and random lengths are no difference.
                for kept, given in pairs:
                    given.copy_(kept)
                with seeded(), inputs_given_away():
                    start = time.perf_counter()
                    task.call(module, own)
                    elapsed = time.perf_counter() - start
                if runs >= 0:
                    collected.append(elapsed * 1e3)
            runs += 1
            if runs == 0:
                until = time.perf_counter() + seconds
        before, after = (statistics.median(collected) for collected in times)
        samples = batch_length(inputs)
        rows.append(
            {
                "backend": "eager",
                "batch_size": samples,
                "original_ms_p50": before,
                "original_ms_p95": _p95(times[0]),
                "compressed_ms_p50": after,
                "compressed_ms_p95": _p95(times[1]),
                "original_samples_per_second": samples / before * 1e3,
                "compressed_samples_per_second": samples / after * 1e3,
                "speed_up": before / after,
                "runs": len(times[0]),
            }
        )
        if samples < size:
            break
    return rows


def _p95(values: Sequence[float]) -> float:
    """Return the smallest value that at least 95 % of the values do not exceed."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
