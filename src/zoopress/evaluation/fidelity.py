"""How close a compressed model's outputs are to its original's, on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoopress.errors import StageError, ZoopressError
from zoopress.models.outputs import relative_difference as relative_difference
from zoopress.results import Fidelity
from zoopress.tasks import Task

if TYPE_CHECKING:
    from zoopress.progress import Progress

MAX_OUTPUT_ELEMENTS = 50_000_000
"""Outputs are kept for comparison up to this many numbers; later batches are left out."""

_BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Run:
    """What a module made of the test split.

    Attributes:
        outputs: of each batch, until `MAX_OUTPUT_ELEMENTS` numbers are kept.
        statistics: what the task collects, one row a sample of the whole split; empty without
            labels.
    """

    outputs: list[Tensor]
    statistics: dict[str, Tensor]

    @property
    def finite(self) -> bool:
        """Whether all outputs that were kept are, and what was made of the others."""
        kept = [*self.outputs, *self.statistics.values()]
        return all(bool(values.isfinite().all()) for values in kept)


def run_all(
    task: Task, module: nn.Module, progress: Progress = lambda item, fraction=None: None
) -> Run:
    """Run a module on the task's test split.

    Raises:
        StageError: if the module fails in its forward pass.
    """
    outputs: list[Tensor] = []
    rows: list[dict[str, Tensor]] = []
    elements = 0
    examples = task.examples("test")
    for i, example in enumerate(examples, start=1):
        output = call(task, module, example.inputs)
        if elements <= MAX_OUTPUT_ELEMENTS:
            outputs.append(output)
        elements += output.numel()
        if example.targets is not None:
            rows.append(task.statistics(output, example.targets))
        elif elements > MAX_OUTPUT_ELEMENTS:
            break
        progress(f"batch {i} of {len(examples)}", i / len(examples))
    return Run(outputs, task.collect(rows))


def call(task: Task, module: nn.Module, batch: Any) -> Tensor:
    """Run a module on a batch, with an explanation if that fails.

    Raises:
        CardError: if its output is not what the task expects.
        StageError: if the module fails in its forward pass.
    """
    try:
        output = task.call(module, batch)
    except ZoopressError:  # the task has explained it
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise StageError(
            f"The model fails on the card's inputs: {type(error).__name__}: {error}. If the "
            "original fails too, the card's 'data' does not fit the model; else exclude the "
            "layers around the failing one."
        ) from error
    return output.detach().float()


def compare_outputs(
    task: Task, original: Sequence[Tensor], compressed: Sequence[Tensor]
) -> Fidelity:
    """Compare two models' outputs batch by batch; all zeros if `compressed` is not finite."""
    samples = sum(output.shape[0] for output in original)
    if not all(bool(output.isfinite().all()) for output in compressed):
        return Fidelity(samples, 0.0)
    pairs = zip(original, compressed, strict=True)
    cosine = float(torch.cat([sample_cosines(a, b) for a, b in pairs]).mean())
    scores, other = task.similarity(original), task.similarity(compressed)
    if scores is None or other is None:
        return Fidelity(samples, cosine)
    return Fidelity(
        samples, cosine, label_loyalty(scores, other), probability_loyalty(scores, other)
    )


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
    """Return the mean of `probability_loyalties`."""
    return float(probability_loyalties(original, compressed).mean())


def probability_loyalties(original: Tensor, compressed: Tensor) -> Tensor:
    """Return 1 − √JSD between the softmax of each two rows [samples, classes].

    The Jensen–Shannon divergence is taken to base 2, so the result lies in [0, 1].

    Source: Xu et al. 2021, arXiv:2109.03228, section 3.2.
    """
    # In blocks: in double precision, all of a language model's scores would take gigabytes.
    rows = max(1, _BLOCK_ELEMENTS // original.shape[1])
    blocks = zip(original.split(rows), compressed.split(rows), strict=True)
    return torch.cat([1 - _divergences(a, b).sqrt() for a, b in blocks])


def _divergences(one: Tensor, other: Tensor) -> Tensor:
    """Return the Jensen–Shannon divergence, to base 2, of each row's softmax."""
    p, q = one.double().softmax(1), other.double().softmax(1)
    middle = (p + q) / 2

    def divergence(a: Tensor) -> Tensor:
        terms: Tensor = torch.special.xlogy(a, a / middle)
        return terms.nan_to_num(0.0).sum(1) / math.log(2)

    return ((divergence(p) + divergence(q)) / 2).clamp(0, 1)


def _rows(output: Tensor) -> Tensor:
    return output.reshape(output.shape[0], -1)
