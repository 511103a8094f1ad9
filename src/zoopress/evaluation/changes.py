"""Which predictions changed: confusion matrices, and the inputs that flipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from zoopress.evaluation.comparison import Comparison
from zoopress.tasks import Task

MAX_EXAMPLES = 40
MAX_SHOWN_BYTES = 4_000
"""Of one example as people see it; a longer text is cut, a larger image left out."""
MAX_ALL_SHOWN_BYTES = 100_000
MAX_CLASSES = 100
"""Of a confusion matrix; of more classes the pairs that are confused most are told."""
MAX_PAIRS = 50
MAX_NAME = 200

KINDS = ("right_to_wrong", "wrong_to_right", "wrong_to_other_wrong")


def confusion(
    target: Tensor, original: Tensor, compressed: Tensor, names: Sequence[str]
) -> dict[str, Any]:
    """Count what is taken for what.

    Args:
        target: [samples], int64.
        original: [samples], int64, predicted.
        compressed: [samples], int64, predicted.
        names: of the classes.

    Returns:
        "labels", and "original" and "compressed" as matrices: [target][predicted]. Of more than
        `MAX_CLASSES` classes instead "pairs": "target", "predicted", "original", "compressed",
        those that either model confuses most first.
    """
    classes = max(len(names), *(int(values.max()) + 1 for values in (target, original, compressed)))
    before, after = (
        Counter(zip(target.tolist(), predicted.tolist(), strict=True))
        for predicted in (original, compressed)
    )
    if classes <= MAX_CLASSES:
        every = range(classes)
        return {
            "labels": [_name(names, label) for label in every],
            "original": [[before[row, column] for column in every] for row in every],
            "compressed": [[after[row, column] for column in every] for row in every],
        }
    wrong = [pair for pair in before | after if pair[0] != pair[1]]
    wrong.sort(key=lambda pair: (-max(before[pair], after[pair]), pair))
    return {
        "pairs": [
            {
                "target": _name(names, pair[0]),
                "predicted": _name(names, pair[1]),
                "original": before[pair],
                "compressed": after[pair],
            }
            for pair in wrong[:MAX_PAIRS]
        ]
    }


def classification_changes(
    task: Task, target: Tensor, original: Tensor, compressed: Tensor
) -> dict[str, Any]:
    """Count the samples whose predicted class changed, and give some of them.

    Returns:
        "samples", "flipped", a count for each of `KINDS`, and "examples": some of each kind, with
        "row", "kind", "target", "original", "compressed" (names of classes), "shown" (what
        `Task.show` gives, None if nothing).
    """
    was_right, is_right = original == target, compressed == target
    kinds = {
        "right_to_wrong": was_right & ~is_right,
        "wrong_to_right": ~was_right & is_right,
        "wrong_to_other_wrong": ~was_right & ~is_right & (original != compressed),
    }
    rows = {kind: chosen.nonzero().flatten().tolist() for kind, chosen in kinds.items()}
    names = task.label_names()
    examples = [
        {
            "row": row,
            "kind": kind,
            "target": _name(names, int(target[row])),
            "original": _name(names, int(original[row])),
            "compressed": _name(names, int(compressed[row])),
        }
        for kind, row in _some(rows)
    ]
    return {
        "samples": len(target),
        "flipped": sum(len(each) for each in rows.values()),
        **{kind: len(each) for kind, each in rows.items()},
        "examples": _shown(task, examples),
    }


def label_changes(comparison: Comparison) -> dict[str, Any]:
    """Count the labels, as `Task.similarity` tells them, that are not the original's any more.

    Returns:
        Empty if the task's outputs carry no labels, or the compressed model's are not finite. Else
        "samples" (labels; a sequence may have one a position), "flipped", and "examples" with
        "row" (of the test split), "position" within it if it has several labels, "original",
        "compressed" and "shown".
    """
    task, runs = comparison.task, (comparison.original_run, comparison.compressed_run)
    if not all(run.outputs and run.finite for run in runs):
        return {}
    scores = [task.similarity(run.outputs) for run in runs]
    if scores[0] is None or scores[1] is None:
        return {}
    original, compressed = scores[0].argmax(1), scores[1].argmax(1)
    flipped = (original != compressed).nonzero().flatten()
    # Evenly from all of them: the first ones would all be of the first sequence.
    evenly = torch.linspace(0, len(flipped) - 1, min(len(flipped), MAX_EXAMPLES))
    chosen = flipped[evenly.round().long()].tolist()
    place = _places(comparison.original_run.outputs, len(original))
    names = task.label_names()
    examples = [
        {
            **place(index),
            "original": _name(names, int(original[index])),
            "compressed": _name(names, int(compressed[index])),
        }
        for index in chosen
    ]
    return {
        "samples": len(original),
        "flipped": len(flipped),
        "examples": _shown(task, examples),
    }


def _places(outputs: Sequence[Tensor], labels: int) -> Callable[[int], dict[str, int]]:
    """Return what tells a label's sample, "row", and "position" there if samples have several.

    It tells nothing if a task's own `similarity` gives another number of labels than the default.
    """
    sizes = [len(output) for output in outputs]
    if labels == sum(sizes):
        return lambda index: {"row": index}
    classes = [output.shape[-1 if output.ndim <= 3 else 1] for output in outputs]
    each = [
        output.numel() // (size * width)
        for output, size, width in zip(outputs, sizes, classes, strict=True)
    ]
    counts = torch.tensor(each).repeat_interleave(torch.tensor(sizes))  # labels of each sample
    if int(counts.sum()) != labels:
        return lambda index: {}
    ends = counts.cumsum(0)

    def place(index: int) -> dict[str, int]:
        row = int(torch.searchsorted(ends, index, right=True))
        return {"row": row, "position": index - int(ends[row] - counts[row])}

    return place


def _some(rows: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    """Return at most `MAX_EXAMPLES` pairs of kind and row, of each kind alike where there are."""
    queues = [[(kind, row) for row in chosen] for kind, chosen in rows.items()]
    turns = [pair for turn in zip_longest(*queues) for pair in turn if pair is not None]
    return sorted(turns[:MAX_EXAMPLES], key=lambda pair: (KINDS.index(pair[0]), pair[1]))


def _shown(task: Task, examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each example what people see of it, as long as there is room."""
    room = MAX_ALL_SHOWN_BYTES
    for example in examples:
        shown = _cut(task.show("test", example["row"])) if "row" in example else None
        size = _bytes(shown or "")
        example["shown"] = shown if size <= room else None
        room -= size if size <= room else 0
    return examples


def _cut(shown: str | None) -> str | None:
    if shown is None or _bytes(shown) <= MAX_SHOWN_BYTES:
        return shown
    # Half an image is none. A character takes no more than four bytes.
    return None if shown.startswith("data:") else shown[: MAX_SHOWN_BYTES // 4 - 1] + "…"


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _name(names: Sequence[str], label: int) -> str:
    """Return a class's name, cut where it is longer than a line of a report."""
    name = names[label] if label < len(names) else str(label)
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
