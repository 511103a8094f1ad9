"""Lower float precision: every weight takes 16 bits, and so does what the model computes with.

bfloat16 has float32's range and 8 bits of precision; float16 has 11 bits of precision and ends at
65,504. The result is an ordinary model, which the library that it comes from loads by itself.

Source: Micikevicius et al. 2018, arXiv:1710.03740 (float16); Kalamkar et al. 2019,
arXiv:1905.12322 (bfloat16).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import KINDS, Claim, Config, Effects, Outcome, Technique, float_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from zoopress.models.model import Model
    from zoopress.techniques import Context


class FloatPrecisionConfig(Config):
    """Which type."""

    dtype: Literal["bfloat16", "float16"] = Field(
        default="bfloat16", description="type of weights and computation"
    )


MOST_LOST = 0.05
"""Relative error (Frobenius) above which rounding has lost a matrix: in range it is 0.002."""


def lower(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a float tensor to a type of 16 bits.

    Args:
        tensor: any shape, float32 or float64.
        dtype: bfloat16 or float16.

    Raises:
        ValueError: if a finite value would become infinite, or a matrix' values are so small that
            it would be another.
    """
    from zoopress.models.fitness import lost_to_rounding, norm_kept

    tensor = tensor.detach()
    lowered = tensor.to(dtype)
    if bool((lowered.isinf() & tensor.isfinite()).any()):
        largest = tensor[tensor.isfinite()].abs().max().item()
        raise ValueError(f"a value of {largest:.3g} is too large for {dtype}")
    # A vector of such values, as of a bias that training left, hardly counts beside what it is
    # added to.
    if tensor.ndim > 1 and norm_kept(tensor, tensor - lowered) > MOST_LOST and tensor.any():
        raise ValueError(
            f"values of {float(tensor.abs().max()):.3g} and less are too small for {dtype}, which "
            f"would make {lost_to_rounding(tensor, lowered):.0%} of them zero"
        )
    return lowered


class FloatPrecision(Technique[FloatPrecisionConfig]):
    """Store and compute in 16-bit floating point."""

    name = "float_precision"
    family = "quantization"
    config_type = FloatPrecisionConfig
    needs = frozenset({"calibration"})
    folds = False  # what weights are computed from can be stored as well

    def effects(self) -> Effects:
        """Require float weights of every kind: a packed one goes on to compute in float32.

        They stay float weights, and zeros stay zeros.
        """
        return Effects(requires=frozenset(float_weights(kind) for kind in KINDS))

    def apply(self, model: Model, context: Context) -> Outcome:
        """Round parameters, and the buffers that are saved with them."""
        import torch

        from zoopress.models.packing import packed_weights
        from zoopress_plugins.quantization.lowering import find_lowering

        if packed := packed_weights(model.module):
            raise StageError(
                f"{next(iter(packed))!r} is quantized already, and goes on to compute in float32 "
                "beside the rest. Put this stage before the one that quantizes."
            )
        dtype: torch.dtype = getattr(torch, self.config.dtype)
        kept = _kept_in_float32(model.module) | model.non_persistent()
        wanted = {
            name: tensor
            for name, tensor in (
                *model.module.named_parameters(remove_duplicate=False),
                *model.module.named_buffers(remove_duplicate=False),
            )
            if name not in kept and tensor.dtype in (torch.float32, torch.float64)
        }
        if not wanted:
            raise StageError(
                "There is no float32 or float64 tensor to lower; leave this stage out."
            )
        for name, tensor in wanted.items():
            _check_fits(name, tensor, dtype)
        context.progress("looking for what computes in 16 bits")
        inputs = context.batches()[0]
        try:
            found = find_lowering(
                model.module,
                wanted,
                lambda tensor: lower(tensor, dtype),
                lambda module: context.call(module, inputs),
            )
            if not found.names:
                raise StageError(
                    f"No layer of this model runs in {self.config.dtype}: {found.why}. It is the "
                    "model's own code that needs float32. Store its weights in fewer bits with "
                    "'weight_quantization' instead, which computes in float32."
                )
            before = sum(tensor.nbytes for tensor in wanted.values())
            before -= sum(wanted[name].nbytes for name in found.kept)
            for path, outside in found.layers.items():
                model.convert(path, outside)
            model.cast(found.names, lambda tensor: lower(tensor, dtype))
        except ValueError as error:
            raise StageError(
                f"{error}. Use 'dtype: bfloat16', which has float32's range."
            ) from error
        tensors = model.tensors()
        after = sum(tensors[name].nbytes for name in found.names)
        claims = [Claim("bytes saved of each float", 0.5, 1 - after / before)]
        notes: dict[str, Any] = {"kept_in_float32": len(kept) + len(found.kept)}
        if found.layers:
            notes["layers_in_16_bits"] = len(found.layers)
            notes["float32_between_layers_because"] = found.why[:300]
            notes["also_kept"] = found.kept[:50]
        flushed = [n for n in found.names if wanted[n].any() and not tensors[n].any()]
        if flushed:
            notes["rounded_to_zero"] = flushed
        return Outcome(touched=found.names, claims=claims, notes=notes)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for the lowered weights beside the others."""
        return total


def _check_fits(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Refuse a tensor that the type cannot hold: beside others it cannot stay in float32."""
    import torch

    try:
        lower(tensor, dtype)
    except ValueError as error:
        remedy = "Use 'dtype: bfloat16', which has float32's range."
        if dtype == torch.bfloat16:
            remedy = "Leave this stage out, or scale the tensor before it."
        raise StageError(f"{name}: {error}. {remedy}") from error


def _kept_in_float32(module: nn.Module) -> set[str]:
    """Return what a transformers model wants to keep in float32, and what changes inputs."""
    from zoopress.models.input_scale import input_changes

    kept = {
        f"{path}.{name}" for path, part in input_changes(module).items() for name in part._buffers
    }
    for path, part in module.named_modules():
        wanted = [
            *(getattr(part, "_keep_in_fp32_modules", None) or ()),
            *(getattr(part, "_keep_in_fp32_modules_strict", None) or ()),
        ]
        for name, _ in part.named_parameters(remove_duplicate=False) if wanted else ():
            if set(wanted) & set(name.split(".")):
                kept.add(f"{path}.{name}" if path else name)
    return kept


@hookimpl
def zoopress_techniques() -> list[type[FloatPrecision]]:
    """Register the technique."""
    return [FloatPrecision]
