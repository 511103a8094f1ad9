"""Batch-norm folding: what a batch normalization multiplies and adds goes into the layer before it.

In inference a batch normalization is an affine function of each channel with fixed numbers, and so
is a part of the convolution or linear layer before it, if nothing else reads that layer's output.

Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import Config, Effects, Outcome, Technique, float_weights, weights_below

if TYPE_CHECKING:
    from torch import Size, Tensor, nn
    from torch.nn.modules.batchnorm import _BatchNorm

    from zoopress.models.model import Model
    from zoopress.techniques import Context

_TOLERANCE = {"float64": 1e-7, "float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}


class BatchNormFoldingConfig(Config):
    """Names are those of the normalizations."""

    include: tuple[str, ...] = Field(
        default=("*",), description="shell patterns; a normalization's name must match one"
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="shell patterns; a normalization's name must match none"
    )

    def selects(self, name: str) -> bool:
        """Return whether the patterns select a normalization of this name."""
        wanted = any(fnmatchcase(name, pattern) for pattern in self.include)
        return wanted and not any(fnmatchcase(name, pattern) for pattern in self.exclude)


def folded(
    weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a layer that computes scale · layer(x) + shift.

    Args:
        weight: [out, in] of the layer.
        bias: [out], None for zeros.
        scale: [out], float64.
        shift: [out], float64.

    Returns:
        [out, in] and [out], in the weight's type.

    Source: Jacob et al. 2018, arXiv:1712.05877, equation 14.
    """
    bias64 = 0.0 if bias is None else bias.double()
    scaled = weight.double() * scale[:, None]
    return scaled.to(weight.dtype), (bias64 * scale + shift).to(weight.dtype)


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the scale and the shift [channels], float64, of a batch normalization in inference."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


