"""Focused quantization: powers of two around the two humps that pruning leaves of a layer.

Of a pruned layer no weight is near zero, where shift quantization has nearly all of its levels. So
levels are put around the mean of each hump of a mixture of two normal distributions.

Source: Zhao et al. 2019, arXiv:1903.03046, sections 3.2 to 3.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from zoopress.plugins import hookimpl
from zoopress.techniques import Effects, Outcome, Technique, WeightSelection
from zoopress_plugins.quantization.codebook_quantization import (
    Codebook,
    CodebookForm,
    CodebookQuantization,
    CodebookQuantizationConfig,
    nearest,
    packed_values,
)

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context

ITERATIONS = 50
_MOST_POWERS = 15


class FocusedQuantizationConfig(WeightSelection):
    """How many levels, and when humps are apart."""

    bits: int = Field(
        default=5, ge=3, le=8, description="bits of a code: half of all levels for each hump"
    )
    separation: float = Field(
        default=2.0,
        ge=0,
        description="how far humps must be apart, as squared Wasserstein distance ÷ variance of "
        "the weights; those of other layers take powers of two around zero",
    )


@dataclass(frozen=True)
class Mixture:
    """Two normal distributions.

    Attributes:
        shares: [2], their sum is 1.
        means: [2].
        deviations: [2], above 0.
    """

    shares: Tensor
    means: Tensor
    deviations: Tensor

    def separation(self, weights: Tensor) -> float:
        """Return the squared 2-Wasserstein distance of the two ÷ the variance of weights [n]."""
        apart = (self.means[0] - self.means[1]).square()
        apart = apart + (self.deviations[0] - self.deviations[1]).square()
        return float(apart / weights.double().var(correction=0))


def fit_mixture(weights: Tensor) -> Mixture | None:
    """Fit two normal distributions by expectation and maximization, from the two signs.

    Args:
        weights: [n], without zeros.

    Returns:
        The mixture, or None if there are not two weights of each sign.
    """
    import torch

    values = weights.double()
    positive = values > 0
    if min(int(positive.sum()), int((~positive).sum())) < 2:
        return None
    belongs = torch.stack([~positive, positive]).double()
    floor = 1e-3 * values.std(correction=0).clamp_min(torch.finfo(torch.float32).tiny)
    for _ in range(ITERATIONS):
        mass = belongs.sum(1)
        means = (belongs * values).sum(1) / mass
        spread = (belongs * (values - means[:, None]).square()).sum(1) / mass
        deviations = spread.sqrt().clamp_min(float(floor))
        shares = mass / len(values)
        scaled = (values - means[:, None]) / deviations[:, None]
        log = shares.log()[:, None] - deviations.log()[:, None] - scaled.square() / 2
        turned = log.softmax(0)
        if float(turned.sum(1).min()) < 2 or float((turned - belongs).abs().max()) < 1e-6:
            break
        belongs = turned
    return Mixture(shares, means, deviations)


def focused_levels(mixture: Mixture, bits: int) -> Tensor:
    """Return the levels around both means: μ, and μ ± σ · 2^k, and zero, rising.

    Args:
        mixture: of the weights.
        bits: of a code, 3 to 8.

    Returns:
        [at most 2^bits − 1], float32; each a number of bfloat16.
    """
    import torch

    powers = min((1 << (bits - 2)) - 1, _MOST_POWERS)
    sizes = 2.0 ** torch.arange(1, 1 - powers, -1, dtype=torch.float64)
    offsets = torch.cat([-sizes, sizes, torch.zeros(1, dtype=torch.float64)])
    levels = mixture.means[:, None].cpu() + mixture.deviations[:, None].cpu() * offsets
    every = torch.cat([levels.flatten(), torch.zeros(1, dtype=torch.float64)])
    levels_of_both: Tensor = every.bfloat16().float().unique()
    return levels_of_both


def shift_levels(weights: Tensor, bits: int) -> Tensor:
    """Return zero and powers of two, scaled to the least squared error, rising.

    Args:
        weights: [n].
        bits: of a code.
    """
    from zoopress_plugins.quantization.grids.fit import fit
    from zoopress_plugins.quantization.grids.named import named_grid

    grid = named_grid("power_of_two", min(bits, 5))
    if not len(weights):
        weights = weights.new_zeros(1)
    scale = fit(weights[None], grid, 0).scale.float()
    levels: Tensor = (grid.levels[grid.levels.isfinite()] * scale.flatten().cpu()).unique()
    return levels


class FocusedQuantization(Technique[FocusedQuantizationConfig]):
    """Give the weights of each pruned layer levels around its two humps."""

    name = "focused_quantization"
    family = "quantization"
    config_type = FocusedQuantizationConfig

    def effects(self) -> Effects:
        """Require float weights, and leave none of the kinds it works on."""
        return Effects(requires=self.config.properties(), destroys=self.config.properties())

    def apply(self, model: Model, context: Context) -> Outcome:
        """Fit mixtures and pack the selected weights."""
        import torch

        weights, left = self.config.fitting(model)
        focused: dict[str, float] = {}
        notes: dict[str, Any] = {"separation_of_humps": focused, **({"left": left} if left else {})}

        def choose(weight: Weight) -> tuple[CodebookForm, Tensor]:
            flat = weight.matrix().flatten().float()
            levels, apart = self.levels(flat)
            focused[weight.name] = round(apart, 3)
            book = Codebook(levels.to(flat.device), torch.zeros_like(levels))
            return packed_values(book), nearest(flat, flat.new_ones(1), book, 0.0)

        config = CodebookQuantizationConfig(bits=self.config.bits)
        return CodebookQuantization(config).pack(model, weights, context, choose, notes)

    def levels(self, weights: Tensor) -> tuple[Tensor, float]:
        """Return the levels of a layer's weights [n], and how far its humps are apart."""
        nonzero = weights[weights != 0]
        mixture = fit_mixture(nonzero)
        apart = mixture.separation(nonzero) if mixture else 0.0
        if mixture is None or apart < self.config.separation:
            return shift_levels(weights, self.config.bits), apart
        return focused_levels(mixture, self.config.bits), apart

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for a weight's memberships in float64, and codes."""
        return 14 * largest


@hookimpl
def zoopress_techniques() -> list[type[FocusedQuantization]]:
    """Register the technique."""
    return [FocusedQuantization]
