"""Entropy of a filter's weights: neurons whose weights are spread over few values go.

After Luo & Wu 2017, arXiv:1706.05791, section 3.2, who take the entropy of activations.
"""

from pydantic import Field

from zoopress import Config, Criterion
from zoopress.techniques.criterion import matrices, relative_mean


class FilterEntropyConfig(Config):
    """How finely values are told apart."""

    bins: int = Field(default=16, ge=2, description="equal steps from a tensor's least to its most")


def row_entropies(values, bins):
    """Return the entropy of each row's values [rows, values], in bits, between 0 and log2(bins)."""
    import torch

    low, high = values.min(), values.max()
    places = ((values - low) / (high - low).clamp_min(1e-30) * bins).long().clamp_max(bins - 1)
    shares = torch.nn.functional.one_hot(places, bins).float().mean(dim=1)
    return torch.special.entr(shares).sum(dim=1) / torch.log(torch.tensor(2.0))


class FilterEntropy(Criterion[FilterEntropyConfig]):
    """Score a neuron by the entropy of its weights."""

    name = "filter_entropy"
    config_type = FilterEntropyConfig

    def units(self, evidence):
        """Return the entropy in each matrix, relative to the matrix' mean, averaged."""
        bins = self.config.bins
        return relative_mean(
            [row_entropies(each.values.float(), bins) for each in matrices(evidence)]
        )
