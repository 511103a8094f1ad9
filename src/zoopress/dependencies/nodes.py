"""Which indices of which tensors belong together: nodes, joined by edges, fixed for a reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NONE = -1
"""Stands, among node ids, for an element that no parameter's axis is behind, such as padding."""


@dataclass(frozen=True)
class Axis:
    """One axis of one parameter or buffer; its indices are the nodes `start` … `start + size`.

    `of_layer` tells that it is a linear layer's or a convolution's weight, even with one input.
    """

    path: str
    tensor: str
    axis: int
    start: int
    size: int
    of_layer: bool = False


class Nodes:
    """The graph: one node for every index of every axis of every float parameter and buffer."""

    def __init__(self) -> None:
        self.axes: list[Axis] = []
        self.count = 0
        self.reasons: list[str] = [""]
        self._edges: list[Tensor] = []
        self._fixed: list[tuple[Tensor, int]] = []
        self._contracted: list[Tensor] = []
        self._steps: list[tuple[Tensor, int]] = []

    def add(self, path: str, tensor: str, axis: int, size: int, of_layer: bool = False) -> Tensor:
        """Add an axis and return its node ids, [size]."""
        self.axes.append(Axis(path, tensor, axis, self.count, size, of_layer))
        self.count += size
        return torch.arange(self.count - size, self.count)

    def join(self, first: Tensor, second: Tensor) -> None:
        """Record that nodes can only be removed together, elementwise after broadcasting."""
        first, second = torch.broadcast_tensors(first, second)
        if torch.equal(first, second):
            return
        known = (first != NONE) & (second != NONE)
        lone = torch.where(first == NONE, second, first)[~known]
        self.fix(lone, "it is combined with a tensor whose size does not follow")
        self._edges.append(torch.stack([first[known], second[known]]))

    def fix(self, ids: Tensor, reason: str) -> None:
        """Record that nodes cannot be removed."""
        ids = ids[ids != NONE]
        if ids.numel():
            if reason not in self.reasons:
                self.reasons.append(reason)
            self._fixed.append((ids, self.reasons.index(reason)))

    def contract(self, ids: Tensor) -> None:
        """Record that a weight's nodes are summed over: the neurons they belong to end there."""
        self._contracted.append(ids[ids != NONE])

    def step(self, ids: Tensor, multiple: int) -> None:
        """Record that a kernel wants a multiple of so many of these nodes to stay."""
        self._steps.append((ids[ids != NONE], multiple))

    def steps(self, components: Tensor) -> Tensor:
        """Return for each node of which number its component's axis must keep a multiple."""
        by_component = torch.ones(self.count, dtype=torch.int64)
        for ids, multiple in self._steps:
            by_component[components[ids]] = by_component[components[ids]].lcm(
                torch.tensor(multiple)
            )
        return by_component[components]

    def contracted(self) -> Tensor:
        """Return which nodes are summed over, bool [nodes]."""
        found = torch.zeros(self.count, dtype=torch.bool)
        for ids in self._contracted:
            found[ids] = True
        return found

    def components(self) -> Tensor:
        """Return for each node the smallest node it can only be removed together with."""
        label = torch.arange(self.count)
        if not self._edges:
            return label
        first, second = torch.cat(self._edges, dim=1).unique(dim=1)
        while True:
            left, right = label[first], label[second]
            if torch.equal(left, right):
                return label
            low = torch.minimum(left, right)
            label = label.scatter_reduce(0, left, low, "amin").scatter_reduce(0, right, low, "amin")
            while not torch.equal(label[label], label):
                label = label[label]

    def fixed(self, components: Tensor) -> Tensor:
        """Return for each node the index in `reasons` of why its component is fixed, 0 if free."""
        by_component = torch.zeros(self.count, dtype=torch.int64)
        for ids, reason in reversed(self._fixed):  # the first reason found is the one reported
            by_component[components[ids]] = reason
        return by_component[components]
