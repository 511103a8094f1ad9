"""Activation quantization: what enters layers is rounded to integers, after training.

Static ranges are chosen once by an observer, from what calibration shows; dynamic ones are taken of
each call. It is no matter what the weights are in: with `weight_quantization` before or after it,
products are of integers alone. Each layer's harm is measured, and layers that would break the model
keep their inputs as they are.

Sources: Jacob et al. 2018, arXiv:1712.05877, section 2; Krishnamoorthi 2018, arXiv:1806.08342,
section 3; Gysel et al. 2016, arXiv:1604.03168 (powers of two: dynamic fixed point).
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import ACTIVATION_RANGES, Config, Effects, Outcome, Technique
from zoopress_plugins.quantization.ranges import Observing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn
    from typing_extensions import Self

    from zoopress.models.input_grid import InputGrid
    from zoopress.models.model import Model
    from zoopress.techniques import Context
    from zoopress_plugins.quantization.ranges.seen import Seen

LayerKind = Literal["linear", "conv", "recurrent"]

_HARM_SAMPLES = 64
_JUDGING = 32
"""Samples on whose outputs the correction of a bias is judged."""
_HARM_COST = 40_000_000_000
"""Bound of parameters × samples × layers: the same on every machine."""


class ActivationQuantizationConfig(Config):
    """What to round, to how many bits, and how to choose ranges."""

    kinds: tuple[LayerKind, ...] = Field(
        default=("linear", "conv", "recurrent"), min_length=1, description="kinds of layers"
    )
    include: tuple[str, ...] = Field(
        default=("*",), description="shell patterns; a layer's name must match one"
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="shell patterns; a layer's name must match none"
    )
    mode: Literal["static", "dynamic"] = Field(
        default="static",
        description="whether ranges are chosen from calibration data, or taken of each call",
    )
    bits: int = Field(default=8, ge=2, le=8, description="bits of an input's code")
    symmetric: bool = Field(
        default=False, description="whether zero lies in the middle of the grid, or where it fits"
    )
    per: Literal["auto", "tensor", "token", "channel"] = Field(
        default="auto",
        description="what has a range of its own: the whole input, each row of its last axis "
        "(dynamic alone, not in convolutions), or each channel; auto: a token where it can be",
    )
    observer: Observing = Field(default="mse", description="what chooses static ranges")
    percent: float = Field(
        default=99.99, gt=50, le=100, description="of the numbers that observer percentile keeps"
    )
    scales: Literal["any", "power_of_two"] = Field(
        default="any", description="what static scales may be: powers of two make fixed point"
    )
    data: Literal["calibration", "synthetic"] = Field(
        default="calibration",
        description="where ranges and harm are measured: on the card's calibration inputs, or on "
        "inputs that the model writes, that match its batch normalization, or noise",
    )
    samples: int = Field(default=128, ge=1, description="inputs to measure on, at most")
    on_break: Literal["keep", "fail"] = Field(
        default="keep",
        description="what becomes of layers that would make the outputs more unlike than "
        "max_harm: they keep their inputs as they are, or the stage fails and names them",
    )
    max_harm: float = Field(
        default=0.001,
        gt=0,
        le=1,
        description="1 − mean cosine of the outputs with and without, at most",
    )

    correct_biases: bool = Field(
        default=False,
        description="whether layers' biases take back what rounding shifts in their mean outputs",
    )

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.mode == "static" and self.per == "token":
            raise ValueError(
                "'per: token' needs 'mode: dynamic': no token's range is known beforehand"
            )
        if self.mode == "dynamic" and self.scales == "power_of_two":
            raise ValueError("'scales: power_of_two' needs 'mode: static'")
        return self


def grid_tensors(
    grid: InputGrid, low: Tensor, high: Tensor, power_of_two: bool = False
) -> dict[str, Tensor]:
    """Return scale and zero point of a static grid that spans ranges.

    Args:
        grid: says bits, symmetry and what has a scale of its own.
        low: [1] or [channels], smallest numbers.
        high: the same, largest.
        power_of_two: whether the scale is the next power of two.

    Source: Gysel et al. 2016, arXiv:1604.03168, section 4 (powers of two that hold the largest).
    """
    import torch

    scale, zero = grid.range(low.float(), high.float())
    if power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale.double()))).float()
        first, last = grid.limits
        if not grid.symmetric:
            zero = (first - low.float().clamp(max=0) / scale).round().clamp(first, last)
    shape = (len(scale),) if grid.per == "channel" else ()
    return {"scale": scale.reshape(shape), "zero_point": zero.to(grid.dtype).reshape(shape)}


class ActivationQuantization(Technique[ActivationQuantizationConfig]):
    """Round what enters linear, convolutional and recurrent layers to integers."""

    name = "activation_quantization"
    family = "quantization"
    config_type = ActivationQuantizationConfig
    needs = frozenset({"calibration"})
    folds = False

    def effects(self) -> Effects:
        """Hold ranges if they are static; weights may be whatever they are."""
        static = self.config.mode == "static"
        return Effects(
            adds=frozenset({ACTIVATION_RANGES} if static else ()),
            activations="rounded" if self.config.bits >= 7 else "changed",
        )

    def refusal(self, model: Model) -> str | None:
        """Say whether no layer can be worked on."""
        try:
            self._select(model, {})
        except StageError as error:
            return str(error)
        return None

    def apply(self, model: Model, context: Context) -> Outcome:
        """Choose ranges, measure harm, and put grids before the layers that bear them."""
        from zoopress.evaluation.sensitivity import judged_outputs
        from zoopress_plugins.quantization.activations.bias_correction import (
            correct_biases,
            squared_distance,
        )
        from zoopress_plugins.quantization.activations.damage import Harm, bearable
        from zoopress_plugins.quantization.activations.inputs import seen_by, some_samples
        from zoopress_plugins.quantization.activations.synthetic import calibration_inputs

        config, left = self.config, dict[str, str]()
        layers = self._select(model, left)
        grids = self._grids(layers, left)
        batches = some_samples(calibration_inputs(context, model, config.data), config.samples)
        if not batches:
            raise StageError(
                "There are no calibration inputs to choose ranges on. Give the card "
                "'calibration_samples', or use 'data: synthetic'."
            )

        def run(batch: Any) -> list[Tensor]:
            return judged_outputs(context.call, model.module, batch, context.task)

        layers = {name: layers[name] for name in grids}
        seen = seen_by(
            layers, grids, run, batches, lambda done: context.progress("measuring ranges", done)
        )
        tensors = self._tensors(grids, seen, left)
        if not tensors:
            raise StageError(f"No layer's input can be rounded: {_some(left)}.")
        for name, values in tensors.items():
            for attribute, tensor in values.items():
                grids[name]._buffers[attribute] = tensor.to(context.device)
        count = sum(parameter.numel() for parameter in model.module.parameters()) + 1
        affordable = max(1, _HARM_COST // (count * len(tensors)))
        few = some_samples(batches, max(1, min(8, affordable)))
        harm_alone = Harm(layers, grids, run, few)
        alone = {}
        for done, name in enumerate(tensors, start=1):
            alone[name] = harm_alone.of([name])
            context.progress(name, done / len(tensors))
        harm = Harm(layers, grids, run, some_samples(batches, min(_HARM_SAMPLES, 8 * affordable)))
        names, reached = bearable(alone, harm.of, config.max_harm)
        kept = {name: alone[name] for name in alone if name not in names}
        if kept and config.on_break == "fail":
            raise StageError(
                f"Rounding all inputs makes the outputs {harm.of(list(alone)):.3g} unlike, more "
                f"than 'max_harm: {config.max_harm}'; those of {_worst(kept)} do most. Use "
                "'on_break: keep', another observer, 'mode: dynamic', or leave them out with "
                "'exclude'."
            )
        if not names:
            raise StageError(
                f"Each layer's input, rounded alone, breaks the model: {_worst(kept)}, where "
                f"'max_harm' is {config.max_harm}. Use more bits, 'mode: dynamic', or a larger "
                "'max_harm'."
            )
        for name in names:
            grid = grids[name]
            arguments = {
                "bits": grid.bits,
                "symmetric": grid.symmetric,
                "per": grid.per,
                "dynamic": grid.dynamic,
            }
            model.quantize_input(name, arguments, tensors[name])
        left |= {
            name: f"rounded alone, its input makes the outputs {figure:.2g} unlike"
            for name, figure in kept.items()
        }
        notes: dict[str, Any] = {
            "harm": round(reached, 6),
            "inputs_rounded": len(names),
            **({"kept_because_they_break": _rounded(kept)} if kept else {}),
            **({"left": left} if left else {}),
            "calibration_samples": sum(map(_length, batches)),
            "harm_of_each": _rounded(alone),
        }
        touched = list(names)
        if config.correct_biases:
            assert context.teacher is not None, "a stage's context has a teacher"
            context.progress("correcting biases")
            original, judging = context.teacher(None), some_samples(batches, _JUDGING)
            wanted = [judged_outputs(context.call, original, b, context.task) for b in judging]

            def error() -> float:
                pairs = ((w, run(batch)) for w, batch in zip(wanted, judging, strict=True))
                return sum(squared_distance(w, found) for w, found in pairs)

            biases, without = correct_biases(model, original, context.call, batches, error)
            touched += biases
            notes["biases_corrected"] = len(biases)
            notes |= {"biases_left": without} if without else {}
        return Outcome(touched=touched, shrinks=False, notes=notes)

    def _select(self, model: Model, left: dict[str, str]) -> dict[str, nn.Module]:
        """Return the layers to work on by name.

        Raises:
            StageError: if there are none.
        """
        from zoopress.models.input_grid import no_input_grid

        config = self.config
        found: dict[str, nn.Module] = {}
        for name, layer in model.module.named_modules():
            kind = _kind(layer)
            if kind not in config.kinds or not _matches(name, config.include):
                continue
            if _matches(name, config.exclude):
                continue
            reason = no_input_grid(layer)
            if reason is None:
                found[name] = layer
            else:
                left[name] = reason
        if not found:
            raise StageError(
                f"No layer matches kinds {list(config.kinds)}, include {list(config.include)}, "
                f"exclude {list(config.exclude)}{f': {_some(left)}' if left else ''}."
            )
        return found

    def _grids(self, layers: Mapping[str, nn.Module], left: dict[str, str]) -> dict[str, InputGrid]:
        from zoopress.models.input_grid import make_input_grid

        config, found = self.config, {}
        for name, layer in layers.items():
            per = config.per
            if per == "auto":
                by_token = config.mode == "dynamic" and _kind(layer) != "conv"
                per = "token" if by_token else "tensor"
            try:
                found[name] = make_input_grid(
                    layer, config.bits, config.symmetric, per, config.mode == "dynamic"
                )
            except ValueError as error:
                left[name] = str(error)
        return found

    def _tensors(
        self, grids: Mapping[str, InputGrid], seen: Mapping[str, Seen], left: dict[str, str]
    ) -> dict[str, dict[str, Tensor]]:
        """Return the buffers of each grid that can be; say why of the others."""
        from zoopress_plugins.quantization.ranges import observer_of

        config = self.config
        observer = observer_of(config.observer, config.percent)
        found: dict[str, dict[str, Tensor]] = {}
        for name, grid in grids.items():
            told = seen.get(name)
            if told is None:
                left[name] = "no calibration input reaches it, or its weight is read without it"
            elif told.odd:
                left[name] = f"{told.odd:,} of the numbers that enter it are NaN or infinite"
            elif told.is_empty:
                left[name] = "its input is 0 in all of calibration, which tells no range"
            elif grid.dynamic:
                found[name] = {}
            else:
                low, high = observer.range(told, config.bits, config.symmetric)
                dead = (told.low == 0) & (told.high == 0)
                if bool(dead.any()):  # of other inputs they may be alive: as wide as the others
                    low, high = low.where(~dead, low.min()), high.where(~dead, high.max())
                power = config.scales == "power_of_two"
                found[name] = grid_tensors(grid, low, high, power)
        return found


def _kind(layer: nn.Module) -> str | None:
    from torch.nn import RNNBase, RNNCellBase

    from zoopress.models.input_grid import input_axis
    from zoopress.models.stand_in import former, own_class

    axis = input_axis(layer)
    if axis is None:
        return None
    was = former(layer)
    kinds = (own_class(layer), *([was.kind] if was else []))
    if any(issubclass(kind, (RNNBase, RNNCellBase)) for kind in kinds):
        return "recurrent"
    return "linear" if axis == -1 else "conv"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a layer's name, or that of its weight, matches a pattern."""
    return any(
        fnmatchcase(name, pattern) or fnmatchcase(f"{name}.weight", pattern) for pattern in patterns
    )


def _some(left: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:3])


def _worst(harms: Mapping[str, float]) -> str:
    worst = sorted(harms.items(), key=lambda item: -item[1])[:5]
    return ", ".join(f"{name!r} ({figure:.3g})" for name, figure in worst)


def _rounded(harms: Mapping[str, float]) -> dict[str, float]:
    ordered = sorted(harms.items(), key=lambda item: -item[1])
    return {name: float(f"{figure:.3g}") for name, figure in ordered}


def _length(batch: Any) -> int:
    from zoopress.tasks.batches import batch_length

    return batch_length(batch)


@hookimpl
def zoopress_techniques() -> list[type[ActivationQuantization]]:
    """Register the technique."""
    return [ActivationQuantization]
