"""Latency: both models in turns, on the same inputs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from zoopress.evaluation.randomness import seeded
from zoopress.tasks import Task, inputs_given_away
from zoopress.tasks.batches import batch_length, copied, first_samples, named_tensors, typical_batch

if TYPE_CHECKING:
    from zoopress.progress import Progress


_BRIEF = 0.1
"""Seconds of a call, below which it matters whether other threads still wait for work."""


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
        modules = {"original": original, "compressed": compressed}
        times = times_in_turns(task, modules, inputs, seconds)
        samples = batch_length(inputs)
        figures = {name: timing(values, samples) for name, values in times.items()}
        rows.append(
            {
                "backend": "eager",
                "batch_size": samples,
                **{f"{n}_{key}": v for n, each in figures.items() for key, v in each.items()},
                "speed_up": figures["original"]["ms_p50"] / figures["compressed"]["ms_p50"],
                "runs": len(times["original"]),
            }
        )
        if samples < size:
            break
    return rows


def times_in_turns(
    task: Task, modules: Mapping[str, nn.Module], inputs: Any, seconds: float, untimed: int = 0
) -> dict[str, list[float]]:
    """Return the times of each module's calls in milliseconds, in turns, after a warm-up.

    Args:
        task: runs them.
        modules: by name.
        inputs: what each is called with.
        seconds: about how long to time all of them; each is called three times in any case.
        untimed: calls right before each that is timed, in which threads that others have left
            waiting for work fall asleep; none where calls are long.
    """
    own = copied(inputs)
    pairs = list(zip(named_tensors(inputs).values(), named_tensors(own).values(), strict=True))
    times: dict[str, list[float]] = {name: [] for name in modules}
    last = dict.fromkeys(modules, 0.0)
    until = 0.0
    runs = -2
    while runs < 3 or (time.perf_counter() < until and runs < 200):
        for name, module in modules.items():
            # A model may write into its inputs; and random lengths are no difference.
            for kept, given in pairs:
                given.copy_(kept)
            with seeded(), inputs_given_away():
                for _ in range(untimed if runs >= 0 and last[name] < _BRIEF else 0):
                    task.call(module, own)
                start = time.perf_counter()
                task.call(module, own)
                elapsed = time.perf_counter() - start
            last[name] = elapsed
            if runs >= 0:
                times[name].append(elapsed * 1e3)
        runs += 1
        if runs == 0:
            until = time.perf_counter() + seconds
    return times


def timing(times: Sequence[float], samples: int) -> dict[str, float]:
    """Return median, 95th percentile and throughput of calls of so many milliseconds.

    Args:
        times: of the calls.
        samples: of each call.
    """
    median = statistics.median(times)
    return {
        "ms_p50": median,
        "ms_p95": _p95(times),
        "samples_per_second": samples / median * 1e3,
    }


def _p95(values: Sequence[float]) -> float:
    """Return the smallest value that at least 95 % of the values do not exceed."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
