"""How alike two models' values of one output are, by a measure that can fail for its kind.

The cosine of two vectors says nothing where a constant reaches it: of one number a sample, or where
all samples have nearly the same large values. So beside it stands the concordance, which is that of
what differs from the mean over samples, and which no constant raises above 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from zoopress.results import MEANINGLESS, OutputFidelity
from zoopress.tasks import padded

_BLOCK_ELEMENTS = 1 << 20
_ROUNDING = 8
"""So many times the machine epsilon, relative to the values, are no difference between samples."""

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Spread:
    """How an original's output differs between samples.

    Attributes:
        means: over samples, by the shape of a sample: float64, or the most frequent integers.
        constant: the cosine, or share of equal integers, that the best constant reaches.
        varies: whether samples differ by more than rounding.
    """

    means: dict[tuple[int, ...], Tensor] = field(repr=False)
    constant: float
    varies: bool


def spread_of(rows: Sequence[Tensor], epsilon: float = 2**-23) -> Spread:
    """Measure how an output differs between samples.

    Args:
        rows: of each batch [samples, …], floats or integers, all finite.
        epsilon: machine epsilon of the type that the model returned.
    """
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for batch in rows:
        groups.setdefault(tuple(batch.shape[1:]), []).append(batch.reshape(len(batch), -1))
    if not rows[0].is_floating_point():
        return _integer_spread(groups)
    means: dict[tuple[int, ...], Tensor] = {}
    total = centred = units = 0.0
    count = sum(map(len, rows))
    for shape, batches in groups.items():
        number = sum(map(len, batches))
        sums = torch.zeros(batches[0].shape[1], dtype=torch.float64)
        directions = torch.zeros_like(sums)
        for block in _blocks(batches):
            sums += block.sum(0)
            lengths = block.norm(dim=1, keepdim=True)
            directions += (block / lengths.clamp_min(1e-30)).sum(0)
        mean = means[shape] = sums / number
        units += float(directions.norm())
        for block in _blocks(batches):
            total += float(block.square().sum())
            centred += float((block - mean).square().sum())
    varies = centred > (_ROUNDING * epsilon) ** 2 * total
    return Spread(means, min(1.0, units / max(1, count)), varies)


def _integer_spread(groups: dict[tuple[int, ...], list[Tensor]]) -> Spread:
    means: dict[tuple[int, ...], Tensor] = {}
    equal = total = 0
    for shape, batches in groups.items():
        joined = torch.cat(batches).to(torch.int64)
        means[shape] = joined.mode(0).values
        equal += int((joined == means[shape]).sum())
        total += joined.numel()
    return Spread(means, equal / max(1, total), equal < total)


def compare_output(
    name: str, kind: str, pairs: Sequence[Pair], spread: Spread, judged: bool = True
) -> OutputFidelity:
    """Compare an output's values, by a measure for its kind.

    Args:
        name: of the output.
        kind: "real", "complex" (then values are pairs of real ones), "integer" or "boolean".
        pairs: of each batch [samples, …], the original's, all finite, and the other model's.
        spread: of the original's.
        judged: whether targets look at it.
    """
    shape = list(pairs[0][0].shape[1:])
    if kind == "complex":
        shape = shape[:-1]
    told = partial(OutputFidelity, name=name, kind=kind, shape=shape, judged=judged)
    if kind in ("integer", "boolean"):
        value = _agreement(pairs)
        beyond = (value - spread.constant) / (1 - spread.constant) if spread.varies else None
        return told(measure="agreement", value=value, constant=spread.constant, centred=beyond)
    if not all(bool(other.isfinite().all()) for _, other in pairs):
        return told(measure="cosine", value=0.0, finite=False)
    errors = torch.cat([_errors(pair, spread) for pair in pairs])
    difference, original, together = errors[:, :3].sum(0).tolist()
    error = (difference / original) ** 0.5 if original else None
    close = 1 - difference / together if together else 1.0
    if not spread.varies:
        return told(measure="closeness", value=close, relative_error=error)
    if is_number(kind, pairs[0][0]):
        return told(measure="concordance", value=close, relative_error=error)
    return told(
        measure="cosine",
        value=float(torch.cat([sample_cosines(*pair) for pair in pairs]).mean()),
        constant=spread.constant,
        centred=close,
        relative_error=error,
    )


def is_number(kind: str, rows: Tensor) -> bool:
    """Tell whether an output [samples, …] is one number a sample, whose cosine is its sign."""
    return rows[:1].numel() == (2 if kind == "complex" else 1)


def sample_similarities(
    kind: str, pairs: Sequence[Pair], spread: Spread, bound: float = MEANINGLESS
) -> Tensor:
    """Return numbers [samples] whose mean is what `OutputFidelity.at` holds against a bound.

    Args:
        kind: of the output.
        pairs: of each batch [samples, …], the original's and the other model's, finite.
        spread: of the original's.
        bound: what the mean is held to.
    """
    if kind in ("integer", "boolean"):
        equal = torch.cat([_agreements(pair) for pair in pairs])
        if spread.constant < min(bound, MEANINGLESS) or not spread.varies:
            return equal
        return (equal - spread.constant) / (1 - spread.constant)
    told = spread.constant < min(bound, MEANINGLESS) and spread.varies
    if told and not is_number(kind, pairs[0][0]):
        return torch.cat([sample_cosines(*map(Tensor.double, pair)) for pair in pairs])
    return sample_concordances(pairs, spread)


def sample_cosines(original: Tensor, compressed: Tensor) -> Tensor:
    """Return the cosine similarity [samples] of each sample's output as one vector.

    Where one is shorter, as where lengths follow from values, what it lacks counts as zeros.
    """
    both = _padded((original, compressed))
    a, b = (values.reshape(len(values), -1) for values in both)
    cosines = nn.functional.cosine_similarity(a, b, dim=1, eps=1e-30)
    # Two equal all-zero outputs are as close as can be, though their angle is not defined.
    return torch.where((a == b).all(1), 1.0, cosines)


def sample_concordances(pairs: Sequence[Pair], spread: Spread) -> Tensor:
    """Return numbers [samples], whose mean is the concordance of outputs [samples, …].

    That is 1 − Σ‖x − y‖² ÷ (Σ‖x − m‖² + Σ‖y − m‖²), with m the mean of the original's samples: 1
    only where all is equal; by a relative error ε it falls as the cosine does, by ε²/2; a constant
    reaches 0 at most. Where the original's samples are all the same, m is 0 (the closeness).

    Source: Lin 1989, doi:10.2307/2532051 (the concordance correlation coefficient).
    """
    errors = torch.cat([_errors(pair, spread) for pair in pairs])
    together = float(errors[:, 2].sum())
    if not together:
        return torch.ones(len(errors), dtype=torch.float64)
    return 1 - len(errors) * errors[:, 0] / together


def _errors(pair: Pair, spread: Spread) -> Tensor:
    """Return of each sample ‖x − y‖², ‖x‖² and ‖x − m‖² + ‖y − m‖², float64 [samples, 3]."""
    x, y = (values.reshape(len(values), -1) for values in _padded(pair))
    mean = spread.means.get(tuple(pair[0].shape[1:])) if spread.varies else None
    if mean is not None and len(mean) != x.shape[1]:
        mean = padded(mean.reshape(pair[0].shape[1:]), _padded(pair)[0].shape[1:]).reshape(-1)
    found = []
    rows = max(1, _BLOCK_ELEMENTS // max(1, x.shape[1]))
    for a, b in zip(x.split(rows), y.split(rows), strict=True):
        one, other = a.double(), b.double()
        difference, original = (one - other).square().sum(1), one.square().sum(1)
        if mean is not None:
            one, other = one - mean, other - mean
        together = one.square().sum(1) + other.square().sum(1)
        found.append(torch.stack([difference, original, together], 1))
    return torch.cat(found) if found else torch.zeros(0, 3, dtype=torch.float64)


def _agreement(pairs: Sequence[Pair]) -> float:
    """Return the share of equal integers; what one of the two lacks is unequal."""
    weights = torch.tensor(
        [max(one[:1].numel(), other[:1].numel()) for one, other in pairs for _ in one]
    )
    shares = torch.cat([_agreements(pair) for pair in pairs])
    return float((weights * shares).sum() / weights.sum()) if int(weights.sum()) else 1.0


def _agreements(pair: Pair) -> Tensor:
    """Return the share of equal integers of each sample, float64 [samples]."""
    original, other = pair
    common = tuple(map(slice, map(min, original.shape, other.shape)))
    equal = (original[common] == other[common]).reshape(len(original), -1).double().sum(1)
    total = torch.Size(map(max, original.shape, other.shape)).numel() / max(1, len(original))
    return equal / total if total else torch.ones(len(original), dtype=torch.float64)


def _padded(pair: Pair) -> Pair:
    """Return two outputs with one shape: what one of them lacks is zero."""
    original, other = pair
    if original.shape == other.shape:
        return pair
    sizes = list(map(max, original.shape, other.shape))
    return padded(original, sizes), padded(other, sizes)


def _blocks(batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield rows in double precision, few enough to have room."""
    for batch in batches:
        for block in batch.split(max(1, _BLOCK_ELEMENTS // max(1, batch.shape[1]))):
            yield block.double()
