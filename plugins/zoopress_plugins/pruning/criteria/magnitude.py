"""Magnitude: small weights go, and neurons of small L1 norm.

Sources: Han et al. 2015, arXiv:1506.02626 (weights); Li et al. 2017, arXiv:1608.08710, section 3.1
(filters).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoopress.choice import NoOptions
from zoopress.techniques import Criterion, Evidence

if TYPE_CHECKING:
    from torch import Tensor


class Magnitude(Criterion[NoOptions]):
    """Score a weight by its magnitude, a neuron by the L1 norms of its weights."""

    name = "magnitude"

    def weights(self, evidence: Evidence) -> Tensor:
        """Return |w|, in the type of the weights."""
        return evidence.values.abs()
