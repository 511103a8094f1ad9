"""The neurons of a model that can be removed, in groups that shrink the same tensors."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.dependencies.group import Member, NeuronGroup, Role
from zoopress.dependencies.nodes import Nodes
from zoopress.dependencies.trace import Trace
from zoopress.dependencies.unseen import hold, readers_unseen
from zoopress.errors import ZoopressError
from zoopress.models.packing import PackedWeight
from zoopress.models.weights import find_weights


@dataclass(frozen=True)
class Dependencies:
    """What can be removed from a model, and what cannot.

    Attributes:
        groups: the removable neurons, in module order.
        fixed: why the outputs of each other layer must stay, by the layer's path.
        unreached: the modules with weights that no run reached. They keep their sizes, and so does
            whatever they might read.
        held: of each layer whose outputs must stay for that reason, the unreached module.
    """

    groups: tuple[NeuronGroup, ...]
    fixed: dict[str, str]
    unreached: tuple[str, ...] = ()
    held: dict[str, str] = field(default_factory=dict)


def find_dependencies(module: nn.Module, *runs: Callable[[], Any]) -> Dependencies:
    """Find the neurons of a module that can be removed, by running it on some inputs.

    If there are modules that none of them calls, the first is run once more, with what holds those
    modules in training mode.

    Args:
        module: the model, in evaluation mode.
        runs: each runs the module on a small batch. What they return counts as its outputs.

    Source: Fang et al. 2023, DepGraph, arXiv:2301.12900, carried to single indices of ATen
        operators instead of layers.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator a layer
    try:
        with torch.no_grad(), Trace(module) as trace:
            with _called(module) as reached:
                for run in runs:
                    trace.fix(run(), "it reaches the model's output")
            # Heads of training alone read what is removed as well, and must shrink along.
            with suppress(ZoopressError), _training_around(module, reached) as any_left:
                if any_left:
                    trace.fix(runs[0](), "it reaches the model's output")
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    groups = _groups(trace)
    unread = readers_unseen(module, trace)
    held = hold(groups, unread, trace.nodes)
    if held:
        groups = _groups(trace)
    unreached = tuple(dict.fromkeys(each.path for each in unread))
    fixed = _fixed(module, trace.nodes, groups, unreached)
    return Dependencies(tuple(groups), fixed, unreached, held)


