"""Universal randomized lattice quantization: weights plus dither go to the nearest lattice point.

The dither is drawn from a seed, so whoever reads the weights subtracts it again. The error is then
uniform over the lattice's cell and independent of the weights, whatever their distribution; and E8
leaves less of it than rounding each weight by itself, at as many bits.

Sources: Choi, El-Khamy & Lee 2018, arXiv:1802.02271; Ziv 1985, doi:10.1109/TIT.1985.1057034; Zamir
& Feder 1992, doi:10.1109/18.135648; Conway & Sloane 1982, doi:10.1109/TIT.1982.1056484 (E8).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import MATRICES, Claim, Effects, Kind, Outcome, Technique, WeightSelection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context
    from zoopress_plugins.quantization.forms.dither import Floats, Lattice
    from zoopress_plugins.quantization.forms.lattice import Dithered

GAUSSIAN_BITS = 0.5 * math.log2(2 * math.pi * math.e)
"""Entropy of normal weights of variance 1 in steps of 1, where the search for a step begins."""
SEARCH_STEPS = 40
SHORTFALL = 0.005
"""The search ends when so small a share of the bits asked for is left."""
FINEST, COARSEST = -11, 24
"""Bounds of that search, as the logarithm to base 2 of the step."""
LARGEST_CODE = 32_000
_BLOCK_WEIGHTS = 1 << 18


class LatticeQuantizationConfig(WeightSelection):
    """Which lattice, and how fine; give `step` or `bits_per_weight`."""

    kinds: tuple[Kind, ...] = Field(
        default=(*MATRICES, "embedding"),
        min_length=1,
        description="kinds of weights",
    )
    lattice: Literal["Z", "E8"] = Field(
        default="E8",
        description="`Z`: every weight is rounded by itself; `E8`: eight together, which errs less "
        "by 14 % in the square at equal bits. A weight with zeros takes Z, where they stay zero",
    )
    dither: bool = Field(
        default=True, description="whether errors are made independent of the weights"
    )
    step: float | None = Field(
        default=None, gt=0, description="step of the lattice ÷ root mean square of the weights"
    )
    bits_per_weight: float | None = Field(
        default=None, gt=0, le=12, description="mean bits when entropy coded; the step follows"
    )
    steps: Literal["tensor", "row"] = Field(
        default="tensor", description="what has a step of its own"
    )

    @model_validator(mode="after")
    def _check(self) -> LatticeQuantizationConfig:
        if (self.step is None) == (self.bits_per_weight is None):
            raise ValueError("give either 'step', such as 0.2, or 'bits_per_weight', such as 4")
        return self


@dataclass(frozen=True)
class Form:
    """How a weight is quantized; see `LatticeWeight`."""

    lattice: Lattice
    dithered: Dithered
    seed: int


def quantize(
    matrix: Floats, step: Floats, form: Form, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the code of each weight, as a float.

    Args:
        matrix: [n, columns], rows of a weight's matrix.
        step: [n, 1] or [1, 1].
        form: how. If only what is not zero is dithered, a weight becomes 0 where that is nearer
            than a point of another code.
        rows: [n], which rows they are.
    """
    import numpy as np

    from zoopress_plugins.quantization.forms.dither import codes_of, dither, nearest_point

    scaled = matrix / step
    if form.dithered == "none":
        return codes_of(nearest_point(scaled, form.lattice), form.lattice)
    offset = dither(form.seed, rows, matrix.shape[1], form.lattice)
    shifted = scaled + offset
    points = nearest_point(shifted, form.lattice)
    if form.dithered == "nonzero":
        points = np.where(points == 0, np.copysign(1.0, shifted), points)
        points[np.abs(scaled) <= np.abs(scaled - (points - offset))] = 0.0
    return codes_of(points, form.lattice)


def find_step(bits: Callable[[float], float], target: float) -> float:
    """Return a step at which weights take so many bits, or up to half a percent fewer.

    Bits fall about linearly with the logarithm of the step, so between a step that takes too many
    and one that takes too few the next to try is where a line between them meets the target.

    Args:
        bits: of a weight at a step, falling.
        target: wanted bits of a weight.

    Raises:
        StageError: if no step takes so few.
    """
    wanted = target * (1 - SHORTFALL / 2)
    at = GAUSSIAN_BITS - wanted  # logarithm to base 2, of a step that normal weights need
    found = bits(2.0**at)
    many = few = None
    stride = 0.5
    for _ in range(SEARCH_STEPS):
        if found > target:
            many = at, found
        else:
            few = at, found
            if found >= target * (1 - SHORTFALL):
                break
        before = at
        if many is None or few is None:
            at = min(max(at + (stride if found > target else -stride), FINEST), COARSEST)
            stride *= 2
        else:
            part = (many[1] - wanted) / max(many[1] - few[1], 1e-9)
            at = many[0] + min(max(part, 0.1), 0.9) * (few[0] - many[0])
        if at == before:  # weights of few values take few bits at any step
            break
        found = bits(2.0**at)
    if few is None:
        raise StageError(
            f"'bits_per_weight: {target}' cannot be reached: however large the steps, there are "
            f"{found:.3f} bits a weight. Ask for more bits, or take 'steps: tensor'."
        )
    return float(2.0 ** few[0])


