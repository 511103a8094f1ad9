"""Codebook quantization: the weights of a layer share few values, found by k-means.

Sources: Han, Mao & Dally 2015, Deep Compression, arXiv:1510.00149, section 3 (k-means from linear
initialization); Choi, El-Khamy & Lee 2016, arXiv:1612.01543, sections 3.3 (weighted by the diagonal
of the Hessian) and 4.2 (entropy-constrained scalar quantization).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from zoopress.plugins import hookimpl
from zoopress.techniques import MATRICES, Claim, Effects, Kind, Outcome, Technique, WeightSelection

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context
    from zoopress_plugins.quantization.rate_distortion.sensitivity import Sensitivity

ITERATIONS = 100
IMPROVEMENT = 1e-4
"""k-means ends when an iteration lowers the cost by no larger share."""
SAMPLE = 1 << 17
"""A codebook is fitted to at most so many weights, drawn at random."""
_BLOCK_COSTS = 1 << 22
_LEAST_IMPORTANCE = 0.01
"""Share of the mean: what the calibration data did not need, other data may."""


class CodebookQuantizationConfig(WeightSelection):
    """How many values, and how to choose them."""

    kinds: tuple[Kind, ...] = Field(
        default=(*MATRICES, "embedding"),
        min_length=1,
        description="kinds of weights",
    )
    bits: int = Field(default=4, ge=1, le=8, description="2 to this power values, zero among them")
    kind_bits: dict[Kind, int] = Field(
        default={}, description="bits of kinds that need other than `bits`, such as {conv: 8}"
    )
    scope: Literal["layer", "global"] = Field(
        default="layer", description="whether each weight has a codebook, or all share one"
    )
    weighting: Literal["none", "fisher"] = Field(
        default="none",
        description="what an error costs: its square, or that times how much outputs change with "
        "the weight, measured on calibration inputs",
    )
    entropy_weight: float = Field(
        default=0.0,
        ge=0,
        description="what a bit of entropy a weight costs, where an error as large as the weights "
        "themselves costs 1; 0: values are counted, not bits",
    )

    @model_validator(mode="after")
    def _check(self) -> CodebookQuantizationConfig:
        if self.scope == "global" and self.kind_bits:
            raise ValueError("'kind_bits' has no meaning for the one codebook of 'scope: global'")
        for kind, bits in self.kind_bits.items():
            if not 1 <= bits <= 8:
                raise ValueError(f"'kind_bits': bits must be 1 to 8, not {bits} ({kind})")
            if kind not in self.kinds:
                raise ValueError(f"'kind_bits': {kind!r} is none of the 'kinds' {self.kinds}")
        return self


@dataclass(frozen=True)
class Codebook:
    """Values, and what each costs.

    Attributes:
        values: [k], rising, float32; one of them is 0.
        bits: [k], of each value's code if codes are entropy coded.
    """

    values: Tensor
    bits: Tensor


CodebookForm: TypeAlias = "tuple[int, Tensor, Tensor]"
"""Bits of a code, the code of each value [k] and the values by code: see `packed_values`."""


def initial_values(weights: Tensor, count: int) -> Tensor:
    """Spread values evenly over the range of each sign, and put zero between them.

    Args:
        weights: [n], not zero.
        count: how many values, zero included; at least 2.

    Returns:
        [count], rising, float64.

    Source: Han et al. 2015, arXiv:1510.00149, section 3.2 ("linear"); by sign, since between the
    largest negative and the smallest positive weight of a pruned layer there is nothing.
    """
    import torch

    if not len(weights):
        return torch.zeros(1, dtype=torch.float64)
    low, high = weights[weights < 0].double(), weights[weights > 0].double()
    reach = [float(-low.min()) if len(low) else 0.0, float(high.max()) if len(high) else 0.0]
    below = round((count - 1) * reach[0] / sum(reach))
    if len(low) and len(high) and count > 2:
        below = min(max(below, 1), count - 2)
    parts = [torch.zeros(1, dtype=torch.float64)]
    for side, number in ((low, below), (high, count - 1 - below)):
        if number:
            parts.append(
                torch.linspace(float(side.min()), float(side.max()), number, dtype=torch.float64)
            )
    return torch.cat(parts).sort().values


def nearest(weights: Tensor, importance: Tensor, book: Codebook, entropy_weight: float) -> Tensor:
    """Return which value each weight takes: that of the least error and bits.

    Args:
        weights: [n].
        importance: [n], or [1] for all.
        book: [k] values.
        entropy_weight: what a bit costs.

    Returns:
        [n], int64; for a weight of zero that of the value zero.

    Source: Choi et al. 2016, arXiv:1612.01543, section 4.2.
    """
    import torch

    values = book.values.to(weights.dtype)
    if not entropy_weight:
        found = torch.bucketize(weights, (values[1:] + values[:-1]) / 2)
    else:
        size, parts = max(1, _BLOCK_COSTS // len(values)), []
        for some in (slice(i, i + size) for i in range(0, len(weights), size)):
            costs = (weights[some, None] - values).square_()
            costs *= importance[some, None] if len(importance) > 1 else importance
            parts.append(costs.add_(entropy_weight * book.bits.to(costs.dtype)).argmin(1))
        found = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)
    return torch.where(weights == 0, _zero(values), found)


def fit_codebook(
    weights: Tensor, importance: Tensor, count: int, entropy_weight: float, zeros: float
) -> Codebook:
    """Find the values that a layer's weights share, by k-means with bits.

    With an entropy weight, values that hardly any weight takes cost many bits, lose those weights
    to their neighbours, and vanish.

    Args:
        weights: [n], not zero.
        importance: [n] or [1], what an error's square is multiplied by.
        count: how many values at most, zero included.
        entropy_weight: what a bit of a weight costs.
        zeros: share of all weights that is zero, beside these.

    Source: Choi et al. 2016, arXiv:1612.01543, algorithm 1; the first spacing: Gish & Pierce 1968,
    doi:10.1109/TIT.1968.1054193.
    """
    import torch

    weights, importance = weights.double(), importance.double().expand(len(weights))
    if entropy_weight and len(weights):
        # More values than fit at the spacing that is best at high rates would only die one by one.
        spacing = math.sqrt(6 * entropy_weight / math.log(2) / float(importance.mean()))
        reach = float(weights.max().clamp(min=0) - weights.min().clamp(max=0))
        count = min(count, 2 + math.ceil(reach / spacing))
    values = initial_values(weights, count)
    bits = torch.zeros(len(values), dtype=torch.float64)
    least, weight_of_bits = float("inf"), 0.0  # how many bits values take shows the first iteration
    for _ in range(ITERATIONS if len(weights) else 0):
        codes = nearest(weights, importance, Codebook(values, bits), weight_of_bits)
        error = (weights - values[codes]).square()
        cost = float((importance * error).mean() + weight_of_bits * bits[codes].mean())
        if not cost < least * (1 - IMPROVEMENT):
            break
        least = cost if weight_of_bits == entropy_weight else least
        weight_of_bits, size = entropy_weight, len(values)
        mass = codes.bincount(importance, size)
        means = codes.bincount(importance * weights, size) / mass
        share = (1 - zeros) * codes.bincount(minlength=size) / len(weights) + zeros * (values == 0)
        values = torch.where((mass > 0) & (values != 0), means, values)
        if entropy_weight:
            used = (share > 0) | (values == 0)
            values, share = values[used], share[used]
            bits = -share.clamp(min=0.5 / len(weights)).log2()
        values, order = values.sort()
        bits = bits[order]
    if len(weights):
        codes = nearest(weights, importance, Codebook(values, bits), entropy_weight)
        used = (codes.bincount(minlength=len(values)) > 0) | (values == 0)
        values, bits = values[used], bits[used]
    # Rounded before any weight takes one of them: so storing them in bfloat16 costs nothing.
    return Codebook(values.bfloat16().float(), bits.float())


def packed_values(book: Codebook) -> CodebookForm:
    """Number values so that zero has code 0; see `CodebookWeight`.

    Returns:
        The bits of a code, the code of each value [k], uint8, and the values by code from 1.
    """
    import torch

    bits = max(1, (len(book.values) - 1).bit_length())
    codes = (torch.arange(len(book.values)) - _zero(book.values)) % 2**bits
    by_code = torch.zeros(2**bits)
    by_code[codes] = book.values
    return bits, codes.to(torch.uint8), by_code[1:].bfloat16()


def diagonal(sensitivity: Sensitivity, shape: torch.Size) -> Tensor:
    """Return how much an error in each weight costs, [out · in], float32, above 0."""
    import torch

    rows, columns = sensitivity.rows, sensitivity.columns
    if columns is not None and columns.ndim == 2:
        columns = columns.diagonal()
    ones = torch.ones(1, 1)
    product = (ones if rows is None else rows[:, None]) * (ones if columns is None else columns)
    product = product.float().expand(shape).flatten()
    least = _LEAST_IMPORTANCE * float(product.mean())
    return product.clamp(min=least) if least > 0 else torch.ones_like(product)


def entropy_bits(codes: Tensor) -> float:
    """Return the least bits that codes take if each is coded by its frequency."""
    counts = codes.unique(return_counts=True)[1].double()
    return float(-(counts * (counts / counts.sum()).log2()).sum())


def _zero(values: Tensor) -> int:
    return int((values == 0).nonzero()[0])


class CodebookQuantization(Technique[CodebookQuantizationConfig]):
    """Let the weights of each layer share few values."""

    name = "codebook_quantization"
    family = "quantization"
    config_type = CodebookQuantizationConfig
    needs = frozenset({"calibration"})

    def effects(self) -> Effects:
        """Require float weights, and leave none of the kinds it works on."""
        return Effects(requires=self.config.properties(), destroys=self.config.properties())

    def apply(self, model: Model, context: Context) -> Outcome:
        """Fit codebooks and pack the selected weights."""
        config = self.config
        weights, left = config.fitting(model)
        notes: dict[str, Any] = {"left": left} if left else {}
        importance = self.importance(model, weights, context, notes)
        generator = context.generator()
        shared = self.fit(weights, importance, generator) if config.scope == "global" else None
        form = shared and packed_values(shared)  # one tensor, so it is stored once

        def choose(weight: Weight) -> tuple[CodebookForm, Tensor]:
            book = shared or self.fit([weight], importance, generator)
            flat = weight.matrix().flatten().float()
            indices = nearest(flat, importance(weight), book, config.entropy_weight)
            return form or packed_values(book), indices

        return self.pack(model, weights, context, choose, notes)

    def pack(
        self,
        model: Model,
        weights: Sequence[Weight],
        context: Context,
        choose: Callable[[Weight], tuple[CodebookForm, Tensor]],
        notes: Mapping[str, Any],
    ) -> Outcome:
        """Pack weights.

        Args:
            model: what they are of.
            weights: which.
            context: of the stage.
            choose: gives what `packed_values` gave, and which value each weight takes [out · in].
            notes: what else to report.
        """
        from zoopress.coding.bits import pack_codes
        from zoopress.models.packing import packed_weights

        before = sum(weight.parameter.nbytes for weight in weights)
        count = sum(weight.parameter.numel() for weight in weights)
        entropy, asked = 0.0, 0
        for weight in context.track(weights):
            (bits, codes, values), indices = choose(weight)
            entropy += entropy_bits(indices)
            asked += bits * len(indices)
            packed_codes = pack_codes(codes[indices].view(weight.matrix().shape), bits)
            tensors = {"codes": packed_codes, "codebook": values}
            model.pack(weight, "codebook", {"bits": bits}, tensors)
        packed = packed_weights(model.module)
        after = sum(buffer.nbytes for weight in weights for buffer in packed[weight.name].buffers())
        saved = 8 * (before - after) / count
        return Outcome(
            touched=[weight.name for weight in weights],
            # A quarter of the saving may go into codebooks, and rows that end within a byte.
            claims=[Claim("bits saved per weight", (8 * before - asked) / count, saved, 0.25)],
            notes={
                "bits_per_weight": 8 * after / count,
                "entropy_per_weight": entropy / count,
                **notes,
            },
        )

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for a weight's indices and errors, and for the sensitivities."""
        return 6 * largest + (total if self.config.weighting == "fisher" else 0)

    def importance(
        self,
        model: Model,
        weights: Sequence[Weight],
        context: Context,
        notes: dict[str, Any] | None = None,
    ) -> Callable[[Weight], Tensor]:
        """Return what gives each weight's importances [n] or [1]; note what no sample reached.

        They are such that errors as large as the weights have a mean cost of 1: over the weights
        that share a codebook or, where they are comparable from layer to layer, over all.
        """
        import torch

        plain = self.config.weighting == "none"
        if plain:
            sizes = {w.name: float(w.parameter.detach().double().square().sum()) for w in weights}

            def raw(weight: Weight) -> Tensor:
                return torch.ones(1)
        else:
            from zoopress_plugins.quantization.rate_distortion.sensitivity import (
                measure_sensitivities,
                not_reached,
            )

            found = measure_sensitivities(model.module, weights, context, data="calibration")
            if notes is not None:
                notes.update(not_reached(found, weights))

            def raw(weight: Weight) -> Tensor:
                return diagonal(found[weight.name], weight.matrix().shape)

            sizes = {
                w.name: float((raw(w) * w.matrix().flatten().double().square()).sum())
                for w in weights
            }
        counts = {weight.name: weight.parameter.numel() for weight in weights}
        mean = sum(sizes.values()) / sum(counts.values())
        alone = plain and self.config.scope == "layer"

        def importance(weight: Weight) -> Tensor:
            own = sizes[weight.name] / counts[weight.name] if alone else mean
            return raw(weight) / own if own > torch.finfo(torch.float32).tiny else torch.ones(1)

        return importance

    def fit(
        self,
        weights: Sequence[Weight],
        importance: Callable[[Weight], Tensor],
        generator: torch.Generator,
    ) -> Codebook:
        """Fit one codebook to some weights."""
        import torch

        total = sum(weight.parameter.numel() for weight in weights)
        values, importances, zeros = [], [], 0
        for weight in weights:
            flat = weight.matrix().flatten().float()
            each = importance(weight).expand(flat.shape)
            zeros += int((flat == 0).sum())
            if total > SAMPLE:
                share = (max(1, SAMPLE * len(flat) // total),)
                drawn = torch.randint(len(flat), share, generator=generator)
                flat, each = flat[drawn], each[drawn]
            values.append(flat[flat != 0])
            importances.append(each[flat != 0])
        bits = self.config.kind_bits.get(weights[0].kind, self.config.bits)
        return fit_codebook(
            torch.cat(values),
            torch.cat(importances),
            2**bits,
            self.config.entropy_weight,
            zeros / total,
        )


@hookimpl
def zoopress_techniques() -> list[type[CodebookQuantization]]:
    """Register the technique."""
    return [CodebookQuantization]


@hookimpl
def zoopress_layers() -> dict[str, str]:
    """Register what artifacts call a weight with a codebook."""
    return {"codebook": "zoopress_plugins.quantization.forms.codebook:CodebookWeight"}
