"""How much an error in each weight changes a model's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.caches import caches_forgotten
from zoopress.models.packing import differentiable
from zoopress.models.weights import Weight, as_matrix
from zoopress.statistics.differentiation import gradients_of
from zoopress.statistics.probes import forward_all, probe, sliced
from zoopress.tasks.batches import batch_length
from zoopress.tasks.failures import differentiating, failing
from zoopress.techniques import Context
from zoopress_plugins.quantization.rate_distortion.probes import made_up

MAX_COLUMNS = 4096
"""Of wider matrices only the diagonal of the columns' side is measured."""
_PASSES = 64
"""About how many backward passes there are."""
_SMALL_PASSES = 512
"""The same, of models with fewer weights than `_LARGE`."""
_LARGE = 4_000_000
_SAMPLES = 8
"""How many samples share a pass: more tell more in a pass, but their products are noise. A mean
takes one."""
_MOST_PROBES = 64
_FEWEST_SLICES = 8
"""At least so many passes, if there are as many samples, tell what differs by chance."""
_CAUTION = 2.0
"""How much larger chance is taken to be than calibration samples show: those to come may differ
more, and what is taken to matter too little costs more than what is taken to matter too much."""
_EVEN_ROWS = 0.03
"""Each row matters at least so much, relative to their mean: a gradient of zero says nothing about
an error as large as the row, as of an attention head that looks at one place for sure."""
_EVEN_TOKENS = 0.3
"""The same for embeddings, most of whose rows no sample has asked for, but other text will."""
_LIKE_RARE = 0.25
"""The quantile of the tokens that samples had, which the others are taken to be like."""
WORTH_A_WORD = 0.1
"""Share of a weight's rows that no sample reached, from which on the notes name it."""
_UNUSED = 1.0
"""What a weight matters that no sample reached, relative to the median of the others: nothing is
known of it, not that it is worthless."""
_NO_GRADIENTS = "Set 'sensitivity' to 'none'."


@dataclass(frozen=True)
class Sensitivity:
    """A second derivative of the outputs' distance: rows ⊗ columns.

    An error e [out, in] of a weight's matrix costs Σ_r rows[r] · e[r] · columns · e[r]ᵀ, where the
    distance is as `zoopress.statistics.probes.probe` says.

    Attributes:
        columns: [in, in] or its diagonal [in]; None: the identity.
        rows: [out]; None: all one.
        unreached: share of the rows, or of the whole, that no sample reached.
    """

    columns: Tensor | None = None
    rows: Tensor | None = None
    unreached: float = 0.0


