"""Remove neurons: tried first, checked to be exact, then made for good."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zoopress.dependencies.group import NeuronGroup
from zoopress.errors import StageError
from zoopress.models.edits import set_tensor, submodule, tensor_of
from zoopress.models.model import Model

Chosen = Mapping[str, Tensor]
"""Indices of the neurons to remove, int64, by the name of their group."""

Run = Callable[[], Tensor | Sequence[Tensor]]
"""Runs a module on a small batch, and returns its output or all of them."""

_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2, torch.float64: 1e-9}


class Removal:
    """The removal of some neurons from a module.

    Attributes:
        keep: for each module path and tensor, the indices that stay along each axis that shrinks.
    """

    def __init__(self, module: nn.Module, groups: Iterable[NeuronGroup], chosen: Chosen) -> None:
        self._module = module
        gone: dict[tuple[str, str, int], Tensor] = {}
        self._summed: list[tuple[str, str, int]] = []
        for group in groups:
            for member in group.members:
                if group.name not in chosen:
                    continue
                key = (member.path, member.tensor, member.axis)
                size = tensor_of(submodule(module, member.path), member.tensor).shape[member.axis]
                mask = gone.setdefault(key, torch.zeros(size, dtype=torch.bool))
                mask[member.index[chosen[group.name]].flatten()] = True
                if member.role == "consumer":
                    self._summed.append(key)
        self._gone = gone
        self.keep: dict[str, dict[str, dict[int, Tensor]]] = defaultdict(lambda: defaultdict(dict))
        for (path, tensor, axis), mask in gone.items():
            self.keep[path][tensor][axis] = (~mask).nonzero().flatten()

    def attributes(self) -> dict[str, dict[str, int]]:
        """Return the integer attributes that follow, by module path."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for path, tensors in self.keep.items():
            owner, _, parametrized = path.partition(".parametrizations.")
            layer = submodule(self._module, owner)
            for tensor, axes in tensors.items():
                for axis, index in axes.items():
                    follows = following_attributes(layer, parametrized or tensor, axis, len(index))
                    found[owner].update(follows)
        return {path: attributes for path, attributes in found.items() if attributes}

    @contextmanager
    def masked(self) -> Iterator[None]:
        """Silence the neurons within the context: nothing sums over them any more."""
        before = []
        with torch.no_grad():
            for path, name, axis in dict.fromkeys(self._summed):
                tensor = tensor_of(submodule(self._module, path), name)
                before.append((tensor, tensor.detach().clone()))
                index = self._gone[path, name, axis].nonzero().flatten().to(tensor.device)
                tensor.index_fill_(axis, index, 0.0)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, values in reversed(before):
                    tensor.copy_(values)

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Remove the neurons within the context."""
        tensors = []
        attributes = []
        follow = self.attributes()
        try:
            for path, by_tensor in self.keep.items():
                owner = submodule(self._module, path)
                for name, axes in by_tensor.items():
                    old = kept = tensor_of(owner, name)
                    for axis, index in axes.items():
                        kept = kept.detach().index_select(axis, index.to(old.device))
                    tensors.append((owner, name, old))
                    set_tensor(owner, name, kept)
            for path, values in follow.items():
                owner = submodule(self._module, path)
                for name, value in values.items():
                    attributes.append((owner, name, getattr(owner, name)))
                    setattr(owner, name, value)
            yield
        finally:
            for owner, name, old in tensors:
                set_tensor(owner, name, old)
            for owner, name, value in attributes:
                setattr(owner, name, value)

    def make(self, model: Model) -> list[str]:
        """Remove the neurons from `model`, whose module this is; return the changed modules."""
        attributes = self.attributes()
        for path, by_tensor in self.keep.items():
            device = next(
                iter(tensor_of(submodule(model.module, path), t).device for t in by_tensor)
            )
            rounds = max(len(axes) for axes in by_tensor.values())
            for turn in range(rounds):
                indices = {
                    tensor: list(axes.items())[turn]
                    for tensor, axes in by_tensor.items()
                    if turn < len(axes)
                }
                moved = {name: (axis, index.to(device)) for name, (axis, index) in indices.items()}
                last = turn == rounds - 1
                model.select(path, moved, attributes.pop(path, {}) if last else {})
        for path, values in attributes.items():  # of parametrized layers, which hold no tensor
            model.select(path, {}, values)
        return sorted(self.keep)


def following_attributes(layer: nn.Module, tensor: str, axis: int, size: int) -> dict[str, int]:
    """Return the integer attributes of a layer that follow when one axis shrinks to `size`."""
    names: dict[tuple[str, int], str] = {}
    if isinstance(layer, nn.modules.conv._ConvNd):
        if tensor != "weight":
            return {}
        if layer.groups == 1:
            outputs = 1 if layer.transposed else 0
            names = {("weight", axis): "out_channels" if axis == outputs else "in_channels"}
        elif layer.groups == layer.in_channels:
            inputs = size * layer.in_channels // layer.out_channels
            return {"out_channels": size, "in_channels": inputs, "groups": inputs}
        else:
            return {"in_channels": size * layer.groups} if axis else {"out_channels": size}
    elif isinstance(layer, nn.GroupNorm):
        groups = layer.num_groups * size // layer.num_channels
        return {"num_channels": size, "num_groups": groups}
    elif isinstance(layer, nn.Bilinear):
        sizes = ("out_features", "in1_features", "in2_features")
        names = {("weight", axis): name for axis, name in enumerate(sizes)}
    elif isinstance(layer, nn.Linear):
        names = {("weight", 0): "out_features", ("weight", 1): "in_features"}
    elif isinstance(layer, nn.RNNBase):
        names = {("weight_hh_l0", 1): "hidden_size", ("weight_ih_l0", 1): "input_size"}
    elif isinstance(layer, nn.RNNCellBase):
        names = {("weight_hh", 1): "hidden_size", ("weight_ih", 1): "input_size"}
    elif isinstance(layer, nn.modules.batchnorm._NormBase):
        names = {("weight", 0): "num_features", ("running_mean", 0): "num_features"}
    elif isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        names = {("weight", 1): "embedding_dim"}
    elif isinstance(layer, nn.PReLU):
        names = {("weight", 0): "num_parameters"}
    elif type(layer).__name__ == "Conv1D":  # GPT-2's linear layer, which stores [in, out]
        names = {("weight", 0): "nx", ("weight", 1): "nf"}
    name = names.get((tensor, axis))
    return {name: size} if name and type(layer.__dict__.get(name)) is int else {}


def check(module: nn.Module, removal: Removal, *runs: Run) -> str:
    """Return what is wrong with a removal, "" if it is exact.

    It is exact if the module without the neurons gives what it gives with all of them while nothing
    sums over those to be removed.

    Args:
        module: the model.
        removal: what to remove from it.
        runs: each runs the module on a small batch and returns its outputs.
    """
    return next(filter(None, (_check(removal, run) for run in runs)), "")


def _check(removal: Removal, run: Run) -> str:
    with removal.masked():
        expected = _seeded(run)
    try:
        with removal.tried():
            actual = _seeded(run)
    except (
        *(StageError, RuntimeError, ValueError, TypeError, IndexError, AssertionError),
        *(KeyError, AttributeError),
    ) as error:
        return f"the forward pass fails without them ({str(error).strip().splitlines()[0]})"
    if len(actual) != len(expected):
        return f"the model returns {len(actual)} tensors in the place of {len(expected)}"
    return next(filter(None, map(_difference, actual, expected)), "")


def _difference(actual: Tensor, expected: Tensor) -> str:
    """Return how an output differs from what it should be, "" if only by rounding."""
    if actual.shape != expected.shape:
        return f"the output's shape turns from {tuple(expected.shape)} to {tuple(actual.shape)}"
    if not actual.is_floating_point():
        return "" if torch.equal(actual, expected) else "the output differs"
    tolerance = _TOLERANCE.get(actual.dtype, 1e-4)
    actual, expected = actual.double(), expected.double()
    scale = float(expected.nan_to_num(0, 0, 0).abs().max()) if expected.numel() else 0.0
    if torch.allclose(actual, expected, rtol=0.0, atol=tolerance * scale + 1e-12, equal_nan=True):
        return ""
    error = float((actual - expected).abs().max())
    return f"the output differs by {error:.2g}, its largest value being {scale:.2g}"


def exact_removal(
    module: nn.Module, groups: Iterable[NeuronGroup], chosen: Chosen, *runs: Run
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Find the part of a removal that is exact, by bisection.

    Returns:
        what can be removed, and for each other group what went wrong.
    """
    groups = list(groups)
    clusters: dict[int, list[str]] = defaultdict(list)
    for group in groups:
        if group.name in chosen:
            clusters[group.cluster].append(group.name)
    wrong: dict[str, str] = {}

    def exact(candidates: list[list[str]]) -> list[list[str]]:
        names = [name for cluster in candidates for name in cluster]
        part = {name: chosen[name] for name in names}
        problem = check(module, Removal(module, groups, part), *runs) if names else ""
        if not problem:
            return candidates
        if len(candidates) == 1:
            wrong.update(dict.fromkeys(names, problem))
            return []
        middle = len(candidates) // 2
        good = [*exact(candidates[:middle]), *exact(candidates[middle:])]
        if len(good) == len(candidates):  # each half is exact, both together are not
            wrong.update(dict.fromkeys(names, problem))
            return []
        return good

    kept = exact(list(clusters.values()))
    return {name: chosen[name] for cluster in kept for name in cluster}, wrong


def _seeded(run: Run) -> list[Tensor]:
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        returned = run()
    tensors = [returned] if isinstance(returned, Tensor) else returned
    return [tensor.detach().clone() for tensor in tensors]
