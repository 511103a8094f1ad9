"""Measure a compressed model against its original, on the same inputs."""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.gates import Fidelity
from zoopress.task import Task

if TYPE_CHECKING:
    from zoopress.progress import Progress

MAX_OUTPUT_ELEMENTS = 50_000_000
"""Outputs are kept for comparison up to this many numbers; later batches are left out."""

_BLOCK_ELEMENTS = 1 << 22


def run_all(
    task: Task, module: nn.Module, progress: Progress = lambda item, fraction=None: None
) -> list[Tensor]:
    """Return a module's outputs on the task's evaluation batches.

    Raises:
        StageError: if the module fails in its forward pass.
    """
    outputs: list[Tensor] = []
    elements = 0
    batches = task.batches("evaluation")
    for i, batch in enumerate(batches, start=1):
        output = call(task, module, batch)
        outputs.append(output)
        elements += output.numel()
        progress(f"batch {i} of {len(batches)}", i / len(batches))
        if elements > MAX_OUTPUT_ELEMENTS:
            break
    return outputs


def call(task: Task, module: nn.Module, batch: Any) -> Tensor:
    """Run a module on a batch, with an explanation if that fails.

    Raises:
        StageError: if the module fails in its forward pass.
    """
    try:
        output = task.call(module, batch)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise StageError(
            f"The model fails on the card's inputs: {type(error).__name__}: {error}. If the "
            "original fails too, the card's 'data' does not fit the model; else exclude the "
            "layers around the failing one."
        ) from error
    return output.detach().float()


def compare_outputs(
    task: Task, original: Sequence[Tensor], compressed: Sequence[Tensor]
) -> tuple[Fidelity, bool]:
    """Compare two models' outputs batch by batch.

    Returns:
        The fidelity, and whether all of `compressed` is finite. Fidelity is all zeros if not.
    """
    samples = sum(output.shape[0] for output in original)
    if not all(bool(output.isfinite().all()) for output in compressed):
        return Fidelity(samples, 0.0), False
    pairs = zip(original, compressed, strict=True)
    cosine = torch.cat([sample_cosines(a, b) for a, b in pairs]).mean()
    scores, other = task.similarity(original), task.similarity(compressed)
    if scores is None or other is None:
        return Fidelity(samples, float(cosine)), True
    return Fidelity(
        samples,
        float(cosine),
        label_loyalty(scores, other),
        probability_loyalty(scores, other),
    ), True


def sample_cosines(original: Tensor, compressed: Tensor) -> Tensor:
    """Return the cosine similarity [samples] of each sample's output as one vector."""
    a, b = _rows(original), _rows(compressed)
    cosines = nn.functional.cosine_similarity(a, b, dim=1, eps=1e-30)
    # Two equal all-zero outputs are as close as can be, though their angle is not defined.
    return torch.where((a == b).all(1), 1.0, cosines)


def label_loyalty(original: Tensor, compressed: Tensor) -> float:
    """Return the share of rows [samples, classes] with the same largest score."""
    return float((original.argmax(1) == compressed.argmax(1)).float().mean())


def probability_loyalty(original: Tensor, compressed: Tensor) -> float:
    """Return the mean of 1 − √JSD between the softmax of rows [samples, classes].

    The Jensen–Shannon divergence is taken to base 2, so the result lies in [0, 1].

    Source: Xu et al. 2021, arXiv:2109.03228, section 3.2.
    """
    # In blocks: in double precision, all of a language model's scores would take gigabytes.
    rows = max(1, _BLOCK_ELEMENTS // original.shape[1])
    blocks = zip(original.split(rows), compressed.split(rows), strict=True)
    return float(torch.cat([1 - _divergences(a, b).sqrt() for a, b in blocks]).mean())


def _divergences(one: Tensor, other: Tensor) -> Tensor:
    """Return the Jensen–Shannon divergence, to base 2, of each row's softmax."""
    p, q = one.double().softmax(1), other.double().softmax(1)
    middle = (p + q) / 2

    def divergence(a: Tensor) -> Tensor:
        terms: Tensor = torch.special.xlogy(a, a / middle)
        return terms.nan_to_num(0.0).sum(1) / math.log(2)

    return ((divergence(p) + divergence(q)) / 2).clamp(0, 1)


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference relative to the largest value; 0 if all are equal."""
    if a.shape != b.shape:
        return float("inf")
    both_nan = a.isnan() & b.isnan()
    difference = torch.where((a == b) | both_nan, 0.0, (a - b).abs())
    largest = float(difference.max()) if difference.numel() else 0.0
    scale = float(a.nan_to_num(0.0, 0.0, 0.0).abs().max()) if a.numel() else 0.0
    return largest / scale if scale else largest


def measure_latency(
    task: Task,
    original: nn.Module,
    compressed: nn.Module,
    batch_sizes: Sequence[int] = (1, 32),
    seconds: float = 4.0,
    progress: Progress = lambda item, fraction=None: None,
) -> list[dict[str, float]]:
    """Time both models on the same inputs, in turns, after a warm-up.

    Args:
        task: gives the inputs and runs the models.
        original: the model to compare with.
        compressed: the model that was made from it.
        batch_sizes: how many samples a call gets.
        seconds: about how long to measure each batch size.
        progress: called before each batch size; never while something is timed.

    Returns:
        For each batch size the median and 95th percentile of both in milliseconds, and the
        speed-up: median of the original ÷ median of the compressed model.
    """
    batches = task.batches("evaluation")
    batch = batches[len(batches) // 2]  # where batches are sorted by length, a typical one
    rows = []
    for done, size in enumerate(batch_sizes):
        progress(f"batch size {size}", done / len(batch_sizes))
        inputs = first_samples(batch, size)
        times: tuple[list[float], list[float]] = ([], [])
        until = 0.0
        runs = -2
        while runs < 3 or (time.perf_counter() < until and runs < 200):
            for module, collected in ((original, times[0]), (compressed, times[1])):
                start = time.perf_counter()
                task.call(module, inputs)
                if runs >= 0:
                    collected.append((time.perf_counter() - start) * 1e3)
            runs += 1
            if runs == 0:
                until = time.perf_counter() + seconds
        before, after = (statistics.median(collected) for collected in times)
        rows.append(
            {
                "batch_size": _length(inputs),
                "original_ms_p50": before,
                "original_ms_p95": _p95(times[0]),
                "compressed_ms_p50": after,
                "compressed_ms_p95": _p95(times[1]),
                "speed_up": before / after,
                "runs": len(times[0]),
            }
        )
        if _length(inputs) < size:
            break
    return rows


def describe_machine() -> dict[str, Any]:
    """Return what latency depends on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def first_samples(batch: Any, count: int) -> Any:
    """Return the first samples of a batch: a tensor, or tensors in a dict, tuple or list."""
    if isinstance(batch, Tensor):
        return batch[:count]
    if isinstance(batch, dict):
        return {key: first_samples(value, count) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(first_samples(value, count) for value in batch)
    return batch


def _length(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return int(batch.shape[0])
    values = batch.values() if isinstance(batch, dict) else batch
    return next(_length(value) for value in values)


def _rows(output: Tensor) -> Tensor:
    return output.reshape(output.shape[0], -1)


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
