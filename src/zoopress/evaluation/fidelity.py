"""How close a compressed model's outputs are to its original's, on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from zoopress.errors import StageError, ZoopressError
from zoopress.evaluation.likeness import (
    Spread,
    compare_output,
    sample_cosines as sample_cosines,
    spread_of,
)
from zoopress.evaluation.observed import Observed, numbers, observe
from zoopress.evaluation.randomness import seeded
from zoopress.models.caches import caches_forgotten
from zoopress.models.outputs import relative_difference as relative_difference
from zoopress.results import Fidelity, OutputFidelity
from zoopress.tasks import Task, is_cache, is_judged
from zoopress.tasks.failures import place_in_model

if TYPE_CHECKING:
    from zoopress.progress import Progress

MAX_OUTPUT_ELEMENTS = 50_000_000
"""Outputs are kept for comparison up to this many numbers; later batches are left out."""
MAX_OTHER_ELEMENTS = 16_000_000
"""The same of all outputs but the one that the task returns, together."""

_BLOCK_ELEMENTS = 1 << 22
_OF_TORCH = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)
"""What torch raises of inputs that do not fit, whoever calls it."""

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What a module made of the test split.

    Attributes:
        outputs: what the task returned of each batch, until `MAX_OUTPUT_ELEMENTS` numbers are kept.
        statistics: what the task collects, one row a sample of the whole split; empty without
            labels.
        observed: all that the module returned, of the batches that are kept. Those after
            `MAX_OTHER_ELEMENTS` hold what the task returned alone.
        infinite: how many values of each output are NaN or infinite, of all batches.
        seeded: whether outputs were found to be random.
    """

    outputs: list[Tensor]
    statistics: dict[str, Tensor]
    observed: list[Observed] = field(default_factory=list)
    infinite: Mapping[str, int] = field(default_factory=dict)
    seeded: bool = False
    _spreads: dict[str, Spread] = field(default_factory=dict, repr=False, compare=False)

    @property
    def finite(self) -> bool:
        """Whether all outputs of the task that were kept are, and what was made of the others."""
        kept = [*self.outputs, *self.statistics.values()]
        return all(bool(values.isfinite().all()) for values in kept)

    def spread(self, name: str, rows: Sequence[Tensor], epsilon: float) -> Spread:
        """Return how an output differs between samples, measured once for all that is compared."""
        if name not in self._spreads:
            self._spreads[name] = spread_of(rows, epsilon)
        return self._spreads[name]


def run_all(
    task: Task, module: nn.Module, progress: Progress = lambda item, fraction=None: None
) -> Run:
    """Run a module on the task's test split.

    Raises:
        StageError: if the module fails in its forward pass.
    """
    observed: list[Observed] = []
    rows: list[dict[str, Tensor]] = []
    infinite: dict[str, int] = {}
    elements = others = 0
    examples = task.examples("test")
    for i, example in enumerate(examples, start=1):
        found = call_observed(task, module, example.inputs)
        for name, count in found.infinite.items():
            infinite[name] = infinite.get(name, 0) + count
        if elements <= MAX_OUTPUT_ELEMENTS:
            observed.append(found if others <= MAX_OTHER_ELEMENTS else found.without_others())
        elements += found.output.numel()
        others += sum(tensor.numel() for tensor in found.others.values())
        if example.targets is not None:
            rows.append(task.statistics(found.output, example.targets))
        elif elements > MAX_OUTPUT_ELEMENTS:
            break
        progress(f"batch {i} of {len(examples)}", i / len(examples))
    return Run([each.output for each in observed], task.collect(rows), observed, infinite)


def call(task: Task, module: nn.Module, batch: Any) -> Tensor:
    """Run a module on a batch, with an explanation if that fails; random numbers are the same ones.

    Raises:
        CardError: if its output is not what the task expects.
        StageError: if the module fails in its forward pass.
    """
    return _explained(module, lambda: numbers(task.call(module, batch)))


def call_observed(
    task: Task, module: nn.Module, batch: Any, seed: int = 0, forget: bool = True
) -> Observed:
    """Do the same as `call`, and return all that the module returned.

    Args:
        task: runs the module.
        module: the model.
        batch: its inputs.
        seed: of the random numbers that it may draw.
        forget: whether to take back what the module keeps of the call in plain attributes.
    """
    return _explained(module, lambda: observe(task, module, batch), seed, forget)


def _explained(module: nn.Module, run: Callable[[], T], seed: int = 0, forget: bool = True) -> T:
    try:
        # What it keeps of this call may not hold for the next: its weights change meanwhile.
        with seeded(seed), caches_forgotten(module) if forget else nullcontext():
            return run()
    except ZoopressError:  # the task has explained it
        raise
    except Exception as error:  # a model's code may raise anything
        place = place_in_model(error)
        if place is None and not isinstance(error, _OF_TORCH):
            raise
        where = "" if place is None else f" ({place})"
        raise StageError(
            f"The model fails on the card's inputs: {type(error).__name__}: {error}{where}. If the "
            "original fails too, the card's 'data' does not fit the model; else leave this stage "
            "out, or exclude the layers around the failing one if it has an 'exclude'."
        ) from error


