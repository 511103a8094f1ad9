"""Incremental quantization: weights take shared values a few at a time, while the others train.

Source: Zhou et al. 2017, arXiv:1702.03044 (incremental network quantization), whose values are
powers of two; those of a codebook are trained as well: Han et al. 2015, arXiv:1510.00149, section
3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import Effects, Outcome, Technique
from zoopress_plugins.distillation.distillation import Distillation, DistillationConfig
from zoopress_plugins.pruning.magnitude_pruning import sparsity_after
from zoopress_plugins.quantization.codebook_quantization import (
    Codebook,
    CodebookForm,
    CodebookQuantization,
    CodebookQuantizationConfig,
    nearest,
    packed_values,
)
from zoopress_plugins.quantization.level_quantization import packed_levels
from zoopress_plugins.quantization.packing_weights import Form, pack_weights

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context

_FREE = -1
_ZERO = 0


class IncrementalQuantizationConfig(CodebookQuantizationConfig):
    """How many values, and the training in which weights take them."""

    values: Literal["codebook", "power_of_two"] = Field(
        default="codebook",
        description="`codebook`: fitted values, the nearest taken first, trained further; "
        "`power_of_two`: zero and signed powers of two, the largest weights first, as in the paper",
    )
    end: float = Field(
        default=0.75,
        gt=0,
        le=1,
        description="share of the training after which all weights have taken a value; in the "
        "rest only the values are trained",
    )
    interval: int = Field(
        default=20, ge=1, description="steps from one time that weights take values to the next"
    )
    training: DistillationConfig = Field(
        description="the training, with the keys of `distillation`, such as {epochs: 10}"
    )

    @model_validator(mode="after")
    def _check_scope(self) -> IncrementalQuantizationConfig:
        if self.scope == "global":
            raise ValueError("'scope: global' is for 'codebook_quantization'; leave it out")
        if self.values == "power_of_two":
            if self.entropy_weight or self.weighting != "none":
                raise ValueError(
                    "'entropy_weight' and 'weighting' choose values of a codebook; leave them out "
                    "with 'values: power_of_two'"
                )
            for bits in (self.bits, *self.kind_bits.values()):
                if not 2 <= bits <= 5:
                    raise ValueError(f"'values: power_of_two' takes 2 to 5 bits, not {bits}")
        return self

    def bits_of(self, weight: Weight) -> int:
        """Return the bits of a weight's code."""
        return self.kind_bits.get(weight.kind, self.bits)


def largest_power(weights: Tensor) -> float:
    """Return the power of two that the largest weights go to: 2^⌊log₂(4s/3)⌋, s the largest.

    Source: Zhou et al. 2017, arXiv:1702.03044, equation 2.
    """
    largest = float(weights.abs().max())
    return 2.0 ** math.floor(math.log2(4 * largest / 3)) if largest else 1.0


def power_codebook(weight: Weight, bits: int) -> Codebook:
    """Return zero and the signed powers of two that a weight may take."""
    import torch

    from zoopress_plugins.quantization.grids.named import named_grid

    levels = named_grid("power_of_two", bits).levels
    values = (levels[levels.isfinite()] * largest_power(weight.matrix())).sort().values
    return Codebook(values, torch.zeros_like(values))


def share_means(entries: Tensor, codes: Tensor, otherwise: Tensor) -> Tensor:
    """Set entries of one code to their mean; those of code 0 to zero.

    Args:
        entries: [n], changed.
        codes: [n], 0 to k − 1, or −1 for entries that stay as they are.
        otherwise: [k], taken for codes that no entry has.

    Returns:
        [k], the means.
    """
    import torch

    shared = codes != _FREE
    of = codes[shared].long()
    sums = torch.zeros_like(otherwise, dtype=torch.float64)
    sums.index_add_(0, of, entries[shared].double())
    counts = of.bincount(minlength=len(otherwise))
    means = torch.where(counts > 0, sums / counts.clamp(min=1), otherwise.double())
    means[_ZERO] = 0
    means = means.to(entries.dtype)
    entries[shared] = means[of]
    return means


