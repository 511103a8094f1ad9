"""Geometric median: filters close to all others of their layer go, since these can stand in.

Source: He et al. 2019, FPGM, arXiv:1811.00250, eq. 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoopress.choice import NoOptions
from zoopress.techniques import Criterion, Evidence
from zoopress.techniques.criterion import matrices, relative_mean

if TYPE_CHECKING:
    from torch import Tensor


def summed_distances(filters: Tensor) -> Tensor:
    """Return each row's sum of Euclidean distances to all rows; least at the geometric median.

    Args:
        filters: [units, values].

    Returns:
        [units]; larger means keep.
    """
    import torch

    # By differences: products of norms lose what rows that are nearly equal differ by.
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(filters[None], filters[None], compute_mode=mode)[0].sum(dim=1)


class GeometricMedian(Criterion[NoOptions]):
    """Score a unit by how far the weights that compute it are from those of the others."""

    name = "geometric_median"

    def units(self, evidence: Sequence[Evidence]) -> Tensor:
        """Return summed distances in each matrix that computes the units, averaged relatively."""
        producers = [each for each in matrices(evidence) if each.role == "producer"]
        return relative_mean([summed_distances(each.values.float()) for each in producers])