class BatchNormFolding(Technique[BatchNormFoldingConfig]):
    """Fold batch normalization into the layers before it."""

    name = "batch_norm_folding"
    family = "redesign"
    config_type = BatchNormFoldingConfig
    needs = frozenset({"calibration"})
    timed = False

    def effects(self) -> Effects:
        """Require float weights: a scale that is folded in would leave a quantization's grid."""
        kinds = ("linear", "conv", "vector")
        return Effects(
            requires=frozenset(map(float_weights, kinds)),
            scope=weights_below(self.config.include, self.config.exclude),
        )

    def refusal(self, model: Model) -> str | None:
        """Refuse a model without batch normalization, or with none that can be folded."""
        kept = {path: _unfit(norm) for path, norm in self._norms(model).items()}
        if None in kept.values():
            return None
        return self._nothing({path: why for path, why in kept.items() if why is not None})

    def apply(self, model: Model, context: Context) -> Outcome:
        """Find with one calibration batch which normalizations can be folded, and fold them."""
        from zoopress.evaluation.fidelity import relative_difference
        from zoopress.evaluation.sensitivity import judged_outputs

        batch = context.batches()[0]
        before = judged_outputs(context.call, model.module, batch, None)
        pairs, kept = self._find(model, lambda: context.call(model.module, batch))
        if not pairs:
            raise StageError(self._nothing(kept))
        for done, (norm, layer) in enumerate(pairs.items(), start=1):
            _fold(model, norm, layer)
            context.progress(norm, done / len(pairs))
        after = judged_outputs(context.call, model.module, batch, None)
        difference = max(relative_difference(a, b) for a, b in zip(before, after, strict=True))
        dtype = str(before[0].dtype).removeprefix("torch.")
        if not difference <= _TOLERANCE.get(dtype, 1e-3):
            raise StageError(
                f"Folding {len(pairs)} batch normalizations changes the outputs by up to "
                f"{difference:.2g} of the largest, which is more than rounding: the model computes "
                "with its layers in a way that does not show. Leave those out with 'exclude', or "
                "leave this stage out."
            )
        return Outcome(
            touched=[name for pair in pairs.items() for name in pair],
            notes={"folded": len(pairs), "relative_difference": difference, "kept": kept},
        )

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for one layer in double precision."""
        return 6 * largest

    def _find(
        self, model: Model, run: Callable[[], Tensor]
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Return the layer of each normalization that can be folded, and why others cannot."""
        from zoopress.dependencies.readers import ELSEWHERE, find_readers

        modules, norms = dict(model.module.named_modules()), self._norms(model)
        kept = {path: problem for path, norm in norms.items() if (problem := _unfit(norm))}
        users = Counter(
            id(parameter)
            for module in modules.values()
            for parameter in module._parameters.values()
            if parameter is not None
        )
        layers = {
            path: axis
            for path, module in modules.items()
            if path
            and (axis := _channel_axis(module)) is not None
            and not module._forward_hooks  # which may change what it puts out
            and "forward" not in vars(module)
            and all(users[id(parameter)] == 1 for parameter in module.parameters())
        }
        readers = find_readers(model.module, layers, list(norms), run)
        before: dict[str, set[str]] = {path: set() for path in norms}
        for layer, names in readers.items():
            for norm in names & norms.keys():
                before[norm].add(layer)
        pairs = {}
        for norm, sources in before.items():
            if norm in kept:
                continue
            if len(sources) != 1 or ELSEWHERE in sources:
                kept[norm] = "its input is not the output of one float layer alone"
                continue
            (layer,) = sources
            if len(readers[layer]) > 1:
                kept[norm] = f"the output of {layer!r} is read elsewhere, too"
            else:
                pairs[norm] = layer
        odd = {layer: modules[layer] for layer in pairs.values() if not _is_plain(modules[layer])}
        refused = _not_affine(odd, run) if odd else set()
        for norm, layer in [pair for pair in pairs.items() if pair[1] in refused]:
            kept[norm] = f"{layer!r} computes more with its weight than a linear layer does"
            del pairs[norm]
        return pairs, kept

    def _norms(self, model: Model) -> dict[str, _BatchNorm]:
        """Return the batch normalizations that are selected, by path."""
        from torch.nn.modules.batchnorm import _BatchNorm

        return {
            path: module
            for path, module in model.module.named_modules()
            if isinstance(module, _BatchNorm) and self.config.selects(path)
        }

    def _nothing(self, kept: Mapping[str, str]) -> str:
        if not kept:
            return (
                "This model has no batch normalization that matches include "
                f"{list(self.config.include)}, exclude {list(self.config.exclude)}. Leave this "
                "stage out."
            )
        name, reason = next(iter(kept.items()))
        return (
            f"No batch normalization of this model can be folded. Of {len(kept)}, {name!r}: "
            f"{reason}. Leave this stage out, or put it before those that pack or tie weights."
        )


def _unfit(norm: _BatchNorm) -> str | None:
    """Say why a batch normalization cannot be folded, whatever is before it."""
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    from zoopress.models.stand_in import former, obstacle

    if getattr(type(norm), "_packed_names", ()):
        return "its vectors are packed"
    if former(norm) is not None:
        return "it has been folded already"
    reason = obstacle(norm)
    if reason:
        return reason
    if "forward" in vars(norm) or norm._forward_pre_hooks:
        return "a hook or a forward set on it may compute more than a normalization does"
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    plain = type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    children = [name for name, _ in norm.named_children()]
    # timm's computes its dropout and its activation, too, and calls them so.
    if children != ([] if plain else ["drop", "act"]):
        return f"{type(norm).__name__} may compute something else"
    return None


def _channel_axis(module: nn.Module) -> int | None:
    """Return the axis of a layer's output channels, from the end; None if it takes no folding."""
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    weight = module._parameters.get("weight")
    if weight is None or not isinstance(module, (nn.Linear, _ConvNd)):
        return None
    if "bias" not in module._parameters or getattr(module, "parametrizations", None) is not None:
        return None
    return 1 - weight.ndim if isinstance(module, _ConvNd) else -1