class RisingShare:
    """Lets more and more weights take shared values between steps of a training; a `Constraint`.

    What has taken a value keeps to it, and all that share a value move together: each gets the mean
    of their gradients, and then the mean of where that led them. Those that are nearest to a value
    take it first: so each time little changes that the others must make up for. Zeros stay zero.

    Args:
        weights: what is quantized.
        books: the values that each may take, at first.
        importances: of each, [n] or [1], what an error's square costs; see `nearest`.
        steps: of the training.
        config: how.

    Raises:
        StageError: if a weight is not trained.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        books: Sequence[Codebook],
        importances: Sequence[Tensor],
        steps: int,
        config: IncrementalQuantizationConfig,
    ) -> None:
        import torch

        for weight in weights:
            if not weight.parameter.requires_grad:
                raise StageError(
                    f"{weight.name} is to be quantized in training, but is not trained. Leave it "
                    "out with 'exclude', or 'lora' and its 'learning_rates' out of 'training'."
                )
        self._weights, self._config = weights, config
        self._fixed = config.values == "power_of_two"
        self._last = max(1, round(config.end * steps))
        self._step = torch.zeros((), dtype=torch.int64)
        self._codes, self._values, self._bits, self._importances = [], [], [], []
        for weight, book, importance in zip(weights, books, importances, strict=True):
            flat = weight.matrix().flatten()
            zero_first = (book.values != 0).to(torch.uint8).argsort(stable=True)
            self._codes.append(torch.where(flat == 0, _ZERO, _FREE).to(torch.int16))
            self._values.append(book.values[zero_first].to(flat.device))
            self._bits.append(book.bits[zero_first].to(flat.device))
            self._importances.append(importance.to(flat.device))
        self._free = [int((codes == _FREE).sum()) for codes in self._codes]

    def before_step(self) -> None:
        """Give all weights of one value the mean of their gradients, or none if it is fixed."""
        import torch

        from zoopress.models.weights import as_matrix

        for i, weight in enumerate(self._weights):
            gradient = weight.parameter.grad
            if gradient is not None:
                matrix = as_matrix(gradient, weight.output_axis)
                flat = matrix.flatten().clone()
                if self._fixed:
                    flat.masked_fill_(self._codes[i] != _FREE, 0.0)
                else:
                    share_means(flat, self._codes[i], torch.zeros_like(self._values[i]))
                gradient.copy_(weight.from_matrix(flat.view(matrix.shape)))

    def after_step(self) -> None:
        """Make weights of one value equal, and let more take one if it is time to."""
        import torch

        self._step += 1
        step = int(self._step)
        due = step == self._last or (step < self._last and step % self._config.interval == 0)
        with torch.no_grad():
            for i, weight in enumerate(self._weights):
                matrix = weight.matrix()
                flat = matrix.flatten().clone()
                if self._fixed:
                    taken = self._codes[i] != _FREE
                    flat[taken] = self._values[i][self._codes[i][taken].long()]
                else:
                    self._values[i].copy_(share_means(flat, self._codes[i], self._values[i]))
                if due:
                    left = round(self._free[i] * (1 - sparsity_after(1.0, step / self._last)))
                    self._take(i, flat, left)
                weight.parameter.copy_(weight.from_matrix(flat.view(matrix.shape)))

    def tensors(self) -> dict[str, Tensor]:
        """Return the number of steps taken, who has which value, and the values."""
        return {
            "step": self._step,
            **{f"codes/{i}": codes for i, codes in enumerate(self._codes)},
            **{f"values/{i}": values for i, values in enumerate(self._values)},
        }

    def reached(self) -> bool:
        """Return whether all weights have taken a value."""
        return int(self._step) >= self._last

    def _take(self, index: int, flat: Tensor, left: int) -> None:
        """Let all but `left` of the free weights of [n] take the values that suit them best."""
        codes, importance = self._codes[index], self._importances[index]
        free = (codes == _FREE).nonzero()[:, 0]
        if len(free) <= left:
            return
        values, order = self._values[index].sort()
        weights = flat[free]
        importance = importance[free] if len(importance) > 1 else importance
        book = Codebook(values, self._bits[index][order])
        found = nearest(weights, importance, book, self._config.entropy_weight)
        error = importance * (weights - values[found]).square()
        # The large ones matter most, and the others can make up for them, if values are fixed.
        order_of = -weights.abs() if self._fixed else error
        first = order_of.argsort(stable=True)[: len(free) - left]
        codes[free[first]] = order[found[first]].to(codes.dtype)
        flat[free[first]] = values[found[first]]


class IncrementalQuantization(Technique[IncrementalQuantizationConfig]):
    """Let the weights of each layer share few values, a few at a time while a teacher trains."""

    name = "incremental_quantization"
    family = "quantization"
    config_type = IncrementalQuantizationConfig
    needs = Distillation.needs
    timed = False

    def effects(self) -> Effects:
        """Require float weights, and leave none of the kinds it works on."""
        return CodebookQuantization(self.config).effects()

    def apply(self, model: Model, context: Context) -> Outcome:
        """Fit codebooks, train while weights take their values, and pack the selected weights."""
        import torch

        config, codebooks = self.config, CodebookQuantization(self.config)
        weights, left = config.fitting(model)
        notes: dict[str, Any] = {"left": left} if left else {}
        importance = codebooks.importance(model, weights, context, notes)
        generator = context.generator()
        powers = config.values == "power_of_two"
        books = [
            power_codebook(weight, config.bits_of(weight))
            if powers
            else codebooks.fit([weight], importance, generator)
            for weight in weights
        ]
        scales = {weight.name: largest_power(weight.matrix()) for weight in weights}
        importances = [importance(weight) for weight in weights]
        within = replace(
            context, constrain=lambda steps: RisingShare(weights, books, importances, steps, config)
        )
        trained = Distillation(config.training).apply(model, within)

        def choose(weight: Weight) -> tuple[CodebookForm, Tensor]:
            flat = weight.matrix().flatten().bfloat16().float()  # as values are stored
            values = torch.cat((flat, flat.new_zeros(1))).unique()
            book = Codebook(values, torch.zeros_like(values))
            return packed_values(book), nearest(flat, flat.new_ones(1), book, 0.0)

        def form(weight: Weight) -> Form:
            from zoopress_plugins.quantization.grids.named import named_grid

            bits, scale = config.bits_of(weight), torch.tensor([[scales[weight.name]]])
            grid = named_grid("power_of_two", bits)
            codes = grid.project(weight.matrix(), scale)
            return packed_levels(codes, scale.bfloat16(), "power_of_two", bits, 0)

        if powers:
            remedy = "Take fewer bits, or leave this stage out."
            packed = pack_weights(model, weights, context, form, left, remedy, notes)
        else:
            packed = codebooks.pack(model, weights, context, choose, notes)
        return replace(
            packed,
            touched=list(dict.fromkeys([*packed.touched, *trained.touched])),
            notes={**trained.notes, **packed.notes},
        )

    def cards(self) -> Sequence[str]:
        """Return the teacher's card, if it is another than the model's own."""
        return Distillation(self.config.training).cards()

    def training_work(self, training: int, validation: int) -> tuple[int, int]:
        """Return what the training does."""
        return Distillation(self.config.training).training_work(training, validation)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for the training, importances, codes, and a weight's errors and order."""
        training = Distillation(self.config.training).working_bytes(total, largest)
        return training + 2 * total + 8 * largest


@hookimpl
def zoopress_techniques() -> list[type[IncrementalQuantization]]:
    """Register the technique."""
    return [IncrementalQuantization]
