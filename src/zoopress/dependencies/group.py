"""A group of neurons: everything that shrinks when some of them are removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Role = Literal["producer", "consumer", "norm"]


@dataclass(frozen=True)
class Member:
    """One axis of one tensor that shrinks when neurons of a group are removed.

    Attributes:
        path: the module.
        tensor: its parameter or buffer.
        axis: the axis.
        role: a producer computes the neurons, a consumer sums over them, and a norm (a batch
            normalization's vectors, say) acts on each.
        index: [neurons, indices per neuron]: which indices of the axis each neuron has. One for a
            linear layer, height × width for the layer after a flattened feature map, three or four
            for the gates of a recurrent layer.
    """

    path: str
    tensor: str
    axis: int
    role: Role
    index: Tensor


@dataclass(frozen=True)
class NeuronGroup:
    """Neurons (hidden units, channels) each of which can be removed by itself.

    Attributes:
        name: the path of the module that produces them.
        size: how many there are.
        members: everything that shrinks with them.
        cluster: groups of one cluster must lose equally many neurons.
        multiple_of: of how many neurons a kernel wants a multiple to stay.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    cluster: int
    multiple_of: int = 1
