"""What techniques share that pack weights one by one: what is worth it, and what it took."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoopress.errors import StageError
from zoopress.techniques import Claim, Outcome

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context


@dataclass(frozen=True)
class Form:
    """A weight in packed form.

    Attributes:
        packing: the form's registered name.
        arguments: of its constructor.
        tensors: its buffers.
        bits: that a weight takes by the scheme, besides scales: what is claimed.
    """

    packing: str
    arguments: Mapping[str, bool | int | float | str]
    tensors: Mapping[str, Tensor]
    bits: float

    @property
    def nbytes(self) -> int:
        """How many bytes the buffers take."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass
class Tally:
    """What was packed and what was left."""

    before: int = 0
    after: int = 0
    count: int = 0
    asked: float = 0.0
    touched: list[str] = field(default_factory=list)


def pack_weights(
    model: Model,
    weights: Sequence[Weight],
    context: Context,
    form_of: Callable[[Weight], Form],
    left: Mapping[str, str],
    remedy: str,
    notes: Mapping[str, Any] | None = None,
) -> Outcome:
    """Pack weights, but those that would take as many bytes or more, which are named.

    Args:
        model: what they are of.
        weights: which.
        context: of the stage.
        form_of: gives the packed form of each.
        left: what was left before, and why.
        remedy: what to do if nothing is worth it, as a sentence.
        notes: what else to report.

    Raises:
        StageError: if no weight takes fewer bytes packed.
    """
    done, left = Tally(), dict(left)
    lost: dict[str, int] = {}
    for weight in context.track(weights):
        form = form_of(weight)
        size = weight.parameter.nbytes
        if form.nbytes >= size:
            left[weight.name] = f"packed it would take {form.nbytes:,} bytes, as many or more"
            continue
        numbers = weight.parameter.numel()
        zeros = numbers - int(weight.parameter.detach().count_nonzero())
        model.pack(weight, form.packing, form.arguments, form.tensors)
        if zeros and _moved(model, weight, numbers - zeros):
            lost[weight.name] = zeros
        done.before += size
        done.after += form.nbytes
        done.count += numbers
        done.asked += form.bits * numbers
        done.touched.append(weight.name)
    if not done.touched:
        raise StageError(
            f"None of the {len(weights)} selected weights takes fewer bytes packed: scales and "
            f"codebooks would cost what is saved. {remedy}"
        )
    saved = 8 * (done.before - done.after) / done.count
    return Outcome(
        touched=done.touched,
        # A quarter of the saving may go into scales, codebooks and rows that end within a byte.
        claims=[
            Claim("bits saved per weight", (8 * done.before - done.asked) / done.count, saved, 0.25)
        ],
        notes={
            "bits_per_weight": 8 * done.after / done.count,
            **(notes or {}),
            **({"left": left} if left else {}),
            **({"zeros_that_became_other_values": lost} if lost else {}),
        },
    )


def _moved(model: Model, weight: Weight, nonzero: int) -> bool:
    """Tell whether zeros of a weight are other values now, in a form that has no code for zero."""
    from zoopress.models.packing import packed_weights

    packed = packed_weights(model.module)[weight.name]
    if any(codes.zero is not None for codes in packed.integers().values()):
        return False
    return int(packed.dense().count_nonzero()) > nonzero
