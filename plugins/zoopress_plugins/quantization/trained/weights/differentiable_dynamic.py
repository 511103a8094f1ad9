"""Levels, their range and their number are learned: gates merge levels until a layer has few.

Each layer has a codebook of 2^8 levels. A gate for each digit of a level's number, sorted so that
the last digits' close first, replaces levels that differ in that digit alone by their mean; what is
left are 2^bits levels, 2 to 8 bits. All are then shifted so that one of them is zero.

Source: Zhang et al. 2021, arXiv:2106.02295 (DDQ): levels, and gates that are 0 or 1 forwards and
soft backwards, under a penalty on memory. Here that is a hinge on the mean bits, and after half of
a training `BitBudget` closes what is still too many, so that they are certain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoopress.models.weights import Weight
from zoopress.tasks import Batch
from zoopress.training.constraints import Constraint
from zoopress.training.term import Term
from zoopress_plugins.quantization.packing_weights import Form
from zoopress_plugins.quantization.trained.quantizer import WeightQuantizer
from zoopress_plugins.quantization.trained.straight_through import TINY, passing

LEAST, MOST = 2, 8
"""Bits of a code."""
RATE = 10.0
"""How much faster gates are learned than weights, as they have a longer way."""
REACH = 4.0
"""Levels start within so many root mean squares of the weights."""
_OPEN = 1.5
_FARTHEST = 3.0
_SHARE = 0.5


def merged(levels: Tensor, gates: Tensor) -> Tensor:
    """Replace levels by their means where gates are closed.

    Args:
        levels: [2**MOST], rising.
        gates: [MOST − LEAST], 0 to 1, falling: of the digits after the first two.

    Returns:
        [2**MOST], of which blocks of 2**(closed gates) are alike.

    Source: Zhang et al. 2021, arXiv:2106.02295: the product with a matrix that is the Kronecker
    product of the identity where a gate is 1, and of a matrix of ones where it is 0, normalized.
    """
    for digit, gate in enumerate(gates.flip(0)):
        pairs = levels.view(-1, 2, 2**digit)
        means = pairs.mean(1, keepdim=True).expand_as(pairs).flatten()
        levels = gate * levels + (1 - gate) * means
    return levels


class DifferentiableDynamic(WeightQuantizer):
    """Rounds to the nearest of the levels that a layer's gates have left.

    Args:
        weight: what is quantized.
        bits: that codes are to have in the mean over all weights; see `BitBudget`.
    """

    reach: Tensor

    def __init__(self, weight: Weight, bits: int) -> None:
        super().__init__(weight, bits)
        matrix = self.matrix().detach().float()
        size = matrix.square().sum().div((matrix != 0).sum().clamp_min(1)).sqrt()
        self.register_buffer("reach", matrix.abs().amax().minimum(REACH * size).clamp_min(TINY))
        half = 2 ** (MOST - 1)
        self.levels = nn.Parameter(torch.arange(-half, half).to(matrix) / half)
        count = MOST - LEAST
        start = torch.linspace(_OPEN, _OPEN / count, count)
        self.gates = nn.Parameter((start / RATE).to(matrix))

    def open_gates(self) -> Tensor:
        """Return 1 for an open gate and 0 for a closed one, falling, [MOST − LEAST].

        Derivatives are those of a sigmoid.
        """
        held = (RATE * self.gates).sort(descending=True).values
        return passing((held > 0).to(held), held.sigmoid())

    def code_bits(self) -> Tensor:
        """Return the bits of a code, a scalar with gradients."""
        return LEAST + self.open_gates().sum()

    def close_one(self) -> None:
        """Close the gate that is open the least."""
        with torch.no_grad():
            held = torch.where(self.gates > 0, self.gates, torch.inf)
            self.gates[int(held.argmin())] = -1.0 / RATE

    def least_open(self) -> float:
        """Return how far the gate that is open the least is open; infinity if all are closed."""
        held = self.gates.detach()
        return float(torch.where(held > 0, held, torch.inf).min())

    def forward(self) -> Tensor:
        """Return the nearest levels; gradients of weights pass within their range."""
        matrix, values = self.matrix(), self._values()
        low, high = values.detach().aminmax()
        inside = matrix.clamp(low.to(matrix), high.to(matrix))
        found = values.to(matrix.dtype).index_select(0, self._numbers().flatten())
        return passing(found.view_as(matrix), inside)

    def form(self) -> Form:
        """Return the numbers of levels as codes, from that at zero on, and the levels."""
        from zoopress.coding.bits import pack_codes

        with torch.no_grad():
            bits = int(self.code_bits())
            block = 2 ** (MOST - bits)
            numbers = self._numbers() // block
            codes = ((numbers - 2 ** (bits - 1)) % 2**bits).to(torch.uint8)
            values = self._values()[::block].roll(-(2 ** (bits - 1)))
            tensors = {
                "codes": pack_codes(codes.contiguous(), bits),
                "codebook": values[1:].bfloat16(),
            }
            return Form("codebook", {"bits": bits}, tensors, bits)

    def expected_bytes(self) -> int:
        """Return how many bytes it takes at the target: before training all gates are open."""
        from zoopress.coding.bits import packed_size

        rows, columns = self.matrix().shape
        return int(rows * packed_size(columns, self.bits) + 2 * (2**self.bits - 1))

    def after_step(self) -> None:
        """Keep gates where a sigmoid has a slope."""
        with torch.no_grad():
            self.gates.clamp_(-_FARTHEST / RATE, _FARTHEST / RATE)

    def _values(self) -> Tensor:
        """Return levels as bfloat16 holds them, float32 [2**MOST], that in the middle zero."""
        levels = merged(self.levels.sort().values, self.open_gates())
        values = self.reach * (levels - levels[len(levels) // 2])
        return passing(values.detach().bfloat16().float(), values)

    def _numbers(self) -> Tensor:
        """Return the number of each weight's level among all, [out, in].

        Of the levels that are merged to the nearest value it is the one that is nearest itself, so
        that a gate's derivative says what the weight would gain if the gate were open.
        """
        with torch.no_grad():
            matrix = self.matrix().float().contiguous()
            block = 2 ** (MOST - int(self.code_bits()))
            values = self._values()[::block]
            nearest = torch.bucketize(matrix, (values[1:] + values[:-1]) / 2)
            nearest = torch.where(matrix == 0, len(values) // 2, nearest)
            levels = self.levels.sort().values
            single = self.reach * (levels - merged(levels, self.open_gates())[len(levels) // 2])
            own = torch.bucketize(matrix, (single[1:] + single[:-1]) / 2)
            first = nearest * block
            return own.maximum(first).minimum(first + block - 1)


def mean_bits(quantizers: Sequence[DifferentiableDynamic]) -> Tensor:
    """Return the mean bits of a code over all weights, a scalar with gradients."""
    count = sum(each.shadow.numel() for each in quantizers)
    parts = [each.code_bits() * (each.shadow.numel() / count) for each in quantizers]
    return torch.stack(parts).sum()


class BitPenalty(Term):
    """What bits above the target cost: their share of it.

    Args:
        weight: what it is multiplied by.
        target: bits of a code in the mean over weights.
        quantizers: of the weights.
    """

    def __init__(
        self, weight: float, target: int, quantizers: Sequence[DifferentiableDynamic]
    ) -> None:
        super().__init__("bits", weight)
        self.target, self.held = target, tuple(quantizers)

    def forward(self, batch: Batch, output: Tensor) -> Tensor:
        """Return max(0, mean bits ÷ target − 1)."""
        return (mean_bits(self.held) / self.target - 1).clamp_min(0)


class BitBudget:
    """Closes the least open gates after half of a training, if bits are still above the target.

    A `Constraint`: weights of more bits are never kept as the best.

    Args:
        quantizers: of the weights.
        target: bits of a code in the mean over weights.
        steps: of the training.
        other: what is to hold as well.
    """

    def __init__(
        self,
        quantizers: Sequence[DifferentiableDynamic],
        target: int,
        steps: int,
        other: Constraint | None,
    ) -> None:
        self._quantizers, self._target, self._other = tuple(quantizers), target, other
        self._from = int(_SHARE * steps)
        self._done = torch.zeros((), dtype=torch.int64)

    def before_step(self) -> None:
        """Do what the other does."""
        if self._other is not None:
            self._other.before_step()

    def after_step(self) -> None:
        """Close gates, the least open ones first."""
        if self._other is not None:
            self._other.after_step()
        self._done += 1
        while int(self._done) > self._from and not self._holds():
            min(self._quantizers, key=DifferentiableDynamic.least_open).close_one()

    def tensors(self) -> dict[str, Tensor]:
        """Return the number of steps, and what the other keeps."""
        other = {} if self._other is None else self._other.tensors()
        return {**other, "bit_budget.done": self._done}

    def reached(self) -> bool:
        """Return whether bits are no more than the target."""
        return self._holds() and (self._other is None or self._other.reached())

    def _holds(self) -> bool:
        return float(mean_bits(self._quantizers).detach()) <= self._target + 1e-4
