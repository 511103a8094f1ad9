"""Second moments of layers' inputs, where a layer's output error is a quadratic form of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zoopress.errors import StageError

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context


def input_moments(
    model: Model, weights: Sequence[Weight], context: Context, notes: dict[str, Any]
) -> Callable[[Weight], Tensor | None]:
    """Return what gives the mean of x xᵀ over a layer's inputs [columns, columns].

    Args:
        model: as it is before weights are packed.
        weights: of which.
        context: of the stage.
        notes: gets the weights that have none, as layers in groups, look-ups and layers that no
            sample reached, with the reason.
    """
    found = context.statistics.of(model, "input_second_moments", weights)

    def moments(weight: Weight) -> Tensor | None:
        columns = weight.matrix().shape[1]
        try:
            own = found[weight].value
            reason = f"its inputs have moments {list(own.shape)}, not {[columns, columns]}"
        except StageError as error:
            own, reason = None, str(error)
        if own is not None and tuple(own.shape) == (columns, columns):
            return own
        notes.setdefault("not_corrected", {})[weight.name] = reason
        return None

    return moments
