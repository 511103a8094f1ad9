"""Quantization by ADMM: a training pulls weights to few levels, and lets them go on learning.

The weights W are trained with a pull to G, the nearest point of a grid, and to what is left over
from before, U: each `interval` steps G becomes the projection of W + U, scale and levels found by
turns, and U grows by W − G.

Source: Leng et al. 2018, arXiv:1707.09870, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import MASKS, MATRICES, Effects, Kind, Outcome, Technique, WeightSelection
from zoopress_plugins.distillation.distillation import Distillation, DistillationConfig
from zoopress_plugins.quantization.level_quantization import levels_form
from zoopress_plugins.quantization.packing_weights import Form, pack_weights

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context
    from zoopress_plugins.quantization.grids.level_grid import LevelGrid

_BITS = {"binary": 1, "ternary": 2}


class AdmmQuantizationConfig(WeightSelection):
    """Which levels, and the training that leads to them."""

    kinds: tuple[Kind, ...] = Field(default=MATRICES, min_length=1, description="kinds of weights")
    grid: Literal["binary", "ternary", "power_of_two"] = Field(
        default="ternary", description="the levels, as `level_quantization` and others have them"
    )
    bits: int | None = Field(
        default=None, ge=2, le=5, description="bits of a code, only of `power_of_two`; 3 by default"
    )
    scale: Literal["row", "tensor"] = Field(
        default="row", description="what has a scale of its own"
    )
    penalty: float = Field(
        default=0.01, gt=0, description="ρ, how strongly weights are pulled to their levels"
    )
    interval: int = Field(
        default=20, ge=1, description="steps from one time that levels are chosen to the next"
    )
    training: DistillationConfig = Field(
        description="the training, with the keys of `distillation`, such as {epochs: 10}"
    )

    @model_validator(mode="after")
    def _check(self) -> AdmmQuantizationConfig:
        if self.bits is not None and self.grid != "power_of_two":
            raise ValueError(f"'bits' is for 'grid: power_of_two', not {self.grid!r}; leave it out")
        return self

    @property
    def code_bits(self) -> int:
        """Bits of a code."""
        return _BITS.get(self.grid) or self.bits or 3


def project(matrix: Tensor, grid: LevelGrid, by_row: bool) -> Tensor:
    """Return the point of the grid that is nearest to a matrix, of those that turns lead to.

    Args:
        matrix: [rows, columns].
        grid: of the levels.
        by_row: whether each row has a scale of its own.
    """
    from zoopress_plugins.quantization.grids.fit import fit

    found = fit(matrix, grid, matrix.shape[1] if by_row else 0)
    return (grid.values(found.codes) * found.scale.float()).to(matrix.dtype)


class PulledToLevels:
    """Pulls weights to levels in each step, and puts them there in the last; a `Constraint`.

    Args:
        weights: what is quantized.
        steps: of the training.
        config: how.

    Raises:
        StageError: if a weight is not trained.
    """

    def __init__(
        self, weights: Sequence[Weight], steps: int, config: AdmmQuantizationConfig
    ) -> None:
        import torch

        from zoopress_plugins.quantization.grids.named import named_grid

        for weight in weights:
            if not weight.parameter.requires_grad:
                raise StageError(
                    f"{weight.name} is to be quantized in training, but is not trained. Leave it "
                    "out with 'exclude', or 'lora' and its 'learning_rates' out of 'training'."
                )
        self._weights, self._config, self._last = weights, config, steps
        self._grid = named_grid(config.grid, config.code_bits)
        self._step = torch.zeros((), dtype=torch.int64)
        self._levels = [self._projected(weight.matrix()) for weight in weights]
        self._rest = [w.matrix() - g for w, g in zip(weights, self._levels, strict=True)]

    def before_step(self) -> None:
        """Add ρ (W − G + U) to gradients."""
        for weight, levels, rest in zip(self._weights, self._levels, self._rest, strict=True):
            if weight.parameter.grad is not None:
                pull = self._config.penalty * (weight.matrix() - levels + rest)
                weight.parameter.grad.add_(weight.from_matrix(pull))

    def after_step(self) -> None:
        """Choose levels anew if it is time to; in the last step, take them."""
        import torch

        self._step += 1
        step = int(self._step)
        if step < self._last and step % self._config.interval:
            return
        with torch.no_grad():
            for i, weight in enumerate(self._weights):
                matrix = weight.matrix()
                if step >= self._last:
                    weight.parameter.copy_(weight.from_matrix(self._projected(matrix)))
                    continue
                self._levels[i].copy_(self._projected(matrix + self._rest[i]))
                self._rest[i].add_(matrix - self._levels[i])

    def tensors(self) -> dict[str, Tensor]:
        """Return the number of steps taken, the levels, and what is left over."""
        return {
            "step": self._step,
            **{f"levels/{i}": levels for i, levels in enumerate(self._levels)},
            **{f"rest/{i}": rest for i, rest in enumerate(self._rest)},
        }

    def reached(self) -> bool:
        """Return whether weights are at their levels."""
        return int(self._step) >= self._last

    def _projected(self, matrix: Tensor) -> Tensor:
        return project(matrix, self._grid, self._config.scale == "row")


class AdmmQuantization(Technique[AdmmQuantizationConfig]):
    """Train weights to few levels by the alternating direction method of multipliers."""

    name = "admm_quantization"
    family = "quantization"
    config_type = AdmmQuantizationConfig
    needs = Distillation.needs
    timed = False

    def effects(self) -> Effects:
        """Require float weights, and leave none; signs have no zero, so masks go."""
        properties = self.config.properties()
        gone = frozenset({MASKS}) if self.config.grid == "binary" else frozenset()
        return Effects(requires=properties, destroys=properties | gone)

    def apply(self, model: Model, context: Context) -> Outcome:
        """Train, and pack the selected weights."""
        config = self.config
        weights, left = config.fitting(model)
        within = replace(context, constrain=lambda steps: PulledToLevels(weights, steps, config))
        trained = Distillation(config.training).apply(model, within)

        def form(weight: Weight) -> Form:
            # They are at levels: the scale that spans them is that at which they were put there,
            # or a smaller one of which all levels in use are levels as well.
            matrix, size = weight.matrix(), None if config.scale == "row" else 0
            return levels_form(matrix, config.grid, config.code_bits, size, search=False)

        notes: dict[str, Any] = dict(trained.notes)
        remedy = "Take 'scale: tensor', or leave this stage out."
        packed = pack_weights(model, weights, context, form, left, remedy, notes)
        touched = list(dict.fromkeys([*packed.touched, *trained.touched]))
        return replace(packed, touched=touched)

    def cards(self) -> Sequence[str]:
        """Return the teacher's card, if it is another than the model's own."""
        return Distillation(self.config.training).cards()

    def training_work(self, training: int, validation: int) -> tuple[int, int]:
        """Return what the training does."""
        return Distillation(self.config.training).training_work(training, validation)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for the training, levels and what is left over, and a projection."""
        training = Distillation(self.config.training).working_bytes(total, largest)
        return training + 2 * total + 8 * largest


@hookimpl
def zoopress_techniques() -> list[type[AdmmQuantization]]:
    """Register the technique."""
    return [AdmmQuantization]
