"""Count MACs: multiplications with their additions, of a forward pass.

They are those of products of matrices, convolutions, recurrent layers and attention; what costs
little beside them (biases, norms, activations, look-ups) counts as nothing. Torch's own flop
counter counts what is really run, so a pruned neuron or a factored layer shows without a formula
for it. It is told what it does not know: recurrent layers and attention on the CPU, products with
vectors, and packed weights, which count as the dense weights that they stand for, whatever kernel
computes with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.flop_counter import flop_registry

from zoopress.models.dispatch import flop_counter_mode, multiplied_densely
from zoopress.models.edits import submodule
from zoopress.models.packing import PackedWeight, packed_weights
from zoopress.models.weights import from_matrix, kind_of, row_count
from zoopress.tasks import Task

_aten = torch.ops.aten


class Macs(NamedTuple):
    """Multiplications with their additions.

    Attributes:
        dense: as they are run, zeros included.
        effective: without those by a weight that a mask makes zero.
    """

    dense: int
    effective: float


def count_macs(
    task: Task, module: nn.Module, inputs: Any, masks: Mapping[str, Tensor] | None = None
) -> dict[str, Macs]:
    """Count the MACs of a forward pass.

    Args:
        task: runs the module.
        module: the model.
        inputs: what the task's `forward` takes.
        masks: as `Model.masks` holds them.

    Returns:
        By the path of the module that computes, "" for the root, in the order of the first use.
        What a submodule computes counts for it alone, so that the values add up to the whole.
    """
    kept = list(_kept_weights(module, masks or {}))
    tally = _Tally(kept)
    counter = flop_counter_mode(display=False, custom_mapping=tally.formulas())
    fast_path = torch.backends.mha.get_fastpath_enabled()  # one opaque operation a whole layer
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with tally.watching(module), _dense_products(module, kept), counter:
            task.call(module, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return tally.layers


@dataclass
class _Kept:
    """Which numbers of a weight its mask keeps, and where in memory the weight is."""

    mask: Tensor
    packed: PackedWeight | None = None
    _weights: list[Tensor] = field(default_factory=list)
    _shares: dict[Any, float] = field(default_factory=dict)

    def place(self, weight: Tensor) -> None:
        """Note where the weight is. It is held on to: nothing else may come to lie there."""
        if weight.shape == self.mask.shape and _last(weight) == weight.numel() - 1:
            self._weights.append(weight)

    def share(self, tensor: Tensor) -> float | None:
        """Return the share of a tensor's numbers that is kept, None if it is not of the weight."""
        for weight in self._weights:
            offset = (tensor.data_ptr() - weight.data_ptr()) // weight.itemsize
            if offset >= 0 and offset + _last(tensor) < weight.numel():
                view = (tensor.shape, tensor.stride(), offset)
                if view not in self._shares:  # a recurrent layer asks for the same in every step
                    mask = torch.empty_strided(weight.shape, weight.stride(), dtype=torch.bool)
                    same = mask.copy_(self.mask).as_strided(*view)
                    self._shares[view] = float(same.double().mean())
                return self._shares[view]
        return None


