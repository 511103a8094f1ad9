"""What a stage reached of a model: its parameters before and after, whatever the technique.

A technique's own word on what it touched is one source; names that went, other shapes, types, masks
and packings are the other. So parameters that no technique looks at are counted as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.models.weights import kind_of
from zoopress.results.coverage import Coverage, KindCoverage
from zoopress.techniques import Outcome, WeightSelection

MOST_NAMED = 5
"""How many parameters of a kind are named with the reason why they were left."""

_WORDS = {
    "linear": "linear layers",
    "conv": "convolutions",
    "embedding": "embeddings",
    "recurrent": "recurrent layers",
    "experts": "experts",
    "parameter": "other parameters",
    "vector": "biases and normalization",
}
_NAMED = frozenset({"experts", "other parameters", "parametrized weights", "complex parameters"})
_PACKED = "it is packed already"
_ELSEWHERE = "the stage left it"


@dataclass(frozen=True)
class Part:
    """One parameter, or the packed weight that stands for it.

    Attributes:
        group: what people call its kind.
        kind: what techniques call it; None where they see none.
        form: what it is stored as; another one after a stage means that it was reached.
        count: of its numbers.
        nbytes: that it takes in memory.
        packed: whether it is a packed weight.
        mask: how many of its numbers are kept, -1 without a mask.
    """

    group: str
    kind: str | None
    form: tuple[object, ...]
    count: int
    nbytes: int
    packed: bool
    mask: int = -1


def parts_of(model: Model) -> dict[str, Part]:
    """Return every parameter of a model by name, tied ones once, packed ones in their form."""
    found: dict[str, Part] = {}
    seen: set[int] = set()
    packed = packed_weights(model.module)
    for path, owner in model.module.named_modules():
        for attribute, parameter in owner._parameters.items():
            if parameter is None or id(parameter) in seen or not _counts(parameter):
                continue
            seen.add(id(parameter))
            name = f"{path}.{attribute}" if path else attribute
            if path in packed:  # what is trained of a packed weight is no weight of its own
                continue
            mask = model.masks.get(name)
            found[name] = Part(
                *_kinds(path, owner, attribute, parameter),
                form=(tuple(parameter.shape), parameter.dtype),
                count=parameter.numel(),
                nbytes=parameter.nbytes,
                packed=False,
                mask=-1 if mask is None else int(mask.sum()),
            )
    addresses: set[int] = set()
    owners = dict(model.module.named_modules())
    for name, weight in packed.items():
        address = next(weight.buffers()).data_ptr()
        if address in addresses:
            continue
        addresses.add(address)
        path, _, attribute = name.rpartition(".")
        shape = weight.stands_for or weight.shape
        kind = kind_of(owners[path], attribute, len(shape))[0]
        found[name] = Part(
            _group(path, owners[path], kind),
            kind,
            form=(type(weight).__name__, *((n, tuple(b.shape)) for n, b in weight.named_buffers())),
            count=shape.numel(),
            nbytes=sum(buffer.nbytes for buffer in weight.buffers()),
            packed=True,
        )
    return found


def _counts(parameter: Tensor) -> bool:
    # Of a lazy parameter nothing is known before the first batch.
    return not isinstance(parameter, nn.parameter.UninitializedParameter)


def _kinds(
    path: str, owner: nn.Module, attribute: str, parameter: Tensor
) -> tuple[str, str | None]:
    """Return what people and what techniques call a parameter's kind."""
    if parameter.is_complex():
        return "complex parameters", None
    if not parameter.is_floating_point():
        return "integer parameters", None
    if parameter.ndim == 0 or not parameter.numel():
        return _WORDS["vector"], None
    kind = kind_of(owner, attribute, parameter.ndim)[0]
    if parametrize.is_parametrized(owner, attribute) or isinstance(
        owner, parametrize.ParametrizationList
    ):
        return ("parametrized weights" if parameter.ndim > 1 else _WORDS["vector"]), kind
    if attribute in ("weight_g", "weight_v", "weight_orig") and parameter.ndim > 1:
        return "parametrized weights", kind
    return _group(path, owner, kind), kind


