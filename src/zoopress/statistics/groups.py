"""Terms of single weights, added up over the neurons that can be removed."""

from __future__ import annotations

import torch
from torch import Tensor

from zoopress.dependencies import Dependencies, Member, NeuronGroup
from zoopress.errors import StageError
from zoopress.models.weights import from_matrix
from zoopress.statistics.measured import Measured


def weights_of_groups(dependencies: Dependencies) -> list[str]:
    """Return the names of all weights and vectors that shrink with neurons, each once."""
    names = {
        _name(member)
        for group in dependencies.groups
        for member in group.members
        if not member.tensor.startswith("running_")  # a buffer, which has no gradient
    }
    return sorted(names)


def taylor_of_groups(dependencies: Dependencies, terms: Measured) -> dict[str, Tensor]:
    """Add up terms of weights over all that goes when a neuron is removed.

    Args:
        dependencies: of the model.
        terms: "first_taylor", whose sum tells how the loss falls, to first order, if a neuron is
            removed; or "second_taylor", what that costs to second order, without what two numbers
            cost together.

    Returns:
        [neurons] by the group's name.

    Raises:
        StageError: if no sample reached a group, or its terms were not measured.

    Source: Molchanov et al. 2019, arXiv:1906.10771, eq. 8, over all tensors of a group as in Fang
        et al. 2023, arXiv:2301.12900, section 3.3.
    """
    return {group.name: _terms(group, terms) for group in dependencies.groups}


def _terms(group: NeuronGroup, terms: Measured) -> Tensor:
    total = torch.zeros(group.size)
    found = False
    for member in group.members:
        name = _name(member)
        layer = terms.get(name) if name in terms else None
        if layer is None:
            continue
        found = True
        own = from_matrix(layer.value, layer.shape, layer.output_axis)
        sums = own.movedim(member.axis, 0).flatten(1).sum(1) if own.ndim > 1 else own
        total += sums[member.index].sum(1)
    if not found:
        raise StageError(
            f"There are no {terms.statistic.name} of the neurons {group.name!r}: no calibration "
            "sample reached what shrinks with them, or it was not asked for. Ask for "
            "`weights_of_groups(dependencies)`, and give the card more 'calibration_samples'."
        )
    return total


def _name(member: Member) -> str:
    return f"{member.path}.{member.tensor}" if member.path else member.tensor
