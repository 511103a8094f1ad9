"""What quantization-aware training lowers besides the loss of its training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoopress.tasks import Batch, Task
from zoopress.training.batch_norm import statistics_kept
from zoopress.training.loss import rows
from zoopress.training.term import Term
from zoopress_plugins.quantization.losses.periodic import periodic_penalty
from zoopress_plugins.quantization.trained.quantizer import InputQuantizer
from zoopress_plugins.quantization.trained.weights.learned_step import LearnedStep


class PulledToSteps(Term):
    """The periodic penalty of shadows, for the steps that they learn.

    Args:
        weight: what it is multiplied by.
        quantizers: of the weights.
    """

    def __init__(self, weight: float, quantizers: Sequence[LearnedStep]) -> None:
        super().__init__("periodic", weight)
        self.held = tuple(quantizers)

    def forward(self, batch: Batch, output: Tensor) -> Tensor:
        """Return the mean over each weight, summed over weights."""
        parts = [periodic_penalty(each.matrix(), each.step()[:, None]) for each in self.held]
        return torch.stack(parts).sum()


class StochasticPrecision(Term):
    """Learns from itself with inputs of more bits, drawn anew for each layer and batch.

    Args:
        weight: what it is multiplied by.
        task: runs the module.
        module: what is trained.
        inputs: what rounds its layers' inputs.
        most: bits that may be drawn, from those of each quantizer on.

    Source: Boo et al. 2021, arXiv:2009.14502 (SPEQ), section 3, with its cosine loss.
    """

    def __init__(
        self,
        weight: float,
        task: Task,
        module: nn.Module,
        inputs: Sequence[InputQuantizer],
        most: int = 8,
    ) -> None:
        super().__init__("stochastic precision", weight)
        self.most = most
        self.held = (task, module, tuple(inputs))

    def forward(self, batch: Batch, output: Tensor) -> Tensor:
        """Return 1 − cosine of the outputs, the mean over rows."""
        task, module, inputs = self.held
        with torch.no_grad(), statistics_kept(module), drawn_bits(inputs, self.most):
            expected = task.forward(module, batch.inputs).float()
        return 1 - F.cosine_similarity(rows(output, None), rows(expected, None), dim=-1).mean()


@contextmanager
def drawn_bits(inputs: Sequence[InputQuantizer], most: int) -> Iterator[None]:
    """Let inputs have bits that are drawn, from their own to `most`, over the same range."""
    try:
        for each in inputs:
            each.finer = int(torch.randint(each.bits, max(most, each.bits) + 1, ()))
        yield
    finally:
        for each in inputs:
            each.finer = None