def _is_plain(module: nn.Module) -> bool:
    """Tell whether a layer computes as torch's own do."""
    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return any(type(module).forward is kind.forward for kind in (*kinds, *transposed))


def _not_affine(layers: Mapping[str, nn.Module], run: Callable[[], Tensor]) -> set[str]:
    """Try layers with a forward of their own, such as those that pad as TensorFlow does.

    Args:
        layers: by path.
        run: runs the model.

    Returns:
        Paths of those whose outputs are not scaled and shifted as their weight and bias are.
    """
    import torch

    refused: set[str] = set()
    generator = torch.Generator().manual_seed(0)

    def attempt(path: str, module: nn.Module, args: Any, named: Any, output: Tensor) -> None:
        axis, own = _channel_axis(module), dict(module._parameters)
        weight, bias = own["weight"], own["bias"]
        assert axis is not None
        assert weight is not None
        scale = 0.5 + torch.rand(output.shape[axis], generator=generator, dtype=torch.float64)
        scale = scale.to(weight.device)
        shift = scale.flip(0) * float(output.abs().max())
        rows = _rows(module, weight.detach())
        new, new_bias = folded(rows, None if bias is None else bias.detach(), scale, shift)
        sides = (-1, *[1] * (-1 - axis))
        wanted = scale.view(sides) * output.double() + shift.view(sides)
        try:
            new = _from_rows(module, new, weight.shape)
            module._parameters["weight"] = torch.nn.Parameter(new, requires_grad=False)
            module._parameters["bias"] = torch.nn.Parameter(new_bias, requires_grad=False)
            found = type(module).forward(module, *args, **named)
        finally:
            module._parameters.update(own)
        error = float((found - wanted).abs().max() / wanted.abs().max())
        if not error <= _TOLERANCE.get(str(weight.dtype).removeprefix("torch."), 1e-3):
            refused.add(path)

    hooks = [
        module.register_forward_hook(partial(attempt, path), with_kwargs=True)
        for path, module in layers.items()
    ]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return refused


def _fold(model: Model, norm_path: str, layer_path: str) -> None:
    """Fold one normalization into one layer."""
    from zoopress.models.edits import submodule
    from zoopress_plugins.redesign.layers.folded import FoldedNorm

    norm: Any = submodule(model.module, norm_path)
    layer = submodule(model.module, layer_path)
    scale, shift = affine(norm)
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    assert weight is not None
    rows = _rows(layer, weight.detach())
    matrix, new_bias = folded(rows, None if bias is None else bias.detach(), scale, shift)
    tensors = {"weight": _from_rows(layer, matrix, weight.shape), "bias": new_bias}
    model.replace(layer_path, "folded_layer", {}, tensors)
    model.replace(norm_path, "folded_norm", {}, FoldedNorm.from_module(norm).state_dict())


def _rows(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a layer's weight as [output channels, rest]."""
    if not getattr(layer, "transposed", False):
        return weight.flatten(1)
    groups: Any = layer.groups  # each has its own inputs, [in, out / groups, kernel]
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return split.transpose(1, 2).flatten(2).flatten(0, 1)


def _from_rows(layer: nn.Module, rows: Tensor, shape: Size) -> Tensor:
    """Return [output channels, rest] in the shape of a layer's weight; inverse of `_rows`."""
    if not getattr(layer, "transposed", False):
        return rows.reshape(shape)
    groups: Any = layer.groups
    split = rows.reshape(groups, shape[1], shape[0] // groups, -1)
    return split.transpose(1, 2).reshape(shape)


@hookimpl
def zoopress_techniques() -> list[type[BatchNormFolding]]:
    """Register the technique."""
    return [BatchNormFolding]


@hookimpl
def zoopress_layers() -> dict[str, str]:
    """Register what artifacts call the layers."""
    where = "zoopress_plugins.redesign.layers.folded"
    return {"folded_norm": f"{where}:FoldedNorm", "folded_layer": f"{where}:FoldedLayer"}
