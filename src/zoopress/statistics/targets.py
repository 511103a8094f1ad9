"""Which weights are measured, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoopress.errors import StageError, nearest
from zoopress.models.packing import PackedWeight, packed_weights
from zoopress.models.weights import (
    WEIGHT_KINDS,
    Weight,
    as_matrix,
    find_weights,
    kind_of,
    row_count,
)
from zoopress.statistics.layout import Watched
from zoopress.statistics.statistic import Sizes


@dataclass(frozen=True, eq=False)
class Target:
    """A weight to be measured.

    Attributes:
        watched: its name and shape.
        places: module, attribute of each place that it hangs at.
        kind: of the weight, see `Weight`.
    """

    watched: Watched
    places: tuple[tuple[nn.Module, str], ...]
    kind: str

    @property
    def held(self) -> nn.Parameter | PackedWeight:
        """The parameter or the packed weight, as it is now."""
        module, attribute = self.places[0]
        held = module._parameters.get(attribute)
        packed = module._modules.get(attribute)
        found = packed if held is None else held
        assert isinstance(found, (nn.Parameter, PackedWeight))
        return found

    def matrix(self) -> Tensor:
        """Return the weight as [rows, columns], a packed one in its dense form."""
        held = self.held
        dense = held.value() if isinstance(held, PackedWeight) else held
        return as_matrix(dense.detach(), self.watched.output_axis)

    def sizes(self) -> Sizes:
        """Return how large states will be, so far as its kind tells before it has run."""
        shape, axis = self.watched.shape, self.watched.output_axis
        rows = row_count(shape, axis) if shape else 1
        columns = shape.numel() // max(1, rows)
        groups = self.watched.groups
        device = torch.device("meta")
        if self.kind == "embedding":
            return Sizes(1, rows, columns, device)
        if self.kind == "conv" and axis == 1:
            return Sizes(groups, columns // groups, rows, device)
        return Sizes(groups, columns, rows // groups, device)


def all_targets(module: nn.Module) -> tuple[dict[str, Target], dict[str, str]]:
    """Return every weight below a module by name, and the other names that they go by.

    Vectors are there, too; packed weights under the name of the weight that they stand for.
    """
    owners = dict(module.named_modules(remove_duplicate=False))
    kinds = (*WEIGHT_KINDS, "vector")
    targets: dict[str, Target] = {}
    aliases: dict[str, str] = {}
    for weight in find_weights(module, kinds):
        places = tuple((owners[place.path], place.attribute) for place in weight.locations)
        groups = getattr(weight.module, "groups", 1) if weight.kind == "conv" else 1
        watched = Watched(weight.name, weight.parameter.shape, weight.output_axis, groups)
        targets[weight.name] = Target(watched, places, weight.kind)
        aliases.update({place.name: weight.name for place in weight.locations[1:]})
    codes: dict[int, str] = {}
    for name, packed in packed_weights(module).items():
        address = next(packed.buffers()).data_ptr()
        if address in codes:  # tied
            aliases[name] = codes[address]
            continue
        codes[address] = name
        path, _, attribute = name.rpartition(".")
        owner = owners[path]
        shape = packed.stands_for or packed.shape
        kind, axis = kind_of(owner, attribute, len(shape))
        groups = getattr(owner, "groups", 1) if kind == "conv" else 1
        watched = Watched(name, shape, axis, groups)
        targets[name] = Target(watched, ((owner, attribute),), kind)
    by_path: dict[str, list[str]] = {}
    for name, target in targets.items():
        if target.kind != "vector":
            by_path.setdefault(name.rpartition(".")[0], []).append(name)
    aliases.update({path: names[0] for path, names in by_path.items() if path and len(names) == 1})
    return targets, aliases


def chosen(
    targets: dict[str, Target], aliases: dict[str, str], weights: Iterable[str | Weight] | None
) -> Sequence[str]:
    """Return the names of the weights to measure, each once; by default all but vectors.

    Raises:
        StageError: if there is no such weight.
    """
    if weights is None:
        return [name for name, target in targets.items() if target.kind != "vector"]
    names: dict[str, None] = {}
    for weight in weights:
        name = weight.name if isinstance(weight, Weight) else weight
        name = aliases.get(name, name)
        if name not in targets:
            raise StageError(
                f"There is no weight {name!r} in the model to measure."
                f"{nearest(name, [*targets, *aliases])}"
            )
        names[name] = None
    return list(names)