def measure_sensitivities(
    module: nn.Module,
    weights: Sequence[Weight],
    context: Context,
    *,
    data: Literal["calibration", "synthetic"],
) -> dict[str, Sensitivity]:
    """Measure the Fisher information of each weight as a Kronecker product.

    With G [out, in] the gradient of a probe of the outputs, columns are the mean of GᵀG and rows
    the mean of G's squared rows. So whatever holds a weight, and however often it is used: layers,
    convolutions, recurrent cells, embeddings, tied weights and bare parameters are all alike.

    Rows, and the diagonal of columns, move towards their mean as far as samples disagree on them:
    what few samples have asked for, others will, and what few have shown to matter, others may not.

    Synthetic inputs are text that the model writes, which tells as much as data does, or noise. Of
    noise only each weight's mean is kept. How much one weight matters beside another is much the
    same for noise and for data; which rows and columns of a weight matter is not: noise lights up
    pixels that data never does.

    Args:
        module: the model; it is left as it was.
        weights: of the model.
        context: of the stage; its task runs the model.
        data: its calibration inputs; or what the task imagines, or random ones of their shapes.

    Returns:
        By name. A weight that no output depends on has a small one, by its own size.

    Raises:
        StageError: if there are no inputs, or outputs have no gradients.

    Source: Martens & Grosse 2015, arXiv:1503.05671 (a product for each weight); Gupta et al. 2018,
        arXiv:1802.09568, section 3 (the two sides from gradients alone); Efron & Morris 1973,
        doi:10.1080/01621459.1973.10481350 (estimates of many means are better nearer to theirs).
    """
    assert context.task is not None, "a stage's context has a task"
    batches = list(context.batches() or context.task.batches("calibration"))
    samples = sum(map(batch_length, batches))
    if not samples:
        raise StageError(
            "There are no calibration inputs to measure sensitivities on. Give the card "
            "'calibration_samples', or set 'sensitivity' to 'none'."
        )
    generator = context.generator()
    noise = False
    if data == "synthetic":
        context.progress("imagining inputs")
        imagined = context.task.imagined(module, samples, generator)
        noise = not imagined
        batches = list(imagined or [made_up(batch, generator) for batch in batches])
    count = sum(weight.parameter.numel() for weight in weights)
    passes = _PASSES if count >= _LARGE else _SMALL_PASSES
    together = 1 if noise else max(1, min(_SAMPLES, samples // _FEWEST_SLICES))
    slices = list(sliced(batches, max(together, samples // passes)))
    probes = min(_MOST_PROBES, max(1, passes // len(slices)))
    moments = [_Moments(weight, both_sides=not noise) for weight in weights]
    parameters = [weight.parameter for weight in weights]
    with gradients_of(module, parameters), differentiable(module):
        for done, batch in enumerate(slices, start=1):
            with caches_forgotten(module):  # what it keeps of a call has that call's graph
                with failing("when gradients are taken in evaluation mode", _NO_GRADIENTS):
                    output, others = forward_all(context.task, module, batch)
                if not output.requires_grad:
                    raise StageError(
                        "The model's outputs have no gradients with respect to the weights "
                        "selected, so their sensitivity cannot be measured. Set 'sensitivity' to "
                        "'none'."
                    )
                for left in reversed(range(probes)):
                    scalar = probe(context.task, output, generator, others)
                    with differentiating(_NO_GRADIENTS):
                        gradients = torch.autograd.grad(
                            scalar, parameters, allow_unused=True, retain_graph=left > 0
                        )
                    for moment, gradient in zip(moments, gradients, strict=True):
                        moment.add(gradient if gradient is None else gradient.to_dense())
            for moment in moments:
                moment.end_slice()
            context.progress("measuring sensitivities", done / len(slices))
    return _compared(moments, samples * probes)


def not_reached(
    sensitivities: Mapping[str, Sensitivity], weights: Sequence[Weight]
) -> dict[str, Any]:
    """Return a note of weights that no sample, or few, reached: their errors count as others' do.

    Of embeddings, most of whose rows no sample has, nothing is said.
    """
    found = {
        weight.name: round(known.unreached, 4)
        for weight in weights
        if weight.kind != "embedding" and (known := sensitivities.get(weight.name)) is not None
        if known.unreached >= WORTH_A_WORD
    }
    return {"not_reached_by_calibration": found} if found else {}


class _Sums:
    """Adds up how much each of many entries matters, and knows how far samples disagree."""

    def __init__(self) -> None:
        self._slice: Tensor | None = None
        self._total: Tensor | None = None
        self._squares: Tensor | None = None
        self._slices = 0

    def add(self, values: Tensor) -> None:
        """Add what one pass tells, [n]."""
        self._slice = values if self._slice is None else self._slice + values

    def end_slice(self) -> None:
        """Take what was added since the last time for the word of some samples."""
        if self._slice is not None:
            values = self._slice.double()
            if self._total is None or self._squares is None:
                self._total, self._squares = values, values.square()
            else:
                self._total += values
                self._squares += values.square()
        self._slice = None
        self._slices += 1

    def unreached(self) -> float:
        """Return of which share of the entries no sample told anything."""
        return 1.0 if self._total is None else float((self._total == 0).double().mean())

    def estimate(self, least: float = 0.0, rare: bool = False) -> Tensor:
        """Return sums [n], float64, moved towards their mean.

        What no sample reached, as of an expert that nothing was sent to, is as large as the mean of
        the others: nothing is known of it, not that it is worthless.

        Args:
            least: how much of the way, if samples agree.
            rare: whether what no sample reached is rather like what few have, as tokens are.
        """
        assert self._total is not None, "something was added"
        assert self._squares is not None, "something was added"
        mean = self._total / self._slices
        chance = (self._squares / self._slices - mean.square()).mean() / max(1, self._slices - 1)
        known = self._total[self._total > 0]
        total = self._total
        if len(known):
            like = known.quantile(_LIKE_RARE) if rare else known.mean()
            total = torch.where(total > 0, total, like)
        spread = float((total / self._slices).var(correction=0))
        share = min(1.0, max(least, _CAUTION * float(chance) / spread)) if spread else 1.0
        return (1 - share) * total + share * total.mean()


class _Moments:
    """Adds up the two sides of one weight's second moment of gradients, or its mean alone."""

    def __init__(self, weight: Weight, both_sides: bool) -> None:
        self.weight, self.both_sides = weight, both_sides
        self._rows, self._diagonal = _Sums(), _Sums()
        self._columns: Tensor | None = None
        self._power = 0.0

    def add(self, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        matrix = as_matrix(gradient, self.weight.output_axis).float().nan_to_num(0.0, 0.0, 0.0)
        squares = matrix.square()
        rows = squares.sum(1)
        self._rows.add(rows)
        self._power += float(rows.sum())
        if not self.both_sides:
            return
        self._diagonal.add(squares.sum(0))
        if matrix.shape[1] <= MAX_COLUMNS:
            touched = rows.nonzero().squeeze(1)  # few rows of an embedding
            some = matrix if 2 * len(touched) > len(rows) else matrix[touched]
            columns = some.T @ some
            self._columns = columns if self._columns is None else self._columns.add_(columns)

    def end_slice(self) -> None:
        self._rows.end_slice()
        self._diagonal.end_slice()

    def scaled(self, samples: int) -> Sensitivity | None:
        """Return the sensitivity; None if no gradient came."""
        if not self._power:
            return None
        if not self.both_sides:
            count, width = self.weight.matrix().shape
            return Sensitivity(rows=torch.full((count,), self._power / samples / count / width))
        even = _EVEN_TOKENS if self.weight.kind == "embedding" else _EVEN_ROWS
        rows = self._rows.estimate(even, self.weight.kind == "embedding") / samples
        columns = self._diagonal.estimate() / self._power
        if self._columns is not None:
            diagonal, columns = columns, self._columns / self._power
            columns.diagonal().copy_(diagonal)
        return Sensitivity(columns.float().cpu(), rows.float().cpu(), self._rows.unreached())


def _compared(moments: Sequence[_Moments], samples: int) -> dict[str, Sensitivity]:
    """Return the sensitivities, those of unused weights by comparison with the others."""
    found = {moment.weight.name: moment.scaled(samples) for moment in moments}
    power = {
        m.weight.name: float(m.weight.parameter.detach().float().square().mean()) or 1.0
        for m in moments
    }
    # What one number matters, relative to its own square.
    matters = [
        float(sensitivity.rows.mean()) * power[m.weight.name] / _columns(sensitivity)
        for m in moments
        if (sensitivity := found[m.weight.name]) is not None and sensitivity.rows is not None
    ]
    median = sorted(matters)[len(matters) // 2] if matters else 1.0
    return {
        m.weight.name: found[m.weight.name]
        or Sensitivity(
            rows=torch.full((len(m.weight.matrix()),), _UNUSED * median / power[m.weight.name]),
            unreached=1.0,
        )
        for m in moments
    }


def _columns(sensitivity: Sensitivity) -> int:
    """Return over how many columns the rows' side is spread: measured columns have a trace of 1."""
    return 1 if sensitivity.columns is None else len(sensitivity.columns)
