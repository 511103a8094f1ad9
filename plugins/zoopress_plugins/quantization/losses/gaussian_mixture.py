"""A mixture of Gaussians over weights, one component of which stays at zero.

Sources: Nowlan & Hinton 1992, doi:10.1162/neco.1992.4.4.473, section 3; Ullrich, Meeds & Welling
2017, arXiv:1702.04008, section 4 and appendix (hyper-priors).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoopress_plugins.quantization.codebook_quantization import SAMPLE, fit_codebook

RATE = 3.0
"""How much faster than a weight the logarithms of precisions and proportions are learned: they have
a longer way. At ten times the speed components narrow before weights have come to them."""
_PART = 1 << 18
_LEAST_UNIT = 1e-3


def negative_log_likelihood(
    weights: Tensor, means: Tensor, log_precisions: Tensor, log_proportions: Tensor
) -> Tensor:
    """Return −Σᵢ ln Σⱼ πⱼ N(wᵢ | μⱼ, 1 ÷ λⱼ), a scalar with gradients for all four.

    Args:
        weights: [n].
        means: [components].
        log_precisions: [components], ln λ.
        log_proportions: [components], ln π.

    Source: Ullrich et al. 2017, arXiv:1702.04008, eq. 9.
    """
    constant = log_proportions + 0.5 * (log_precisions - math.log(2 * math.pi))
    squares = (weights[:, None] - means).square()
    return -(constant - 0.5 * log_precisions.exp() * squares).logsumexp(1).sum()


def gamma_prior(log_precisions: Tensor, shape: Tensor, mode: float) -> Tensor:
    """Return −Σⱼ ln Gamma(λⱼ | α, β), but for a constant: Σⱼ (α − 1) (λⱼ ÷ mode − ln λⱼ).

    Args:
        log_precisions: [components], ln λ.
        shape: [components], α − 1, above 0.
        mode: the precision that is the likeliest, (α − 1) ÷ β.

    Source: Ullrich et al. 2017, arXiv:1702.04008, section 4.1 ("hyper-priors").
    """
    return (shape * (log_precisions.exp() / mode - log_precisions)).sum()


class GaussianMixture(nn.Module):
    """What weights are drawn from: means, precisions and proportions are learned with them.

    It starts from the values that k-means finds and from the root mean square of its error, which
    is the unit of all that follows, so that it is the same mixture whatever the weights' scale. A
    hyper-prior counts as much as the weights that its component has by the proportions it starts
    from. So components do not collapse, however many weights there are: where all of a component's
    n weights are alike, its deviation is the expected one over the root of 1 + n ÷ (n at first).

    Args:
        weights: [n], those that it is to hold; not all zero.
        components: how many, that at zero included.
        zero_proportion: of the component at zero, which is not learned.
        deviation: expected standard deviation of weights around a value, in units.
    """

    unit: Tensor
    shape: Tensor

    def __init__(
        self, weights: Tensor, components: int, zero_proportion: float, deviation: float
    ) -> None:
        super().__init__()
        weights = weights.detach().float()
        weights = weights[weights != 0]
        self.count = len(weights)
        if self.count > SAMPLE:
            drawn = torch.randint(self.count, (SAMPLE,), device="cpu")
            weights = weights[drawn.to(weights.device)]
        weights = weights.cpu()
        values = fit_codebook(weights, torch.ones(1), components, 0.0, 0.0).values
        means = values[values != 0]
        error = (weights[:, None] - values).abs().amin(1).square().mean().sqrt()
        size = weights.square().mean().sqrt()
        self.register_buffer("unit", torch.maximum(error, _LEAST_UNIT * size))
        self.mode = deviation**-2
        self.zero_proportion = zero_proportion
        proportions = torch.full((1 + len(means),), (1 - zero_proportion) / len(means))
        proportions[0] = zero_proportion
        self.register_buffer("shape", proportions / 2)
        self.means = nn.Parameter(means)
        self.precisions = nn.Parameter(torch.zeros(1 + len(means)))
        self.proportions = nn.Parameter(torch.zeros(len(means)))

    def log_proportions(self) -> Tensor:
        """Return ln π, [components]; that at zero first."""
        others = (RATE * self.proportions).log_softmax(0) + math.log1p(-self.zero_proportion)
        return torch.cat([self.shape.new_tensor([math.log(self.zero_proportion)]), others])

    def deviations(self) -> Tensor:
        """Return standard deviations, [components], in what weights are in."""
        return self.unit * (-0.5 * RATE * self.precisions).exp()

    def forward(self, weights: Tensor) -> Tensor:
        """Return the negative log posterior of weights, a sum over those that are not zero.

        Zeros are pruned weights: what they are is settled.

        Args:
            weights: of any shape, with gradients.
        """
        flat = weights.float().flatten()
        flat = flat[flat.detach() != 0] / self.unit
        means = torch.cat([self.shape.new_zeros(1), self.means / self.unit])
        learned = means, RATE * self.precisions, self.log_proportions()
        # Anew in the backward pass: kept, they take `components` times the memory of the weights.
        total = self.count * gamma_prior(learned[1], self.shape, self.mode)
        for part in flat.split(_PART):
            total = total + checkpoint(
                *(negative_log_likelihood, part, *learned),
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return total


class Mixtures(nn.Module):
    """A mixture for each of several groups of weights.

    Args:
        groups: names of parameters, with the mixture of their weights.
    """

    def __init__(self, groups: list[tuple[tuple[str, ...], GaussianMixture]]) -> None:
        super().__init__()
        self.names = [names for names, _ in groups]
        self.mixtures = nn.ModuleList(mixture for _, mixture in groups)
