"""Soft weight-sharing: weights gather around few values, which are learned along with them.

Sources: Nowlan & Hinton 1992, doi:10.1162/neco.1992.4.4.473; Ullrich, Meeds & Welling 2017,
arXiv:1702.04008.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from zoopress.errors import StageError
from zoopress.training.loss import Loss, Seen
from zoopress_plugins.transfer.losses.selected import SelectedParameters

if TYPE_CHECKING:
    from torch import Tensor, nn


class SoftWeightSharingConfig(SelectedParameters):
    """Which parameters, and what they are drawn from."""

    components: int = Field(
        default=16,
        ge=2,
        le=256,
        description="Gaussians, that at zero included: the values of the codebook to come",
    )
    zero_proportion: float = Field(
        default=0.9, gt=0, lt=1, description="mixing proportion of the Gaussian at zero"
    )
    deviation: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="standard deviation that the hyper-priors expect around each value, where 1 is "
        "the error of the codebook that the weights would have had before",
    )
    scope: Literal["layer", "global"] = Field(
        default="layer", description="whether each weight has a mixture, or all share one"
    )


class SoftWeightSharing(Loss[SoftWeightSharingConfig]):
    """The negative log posterior of the selected weights under mixtures of Gaussians, in nats.

    The mean over weights, so that its `weight` is τ · weights ÷ samples with the paper's τ. Means,
    precisions and proportions are trained by the same optimizer, but for mean and proportion of the
    Gaussian at zero.
    """

    name = "soft_weight_sharing"
    config_type = SoftWeightSharingConfig

    def prepare(self, seen: Seen) -> nn.Module | None:
        """Return the mixtures, as k-means starts them."""
        import torch

        from zoopress_plugins.quantization.losses.gaussian_mixture import GaussianMixture, Mixtures

        config = self.config
        selected = {
            name: weight.detach().float().flatten()
            for name, weight in config.select(seen.parameters).items()
            if bool(weight.detach().any())
        }
        if not selected:
            raise StageError(
                "'soft_weight_sharing': all selected weights are zero, so there are no values to "
                "share. Train first, or select others by 'include'."
            )
        groups = (
            [(tuple(selected), torch.cat([weight.cpu() for weight in selected.values()]))]
            if config.scope == "global"
            else [((name,), weight) for name, weight in selected.items()]
        )
        options = config.components, config.zero_proportion, config.deviation
        return Mixtures([(names, GaussianMixture(weights, *options)) for names, weights in groups])

    def value(self, seen: Seen, learned: nn.Module | None) -> Tensor:
        """Return the mean over weights."""
        import torch

        from zoopress_plugins.quantization.losses.gaussian_mixture import Mixtures

        assert isinstance(learned, Mixtures)
        selected = self.config.select(seen.parameters)
        parts, count = [], 0
        for names, mixture in zip(learned.names, learned.mixtures, strict=True):
            weights = [selected[name].flatten() for name in names if name in selected]
            if weights:
                parts.append(mixture(torch.cat(weights)))
                count += sum(len(weight) for weight in weights)
        if not parts:
            raise StageError(
                f"'soft_weight_sharing': none of the weights {list(selected)[:3]} was there as the "
                "training began: 'lora' trains products in their place, which share no values. "
                "Leave 'lora' out, or the loss."
            )
        return torch.stack(parts).sum() / count
