"""Scale of batch normalization: channels that it multiplies by little go.

Source: Liu et al. 2017, network slimming, arXiv:1708.06519, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoopress.choice import NoOptions
from zoopress.errors import StageError
from zoopress.techniques import Criterion, Evidence

if TYPE_CHECKING:
    from torch import Tensor


class BatchNormScale(Criterion[NoOptions]):
    """Score a channel by the magnitude of the scale that batch normalization gives it."""

    name = "batch_norm_scale"

    def units(self, evidence: Sequence[Evidence]) -> Tensor:
        """Return |γ|, the mean over the layers of batch normalization that the channels go through.

        Raises:
            StageError: if there is none, or none with a scale.
        """
        import torch

        scales = [
            each.values.float().abs().mean(dim=1)
            for each in evidence
            if isinstance(each.module, torch.nn.modules.batchnorm._BatchNorm)
            and each.attribute == "weight"
        ]
        if not scales:
            raise StageError("no batch normalization with a scale is behind these channels")
        return torch.stack(scales).mean(dim=0)
