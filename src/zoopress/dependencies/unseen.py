"""Weights that no run has reached: what they might read must stay as it is.

Where such a weight reads from cannot be known, but it can be narrowed down. Neurons whose producers
and consumers all lie within one module are its own affair, so only weights within that module can
read them; and a weight that reads n neurons has an input axis at least that long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from zoopress.dependencies.group import NeuronGroup
from zoopress.dependencies.nodes import Nodes
from zoopress.dependencies.trace import Trace
from zoopress.models.weights import find_weights


@dataclass(frozen=True)
class Unseen:
    """An axis of a weight that no run reached.

    Attributes:
        path: its module.
        size: its length.
        reads: whether the weight might sum over it, or act on it element by element; else it is the
            outputs' axis of a layer.
    """

    path: str
    size: int
    reads: bool


def readers_unseen(module: nn.Module, trace: Trace) -> list[Unseen]:
    """Return the axes of the parameters and buffers that a trace has not seen in use."""
    unread = trace.unread()
    outputs = {(w.path, w.attribute): w.output_axis for w in find_weights(module)}
    return [
        Unseen(axis.path, axis.size, outputs.get((axis.path, axis.tensor)) != axis.axis)
        for axis in trace.nodes.axes
        if (axis.path, axis.tensor) in unread
    ]


def hold(groups: Sequence[NeuronGroup], unseen: Sequence[Unseen], nodes: Nodes) -> dict[str, str]:
    """Fix the neurons that unseen weights might read; return by group the module that might."""
    held: dict[str, str] = {}
    starts = {(a.path, a.tensor, a.axis): a.start for a in nodes.axes} if unseen else {}
    for group in groups:
        scope = _common([member.path for member in group.members])
        for each in unseen:
            fits = each.size >= group.size if each.reads else each.size == group.size
            if fits and (not scope or f"{each.path}.".startswith(f"{scope}.")):
                held[group.name] = each.path
                first = group.members[0]
                ids: Tensor = starts[first.path, first.tensor, first.axis] + first.index.flatten()
                reason = f"{each.path!r}, which the calibration data does not reach, might read it"
                nodes.fix(ids, reason)
                break
    return held


def _common(paths: Sequence[str]) -> str:
    """Return the path of the innermost module that holds all modules of these paths."""
    parts = [path.split(".") for path in paths]
    common = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common)