@contextmanager
def _called(module: nn.Module) -> Iterator[set[nn.Module]]:
    """Collect the modules that are called."""
    found: set[nn.Module] = set()
    hooks = [m.register_forward_pre_hook(lambda m, _: found.add(m)) for m in module.modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _training_around(module: nn.Module, reached: Collection[nn.Module]) -> Iterator[bool]:
    """Put what holds modules with weights that were not called into training mode.

    Layers themselves stay in evaluation mode, so that none drops or counts anything.
    """

    def left(part: nn.Module) -> bool:
        own = any(True for _ in part.parameters(recurse=False))
        return own and part not in reached and not isinstance(part, PackedWeight)

    around = {
        part: part.training
        for part in module.modules()
        if not isinstance(part, nn.MultiheadAttention)
        and any(left(child) for child in part.modules() if child is not part)
    }
    try:
        for part in around:
            part.training = True
        yield bool(around)
    finally:
        for part, mode in around.items():
            part.training = mode


def _groups(trace: Trace) -> list[NeuronGroup]:
    nodes = trace.nodes
    while True:
        found = _components_alike(nodes)
        clusters, broken = _clusters(found, trace)
        if not broken:
            break
        for units in broken:
            nodes.fix(units, "the units of its recurrent module cannot all be removed alike")
    named = Counter(members[0].path for members in found)
    taken: Counter[str] = Counter()
    groups = []
    for members, cluster in zip(found, clusters, strict=True):
        first = members[0]
        several = named[first.path] > 1 or not first.path
        name = ".".join(part for part in (first.path, first.tensor if several else "") if part)
        taken[name] += 1
        name = name if taken[name] == 1 else f"{name}#{taken[name]}"
        groups.append(NeuronGroup(name, len(first.index), members, cluster, _step(members, trace)))
    return groups


def _step(members: tuple[Member, ...], trace: Trace) -> int:
    """Return of how many neurons a multiple must stay, by the kernels that their axes meet."""
    steps = trace.nodes.steps(trace.nodes.components())
    starts = {(a.path, a.tensor, a.axis): a.start for a in trace.nodes.axes}
    first = members[0]
    start = starts[first.path, first.tensor, first.axis]
    return int(steps[start + first.index.flatten()].max())


def _components_alike(nodes: Nodes) -> list[tuple[Member, ...]]:
    """Return the members of each group: components with equally many nodes on the same axes."""
    components = nodes.components()
    free = (nodes.fixed(components) == 0).nonzero().flatten()
    order = free[components[free].argsort(stable=True)]
    owner = torch.repeat_interleave(
        torch.arange(len(nodes.axes)), torch.tensor([axis.size for axis in nodes.axes])
    )
    neurons: dict[int, list[int]] = defaultdict(list)
    for component, node in zip(components[order].tolist(), order.tolist(), strict=True):
        neurons[component].append(node)
    owners = owner.tolist()
    alike: dict[tuple[int, ...], list[list[int]]] = defaultdict(list)
    for members in neurons.values():
        if len(members) > 1:
            alike[tuple(owners[node] for node in members)].append(members)
    contracted = nodes.contracted()
    found = []
    for signature, rows in alike.items():
        table = torch.tensor(rows)
        roles = {owner: _role(nodes, owner, contracted, table) for owner in sorted(set(signature))}
        if len(rows) < 2 or not {"producer", "consumer"} <= set(roles.values()):
            continue
        members_ = []
        for owner_, role in roles.items():
            axis = nodes.axes[owner_]
            columns = [i for i, own in enumerate(signature) if own == owner_]
            index = table[:, columns] - axis.start
            members_.append(Member(axis.path, axis.tensor, axis.axis, role, index))
        # The producer that stands first in the model gives the group its name.
        members_.sort(key=lambda member: member.role != "producer")
        found.append(tuple(members_))
    return found


def _role(nodes: Nodes, owner: int, contracted: Tensor, table: Tensor) -> Role:
    axis = nodes.axes[owner]
    on_axis = (table >= axis.start) & (table < axis.start + axis.size)
    if bool(contracted[table[on_axis]].any()):
        return "consumer"
    makes = any(a.path == axis.path and (a.axis > 0 or a.of_layer) for a in nodes.axes)
    return "producer" if makes else "norm"


def _clusters(found: list[tuple[Member, ...]], trace: Trace) -> tuple[list[int], list[Tensor]]:
    """Return a cluster for each group, and the units of recurrent modules that must be fixed."""
    clusters = list(range(len(found)))
    broken = []
    whole = {(m.path, m.tensor): i for i, g in enumerate(found) for m in g if m.axis == 1}
    starts = {(a.path, a.tensor): a for a in trace.nodes.axes if a.axis == 1}
    components = trace.nodes.components()
    reasons = trace.nodes.fixed(components)
    for path, units in trace.units.items():
        if bool((reasons[units] != 0).all()):
            continue
        mine = set()
        for row in units:
            name = next(t for (p, t), a in starts.items() if p == path and a.start == int(row[0]))
            group = whole.get((path, name))
            if group is None or len(found[group][0].index) != len(row):
                broken.append(units)
                break
            mine.add(group)
        else:
            low = min(clusters[group] for group in mine)
            old = {clusters[group] for group in mine}
            clusters = [low if cluster in old else cluster for cluster in clusters]
    return clusters, broken


def _fixed(
    module: nn.Module, nodes: Nodes, groups: list[NeuronGroup], unreached: Collection[str]
) -> dict[str, str]:
    """Return why layers keep all their outputs, by path."""
    reasons = nodes.fixed(nodes.components())
    axes = {(axis.path, axis.tensor, axis.axis): axis for axis in nodes.axes}
    shrinking = {
        member.path for group in groups for member in group.members if member.role == "producer"
    }
    fixed = {}
    for weight in find_weights(module, ("linear", "conv", "recurrent")):
        axis = axes.get((weight.path, weight.attribute, weight.output_axis))
        if weight.path in shrinking:
            continue
        reason = "it is used in a way that cannot be followed"
        if weight.parameter.shape[weight.output_axis] == 1:
            reason = "it has a single neuron"
        elif weight.path in unreached:
            reason = "the calibration data does not reach it"
        elif axis is not None:
            mine = reasons[axis.start : axis.start + axis.size]
            if bool((mine != 0).any()):
                reason = nodes.reasons[int(mine[mine != 0].mode().values)]
        fixed[weight.path] = reason
    return fixed