class LatticeQuantization(Technique[LatticeQuantizationConfig]):
    """Quantize weights to a dithered lattice, for the entropy coder."""

    name = "lattice_quantization"
    family = "quantization"
    config_type = LatticeQuantizationConfig

    def effects(self) -> Effects:
        """Require float weights, and leave none of the kinds it works on."""
        return Effects(requires=self.config.properties(), destroys=self.config.properties())

    def apply(self, model: Model, context: Context) -> Outcome:
        """Find the step if bits are asked for, and pack the selected weights."""
        config = self.config
        weights, left = config.fitting(model)
        forms = {weight.name: self._form(weight, model, context.seed) for weight in weights}
        count = sum(weight.parameter.numel() for weight in weights)

        def bits(step: float) -> float:
            coded = (self._quantized(weight, forms[weight.name], step) for weight in weights)
            found = sum(_coded_bits(*each) for each in coded) / count
            context.progress(f"step {step:.4g}: {found:.3f} bits a weight")
            return found

        target = config.bits_per_weight
        step = config.step or find_step(bits, target or 0.0)
        total = 0.0
        for weight in context.track(weights):
            form = forms[weight.name]
            codes, steps = self._quantized(weight, form, step)
            total += _coded_bits(codes, steps)
            model.pack(
                weight,
                "lattice",
                {
                    "bits": 8 * codes.itemsize,
                    "lattice": form.lattice,
                    "dithered": form.dithered,
                    "seed": form.seed,
                    "steps": "row" if len(steps) > 1 else "tensor",
                },
                {"codes": codes, "step": steps},
            )
        model.storage = "zpz"  # a code takes a byte or two else, whatever its entropy
        plain = 8 * sum(w.parameter.nbytes for w in weights) / count
        return Outcome(
            touched=[weight.name for weight in weights],
            claims=[
                Claim("bits saved per weight, when coded", plain - target, plain - total / count)
            ]
            if target
            else [],
            notes={
                "step": step,
                "coded_bits_per_weight": total / count,
                "lattices": dict(Counter(form.lattice for form in forms.values())),
                **({"left": left} if left else {}),
            },
        )

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for a weight's codes, and for a block of points and dither."""
        return largest + 24 * 8 * _BLOCK_WEIGHTS

    def _form(self, weight: Weight, model: Model, seed: int) -> Form:
        # Rows of zeros take a step of 0. Zeros among other weights would get the dither of all.
        matrix = weight.matrix()
        kept = matrix[matrix.any(1)]
        zeros = weight.name in model.masks or not bool(kept.all())
        dithered: Dithered = "none" if not self.config.dither else "nonzero" if zeros else "all"
        return Form("Z" if zeros else self.config.lattice, dithered, seed)

    def _quantized(self, weight: Weight, form: Form, step: float) -> tuple[Tensor, Tensor]:
        """Return a weight's codes [rows, columns] and steps [rows] or [1].

        Raises:
            StageError: if a code is too large.
        """
        import numpy as np
        import torch

        matrix = weight.matrix().float()
        steps = _steps(matrix, step, self.config.steps == "row")
        codes = torch.empty(matrix.shape, dtype=torch.int16)
        size = max(1, _BLOCK_WEIGHTS // matrix.shape[1])
        for rows in torch.arange(len(matrix)).split(size):
            own = (steps[rows] if len(steps) > 1 else steps).double()[:, None]
            empty = own == 0
            found = quantize(
                matrix[rows].double().numpy(), own.where(~empty, 1.0).numpy(), form, rows.numpy()
            )
            found[empty.expand(len(rows), 1)[:, 0].numpy()] = 0.0
            if np.abs(found).max() > LARGEST_CODE:
                raise StageError(
                    f"{weight.name}: at 'step: {step:.3g}' a code is {np.abs(found).max():.0f}, "
                    f"above {LARGEST_CODE}. Take a larger step, or 'steps: row'."
                )
            codes[rows] = torch.from_numpy(found).to(torch.int16)
        small = int(codes.min()) >= -128 and int(codes.max()) <= 127
        return codes.to(torch.int8) if small else codes, steps


def _steps(matrix: Tensor, step: float, by_row: bool) -> Tensor:
    """Return the steps, bfloat16: of pruned weights the size does not count.

    Args:
        matrix: [rows, columns].
        step: ÷ root mean square.
        by_row: whether each row has one of its own.

    Returns:
        [rows]; or [1] for all, unless some rows are all zeros, whose steps are 0.
    """
    import torch

    groups = matrix if by_row else matrix.reshape(1, -1)
    kept = (groups != 0).sum(1).clamp(min=1)
    size = (groups.double().square().sum(1) / kept).sqrt()
    steps = (step * size).bfloat16()
    # Of what is all zeros the step is zero: whatever the dither is, the value is.
    used = matrix.any(1)
    if bool(used.all()) or not bool(used.any()):
        return steps
    return torch.where(used, steps, torch.zeros_like(steps))


def _coded_bits(codes: Tensor, steps: Tensor) -> float:
    from zoopress.coding.coder import estimate_bits

    return estimate_bits(codes.numpy()) + 8 * steps.nbytes


@hookimpl
def zoopress_techniques() -> list[type[LatticeQuantization]]:
    """Register the technique."""
    return [LatticeQuantization]


@hookimpl
def zoopress_layers() -> dict[str, str]:
    """Register what artifacts call a weight of lattice points."""
    return {"lattice": "zoopress_plugins.quantization.forms.lattice:LatticeWeight"}