def _group(path: str, owner: nn.Module, kind: str) -> str:
    if isinstance(owner, nn.MultiheadAttention) and kind != "vector":
        return "attention projections"
    if kind != "vector" and "experts" in path.split("."):
        return _WORDS["experts"]
    return _WORDS[kind]


@torch.no_grad()
def coverage(
    before: Mapping[str, Part], model: Model, outcome: Outcome, config: object
) -> Coverage:
    """Return what a stage reached.

    Args:
        before: what `parts_of` said of the model as it came.
        model: as the stage left it.
        outcome: what the technique said.
        config: the technique's.
    """
    after = parts_of(model)
    touched = _touches(outcome)
    why = _reasons(outcome, config)
    groups: dict[str, list[tuple[str, Part, bool]]] = {}
    for name, part in before.items():
        now = after.get(name)
        changed = now is None or (now.form, now.mask) != (part.form, part.mask)
        groups.setdefault(part.group, []).append((name, part, changed or touched(name)))
    kinds = []
    for group, members in groups.items():
        left = [(name, part) for name, part, reached in members if not reached]
        left.sort(key=lambda item: -item[1].nbytes)
        kinds.append(
            KindCoverage(
                kind=group,
                parameters=sum(part.count for _, part, _ in members),
                bytes=sum(part.nbytes for _, part, _ in members),
                reached=sum(part.count for _, part, reached in members if reached),
                reached_bytes=sum(part.nbytes for _, part, reached in members if reached),
                left={name: why(name, part) for name, part in left[:MOST_NAMED]},
                unnamed=max(0, len(left) - MOST_NAMED),
                named=_largest_reached(members) if group in _NAMED else [],
            )
        )
    kept = [p for members in groups.values() for _, p, reached in members if not reached]
    return Coverage(
        sorted(kinds, key=lambda each: -each.bytes),
        selects=isinstance(config, WeightSelection),
        narrowed=_is_narrowed(config),
        packed_bytes=sum(part.nbytes for part in kept if part.packed),
    )


def _largest_reached(members: Sequence[tuple[str, Part, bool]]) -> list[str]:
    reached = [(name, part) for name, part, reached in members if reached]
    return [name for name, _ in sorted(reached, key=lambda item: -item[1].nbytes)[:MOST_NAMED]]


def _touches(outcome: Outcome) -> Callable[[str], bool]:
    """Return what tells whether a technique said that it touched a parameter."""
    said = set(outcome.touched)
    # What is said of a packed weight's buffers is said of the weight.
    parents = {name.rpartition(".")[0] for name in said}

    def touched(name: str) -> bool:
        above = name.split(".")
        return name in parents or any(
            ".".join(above[:depth]) in said for depth in range(1, len(above) + 1)
        )

    return touched


def _reasons(outcome: Outcome, config: object) -> Callable[[str, Part], str]:
    told: dict[str, str] = {}
    for key in ("left", "skipped"):
        found = outcome.notes.get(key)
        if isinstance(found, Mapping):
            told.update({str(name): str(reason) for name, reason in found.items()})

    def why(name: str, part: Part) -> str:
        if name in told or name.rpartition(".")[0] in told:
            return told.get(name) or told[name.rpartition(".")[0]]
        if part.packed:
            return _PACKED
        if part.kind is None:
            return "no technique takes numbers of this type"
        if isinstance(config, WeightSelection):
            if part.kind not in config.kinds:
                return f"{part.kind!r} is not among the 'kinds'"
            if not config.selection().has(part.kind, name):
                return "'include' or 'exclude' leaves it out"
        return _ELSEWHERE

    return why


def _is_narrowed(config: object) -> bool:
    """Tell whether a recipe says which weights a stage is to work on."""
    if not isinstance(config, WeightSelection):
        return False
    return bool({"kinds", "include", "exclude"} & config.model_fields_set)
