"""The weights of a model that techniques work on, whatever module holds them.

Every technique sees the same view: a `Weight` with a kind, a name and an [out, in] matrix, be it a
linear layer, a convolution, an embedding, a recurrent cell's gate matrix, attention's fused
projection, all experts of a layer in one parameter or a bare parameter. A vector, such as a bias or
a norm's scale, is a matrix of one column, and is found only where it is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from zoopress.models.stand_in import own_class

WeightKind = Literal["linear", "conv", "embedding", "recurrent", "experts", "parameter", "vector"]
WEIGHT_KINDS: tuple[WeightKind, ...] = (
    *("linear", "conv", "embedding", "recurrent", "experts", "parameter"),
)
"""Kinds of weights with at least two axes, which hold nearly all of a model."""

_TRANSPOSED_CONV = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED_CONV)
_NORMALIZATION = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
_TABLE = re.compile(
    r"(^|_)(pos|position|positional|token|tokens|embed|embeds|table)(_|$)|embedding"
)
LAST_IS_INPUT = -1
"""The output axis of experts [experts, out, in]: rows are the places on all axes but the last."""
_EXPERT_COUNTS = ("num_experts", "n_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Location:
    """Where a parameter hangs: the module's path ("" for the root) and the attribute's name."""

    path: str
    attribute: str

    @property
    def name(self) -> str:
        return f"{self.path}.{self.attribute}" if self.path else self.attribute


@dataclass(frozen=True)
class Weight:
    """One float parameter: with at least two axes, or of kind "vector" with one.

    `locations` has more than one entry when the weight is tied (an embedding that is also the
    output layer, say); the first gives its name.
    """

    parameter: nn.Parameter
    module: nn.Module
    kind: WeightKind
    output_axis: int
    locations: tuple[Location, ...]

    @property
    def name(self) -> str:
        return self.locations[0].name

    @property
    def path(self) -> str:
        return self.locations[0].path

    @property
    def attribute(self) -> str:
        return self.locations[0].attribute

    def matrix(self) -> Tensor:
        """Return the weight as [out, in]: kernels are flattened into `in`, a vector is [n, 1]."""
        return as_matrix(self.parameter.detach(), self.output_axis)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """Return an [out, in] matrix in the parameter's own shape; inverse of `matrix`."""
        return from_matrix(matrix, self.parameter.shape, self.output_axis)


def as_matrix(tensor: Tensor, output_axis: int) -> Tensor:
    """Return `tensor` as [out, in] with `output_axis` first and all other axes flattened."""
    if output_axis == LAST_IS_INPUT:
        return tensor.reshape(-1, tensor.shape[-1])
    moved = tensor.movedim(output_axis, 0)
    return moved.reshape(moved.shape[0], -1)


def from_matrix(matrix: Tensor, shape: torch.Size, output_axis: int) -> Tensor:
    """Return an [out, in] matrix as a tensor of `shape`; inverse of `as_matrix`."""
    if output_axis == LAST_IS_INPUT:
        return matrix.reshape(shape).contiguous()
    moved = list(shape)
    moved.insert(0, moved.pop(output_axis))
    return matrix.reshape(moved).movedim(0, output_axis).contiguous()


def row_count(shape: torch.Size, output_axis: int) -> int:
    """Return how many rows the matrix of a tensor of `shape` has."""
    if output_axis == LAST_IS_INPUT:
        return shape[:-1].numel()
    return shape[output_axis]


def kind_of(module: nn.Module, attribute: str, axes: int) -> tuple[WeightKind, int]:
    """Return the kind and the output axis of a parameter called `attribute` of `module`.

    Args:
        module: what holds the parameter.
        attribute: its name there.
        axes: how many it has.
    """
    if axes == 1:
        return "vector", 0
    own = own_class(module)  # not that of the layer in whose place it stands
    if issubclass(own, _CONV):
        return "conv", 1 if issubclass(own, _TRANSPOSED_CONV) else 0
    if issubclass(own, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding", 0
    if issubclass(own, (nn.RNNBase, nn.RNNCellBase)):
        return "recurrent", 0
    if issubclass(own, (nn.Linear, nn.Bilinear)):
        return "linear", 0
    if issubclass(own, nn.MultiheadAttention) and attribute.endswith("proj_weight"):
        return "linear", 0
    # GPT-2's linear layer, which stores [in, out]; a subclass where its bias is packed.
    if hasattr(module, "nf") and any(base.__name__ == "Conv1D" for base in own.__mro__):
        return "linear", 1
    if _holds_experts(module, attribute, axes):
        return "experts", LAST_IS_INPUT
    return ("embedding" if _is_table(module, attribute) else "parameter"), 0


def _is_table(module: nn.Module, attribute: str) -> bool:
    """Tell whether a bare parameter is added, scaled with or looked up, but is no matrix.

    Position embeddings, tokens, tables of relative positions, and what is a vector but for axes of
    one: nothing is known of their use but names and shapes.
    """
    parameter = module._parameters.get(attribute)
    if parameter is not None and (
        parameter.shape[0] == 1 or parameter.numel() == max(parameter.shape)
    ):
        return True
    return bool(_TABLE.search(attribute.lower()))


def _holds_experts(module: nn.Module, attribute: str, axes: int) -> bool:
    """Tell whether a bare parameter [experts, …] has a matrix, or a bias, for each expert."""
    names = {attribute.lower(), type(module).__name__.lower()}
    named = any("expert" in name and "router" not in name for name in names)
    if axes == 2:
        return named and attribute.endswith("bias")
    counted = any(type(vars(module).get(name)) is int for name in _EXPERT_COUNTS)
    return axes == 3 and (named or counted)


def find_weights(
    module: nn.Module,
    kinds: Collection[str] = WEIGHT_KINDS,
    include: Collection[str] = ("*",),
    exclude: Collection[str] = (),
) -> Iterator[Weight]:
    """Yield every float parameter of some kinds, tied ones once, in module order.

    One with one axis is a "vector"; a normalization layer's with more is none.

    Args:
        module: the model.
        kinds: kinds to yield; the default leaves vectors out.
        include: shell patterns of which a weight's name must match one ("*.query.weight").
        exclude: shell patterns of which it must match none.
    """
    locations: dict[int, list[Location]] = {}
    first: dict[int, tuple[nn.Parameter, nn.Module]] = {}
    for path, owner in module.named_modules():
        for attribute, parameter in owner._parameters.items():
            if parameter is None or parameter.ndim < 1 or not parameter.is_floating_point():
                continue
            if not parameter.numel() or (parameter.ndim > 1 and isinstance(owner, _NORMALIZATION)):
                continue
            locations.setdefault(id(parameter), []).append(Location(path, attribute))
            first.setdefault(id(parameter), (parameter, owner))
    for key, (parameter, owner) in first.items():
        places = tuple(locations[key])
        kind, axis = kind_of(owner, places[0].attribute, parameter.ndim)
        matches = any(fnmatchcase(p.name, pattern) for p in places for pattern in include)
        barred = any(fnmatchcase(p.name, pattern) for p in places for pattern in exclude)
        if kind in kinds and matches and not barred:
            yield Weight(parameter, owner, kind, axis, places)