def compare_runs(
    task: Task, original: Run, compressed: Run, module: nn.Module | None = None
) -> Fidelity:
    """Compare all that two models returned; the worst output that is judged decides.

    Args:
        task: of both.
        original: what the original made of the test split.
        compressed: what the other model did.
        module: the original, to ask whether lengths follow from values where two differ.
    """
    names = dict.fromkeys(name for seen in original.observed for name in seen.named)
    new = {name for seen in compressed.observed for name in seen.named} - names.keys()
    asked: dict[str, set[int]] = {}

    def free(name: str) -> set[int]:
        if not asked and module is not None:
            asked.update(free_axes(task, module))
        return asked.get(name, set())

    outputs = [
        found
        for name in names
        if (found := _compare_named(task, name, original, compressed, free)) is not None
    ]
    outputs += [
        OutputFidelity(name, "real", [], "cosine", 0.0, problem="the original has no such output")
        for name in sorted(new)
        if not is_cache(name)
    ]
    fidelity = compare_outputs(task, original.outputs, compressed.outputs)
    whole = replace(fidelity, outputs=outputs, seeded=original.seeded)
    values = [each.value for each in outputs if each.judged]
    return replace(whole, cosine=min(values, default=fidelity.cosine))


def _compare_named(
    task: Task,
    name: str,
    original: Run,
    compressed: Run,
    free: Callable[[str], set[int]],
) -> OutputFidelity | None:
    """Compare one output; None if there is nothing to say of it."""
    pairs: list[tuple[Tensor, Tensor]] = []
    first: Observed | None = None
    judged = is_judged(task, name, original.observed[0].main)
    for one, other in zip(original.observed, compressed.observed, strict=False):
        if name not in one.named:
            continue
        first = first or one
        problem = _changed_form(name, one, other, free)
        if problem is not None:
            if is_cache(name):  # its shapes are those of the layers
                return None
            kind = one.kinds[name]
            shape = list(one.rows(name).shape[1:])
            return OutputFidelity(name, kind, shape, "cosine", 0.0, judged=judged, problem=problem)
        pairs.append(_both_finite(one.rows(name), other.rows(name)))
    if first is None or not pairs or not any(a.numel() for a, _ in pairs):
        return None
    spread = original.spread(name, [a for a, _ in pairs], first.epsilon(name))
    found = compare_output(name, first.kinds[name], pairs, spread, judged)
    if compressed.infinite.get(name, 0) > original.infinite.get(name, 0):
        return replace(found, finite=False, value=0.0, constant=0.0, centred=None)
    return found


def _changed_form(
    name: str, one: Observed, other: Observed, free: Callable[[str], set[int]]
) -> str | None:
    """Say how an output has another form than the original's, None if it has the same."""
    if name not in other.named:
        return f"it is gone; there are {', '.join(map(repr, other.named)) or 'none'}"
    if one.kinds[name] != other.kinds[name]:
        return f"it was {one.types[name]} and is {other.types[name]}"
    before, after = one.named[name].shape, other.named[name].shape
    if before == after:
        return None
    if len(before) == len(after):
        axes = {i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b}
        if axes <= free(name):
            return None
    return f"its shape was {list(before)} and is {list(after)}"


def _both_finite(original: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs with zeros where both are NaN or infinite in the same way, as masks are."""
    if not original.is_floating_point() or bool(original.isfinite().all()):
        return original, other
    odd = ~original.isfinite()
    if original.shape != other.shape:
        return original.nan_to_num(0.0, 0.0, 0.0), other
    same = (original == other) | (original.isnan() & other.isnan())
    # What is finite now and was not is as far off as the original is large.
    far = original[~odd].abs().max() if bool((~odd).any()) else torch.tensor(1.0)
    return torch.where(odd, 0.0, original), torch.where(
        odd, torch.where(same, 0.0, far.to(other)), other
    )


def free_axes(task: Task, module: nn.Module, samples: int = 8) -> dict[str, set[int]]:
    """Return the axes of each output whose length follows from values, as of things detected.

    Samples are run one at a time; what differs between two whose inputs have the same shapes does
    not follow from shapes.

    Args:
        task: runs the module.
        module: the original.
        samples: how many are looked at.
    """
    from zoopress.tasks.batches import batch_length, first_samples, map_tensors, named_tensors

    shapes: dict[tuple[Any, ...], list[dict[str, torch.Size]]] = {}
    left = samples
    for batch in task.batches("test"):
        count = batch_length(batch)
        for row in range(min(left, count)):

            def one(_: str, tensor: Tensor, row: int = row, count: int = count) -> Tensor:
                return tensor[row : row + 1] if len(tensor) == count else tensor

            inputs = first_samples(map_tensors(batch, one), 1)
            key = tuple((n, tuple(t.shape)) for n, t in named_tensors(inputs).items())
            seen = call_observed(task, module, inputs)
            shapes.setdefault(key, []).append({n: t.shape for n, t in seen.named.items()})
        left -= count
        if left <= 0:
            break
    found: dict[str, set[int]] = {}
    for alike in shapes.values():
        for name, shape in alike[0].items():
            for other in (each[name] for each in alike[1:] if name in each):
                differing = zip(shape, other, strict=False)
                found.setdefault(name, set()).update(
                    i for i, (a, b) in enumerate(differing) if a != b
                )
    return found


def compare_outputs(
    task: Task, original: Sequence[Tensor], compressed: Sequence[Tensor]
) -> Fidelity:
    """Compare what a task returned of two models; all zeros if `compressed` is not finite."""
    samples = sum(output.shape[0] for output in original)
    pairs = list(zip(original, compressed, strict=False))
    if len(original) != len(compressed) or any(a.shape != b.shape for a, b in pairs):
        return Fidelity(samples, 0.0)
    if not all(bool(output.isfinite().all()) for output in compressed):
        return Fidelity(samples, 0.0)
    cosine = float(torch.cat([sample_cosines(a, b) for a, b in pairs]).mean())
    scores, other = task.similarity(original), task.similarity(compressed)
    if scores is None or other is None:
        return Fidelity(samples, cosine)
    return Fidelity(
        samples, cosine, label_loyalty(scores, other), probability_loyalty(scores, other)
    )


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