def _last(tensor: Tensor) -> int:
    """Return where in memory a tensor's last number is, counted from its first."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return sum((size - 1) * stride for size, stride in sizes)


class _Tally:
    """Adds up what the flop counter's formulas tell, by the module that is running."""

    def __init__(self, kept: list[_Kept]) -> None:
        self.layers: dict[str, Macs] = {}
        self._kept = kept
        self._running = [""]

    @contextmanager
    def watching(self, root: nn.Module) -> Iterator[None]:
        """Know which of a model's modules is running."""
        paths = {module: path for path, module in root.named_modules()}

        def enter(module: nn.Module, arguments: Any) -> None:
            self._running.append(paths.get(module, self._running[-1]))

        def leave(module: nn.Module, arguments: Any, output: Any) -> None:
            self._running.pop()

        entering = register_module_forward_pre_hook(enter)
        leaving = register_module_forward_hook(leave, always_call=True)
        try:
            yield
        finally:
            entering.remove()
            leaving.remove()

    def add(self, macs: int, *factors: Tensor) -> int:
        """Note MACs of which each multiplies a number of each factor; return their flops."""
        before = self.layers.get(self._running[-1], Macs(0, 0))
        effective = macs * math.prod(map(self._share, factors))
        self.layers[self._running[-1]] = Macs(before.dense + macs, before.effective + effective)
        return 2 * macs

    def _share(self, factor: Tensor) -> float:
        shares = (kept.share(factor) for kept in self._kept)
        return next((share for share in shares if share is not None), 1.0)

    def formulas(self) -> dict[Any, Callable[..., int]]:
        """Return flop formulas by operation, for the flop counter."""
        known = {**flop_registry, **dict.fromkeys(_ATTENTION, flop_registry[_ATTENTION[0]])}
        formulas: dict[Any, Callable[..., int]] = {
            **{op: partial(self._by_torch, formula) for op, formula in known.items()},
            **{op: partial(self._by_us, macs) for op, macs in _MACS.items()},
            _aten.mkldnn_rnn_layer: self._mkldnn_layer,
            _aten._cudnn_rnn: self._cudnn_layers,
        }
        return {op: _given_tensors(formula) for op, formula in formulas.items()}

    def _by_torch(
        self, formula: Callable[..., int], *arguments: Any, out_val: Any, **named: Any
    ) -> int:
        flops = formula(*arguments, out_val=out_val, **named)
        return self.add(flops // 2, *(a for a in arguments if isinstance(a, Tensor)))

    def _by_us(self, macs: Callable[..., int], *arguments: Any, out_val: Any, **named: Any) -> int:
        return self.add(macs(*arguments), *(a for a in arguments if isinstance(a, Tensor)))

    def _mkldnn_layer(self, input: Tensor, *arguments: Any, out_val: Any) -> int:
        return self._recurrent(input, arguments[:2])  # of the input, of the state

    def _cudnn_layers(
        self, input: Tensor, weights: list[Tensor], *arguments: Any, out_val: Any
    ) -> int:
        return self._recurrent(input, [weight for weight in weights if weight.ndim == 2])

    def _recurrent(self, input: Tensor, weights: Iterable[Tensor]) -> int:
        """Count weights that are multiplied once a step, of input [steps, …, size]."""
        steps = math.prod(input.shape[:-1])
        return sum(self.add(steps * weight.numel(), weight) for weight in weights)


def _given_tensors(formula: Callable[..., int]) -> Callable[..., int]:
    """Mark a formula as one that takes tensors, not their shapes."""

    def counted(*arguments: Any, **named: Any) -> int:
        return formula(*arguments, **named)

    counted._get_raw = True  # type: ignore[attr-defined]
    return counted


def _grouped_macs(a: Tensor, b: Tensor, *_: Any) -> int:
    """Count a product of matrices in groups, as mixtures of experts compute."""
    groups = a.shape[0] if a.ndim == b.ndim == 3 else 1
    return groups * a.shape[-2] * a.shape[-1] * b.shape[-1]


def _trilinear_macs(a: Tensor, b: Tensor, c: Tensor, *expanded: Any) -> int:
    """Count the terms of the sum that nn.Bilinear computes."""
    spread: list[torch.Size] = []
    for tensor, axes in zip((a, b, c), expanded, strict=False):
        for axis in sorted(axes):
            tensor = tensor.unsqueeze(axis)
        spread.append(tensor.shape)
    return math.prod(max(sizes) for sizes in zip(*spread, strict=True))


_ATTENTION = [
    getattr(_aten, name)
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_fused_attention_overrideable",
    )
]
"""Attention with query, key and value; torch knows the first."""

_MACS: dict[Any, Callable[..., int]] = {
    _aten.mv: lambda matrix, vector: matrix.numel(),
    _aten.addmv: lambda bias, matrix, vector: matrix.numel(),
    _aten.dot: lambda a, b: a.numel(),
    _aten.addbmm: lambda bias, a, b: a.numel() * b.shape[-1],
    _aten._int_mm: lambda a, b: a.numel() * b.shape[-1],
    _aten._grouped_mm: _grouped_macs,
    _aten._trilinear: _trilinear_macs,
}
"""MACs of other operations that torch's flop counter does not know."""


def _kept_weights(root: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[_Kept]:
    """Yield masks in the shapes of their weights."""
    for name, mask in masks.items():
        path, _, attribute = name.rpartition(".")
        try:
            owner = submodule(root, path)
        except ValueError:  # of the codes of a weight that was packed, and is dense once loaded
            path, _, attribute = path.rpartition(".")
            owner = submodule(root, path)
        if isinstance(owner, PackedWeight):
            yield _Kept(_of_shape(mask, owner.shape, owner.output_axis), owner)
            continue
        weight = owner._parameters[attribute]
        assert weight is not None
        _, axis = kind_of(owner, attribute, weight.ndim)
        kept = _Kept(_of_shape(mask, weight.shape, axis))
        kept.place(weight)
        yield kept


def _of_shape(mask: Tensor, shape: torch.Size, output_axis: int) -> Tensor:
    """Return a mask in its weight's shape; that of codes is [rows, codes per row]."""
    if mask.shape == shape:
        return mask
    return from_matrix(mask.reshape(row_count(shape, output_axis), -1), shape, output_axis)


@contextmanager
def _dense_products(root: nn.Module, masked: Iterable[_Kept]) -> Iterator[None]:
    """Let packed weights compute with their dense forms, which the counter sees."""
    by_codes = {next(k.packed.buffers()).data_ptr(): k for k in masked if k.packed is not None}
    packed = list(packed_weights(root).values())

    def dense(weight: PackedWeight) -> Tensor:
        made = type(weight).dense(weight)
        kept = by_codes.get(next(weight.buffers()).data_ptr())  # tied ones share their codes
        if kept is not None:
            kept.place(made)
        return made

    with multiplied_densely(packed, dense):
        yield
