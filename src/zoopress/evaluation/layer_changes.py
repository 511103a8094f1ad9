"""What a chain has done so far to each weight, as gates are told after every stage."""

from __future__ import annotations

import math

import torch
from torch import nn

from zoopress.evaluation.sensitivity import compressed_form, relative_error
from zoopress.models.fitness import norm_kept
from zoopress.models.model import Model
from zoopress.models.weights import find_weights
from zoopress.results import LayerChange


@torch.no_grad()
def layer_changes(original: nn.Module, compressed: Model, since: int = 0) -> list[LayerChange]:
    """Compare every weight of two or more axes, tied ones once, with its compressed form.

    One weight at a time is made dense, so that a packed model never is as a whole.

    Args:
        original: the model as it came.
        compressed: what was made of it.
        since: how many of its edits the original has too, being a compressed model itself.
    """
    changes = []
    for weight in find_weights(original):
        dense = compressed_form(weight, compressed, compressed.edits[since:])
        if dense is None:
            changes.append(LayerChange(weight.name, None, None))
            continue
        zeros = 1 - int(dense.count_nonzero()) / max(1, dense.numel())
        error = relative_error(weight, dense)
        kept = norm_kept(weight.parameter.detach(), dense)
        # Records are JSON, which has no infinity.
        finite = [value if math.isfinite(value) else None for value in (error, kept)]
        changes.append(LayerChange(weight.name, finite[0], zeros, finite[1]))
    return changes
