"""Computation: the multiplications that one sample takes, in all and layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from zoopress.evaluation.macs import Macs, count_macs
from zoopress.tasks.batches import first_samples, map_tensors, typical_batch

if TYPE_CHECKING:
    from zoopress.evaluation.comparison import Comparison
    from zoopress.progress import Progress

MAX_LAYERS = 500
"""A report lists so many layers at most, those that compute the most."""


def measure(comparison: Comparison, progress: Progress) -> dict[str, Any]:
    """Count the MACs of both models for one sample, the first of the batch in the middle.

    Returns:
        "inputs", the shapes of what was counted; "original_macs" and "compressed_macs" as they are
        run; "effective_macs" of the compressed model without those that masks make zero;
        "reduction" and "effective_reduction", original ÷ compressed and ÷ effective; and "layers".
    """
    task = comparison.task
    inputs = first_samples(typical_batch(task), 1)
    try:
        before = count_macs(task, comparison.original, inputs)
        progress("original", 0.5)
        after = count_macs(task, comparison.compressed, inputs, comparison.model.masks)
        progress("compressed", 1.0)
    # The models do run: what fails is a tensor of a kind that cannot be watched.
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        return {"skipped": f"torch cannot count it: {type(error).__name__}: {error}"}
    original, compressed = total(before.values()), total(after.values())
    return {
        "inputs": map_tensors(inputs, lambda _, tensor: list(tensor.shape)),
        "original_macs": original.dense,
        "compressed_macs": compressed.dense,
        "effective_macs": round(compressed.effective),
        "reduction": _ratio(original.dense, compressed.dense),
        "effective_reduction": _ratio(original.dense, compressed.effective),
        **_layer_rows(before, after, {name for name, _ in comparison.original.named_modules()}),
    }


def total(layers: Iterable[Macs]) -> Macs:
    """Add up the MACs of layers."""
    counted = list(layers)
    return Macs(sum(macs.dense for macs in counted), sum(macs.effective for macs in counted))


def _ratio(original: float, compressed: float) -> float | None:
    return original / compressed if compressed else None


def _layer_rows(
    before: Mapping[str, Macs], after: Mapping[str, Macs], known: set[str]
) -> dict[str, Any]:
    """List layers by the original's names; what took a layer's place counts as that layer."""
    grouped: dict[str, list[Macs]] = {name: [] for name in before}
    for name, macs in after.items():
        while name not in known:
            name = name.rpartition(".")[0]
        grouped.setdefault(name, []).append(macs)
    rows = []
    for name, parts in grouped.items():
        original, compressed = before.get(name, Macs(0, 0)), total(parts)
        rows.append((name, original.dense, compressed.dense, round(compressed.effective)))
    largest = sorted(rows, key=lambda row: max(row[1:]), reverse=True)[:MAX_LAYERS]
    names = ("name", "original_macs", "compressed_macs", "effective_macs")
    listed = set(largest)
    return {
        "layers": [dict(zip(names, row, strict=True)) for row in rows if row in listed],
        "layers_left_out": len(rows) - len(listed),
    }
