"""What an error in each weight costs, measured on calibration inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from zoopress.errors import StageError

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.models.weights import Weight
    from zoopress.techniques import Context

Weighting = Literal["none", "inputs", "curvature"]

LEAST = 0.01
"""Share of the mean: what the calibration data did not need, other data may."""
_STATISTICS = {"inputs": "input_norms", "curvature": "diagonal_curvature"}


def importances(
    weighting: Weighting,
    model: Model,
    weights: Sequence[Weight],
    context: Context,
    notes: dict[str, Any],
) -> Callable[[Weight], Tensor | None]:
    """Return what gives each weight's importances, [rows, columns] or less; None for equal ones.

    Args:
        weighting: `none`; `inputs`: the mean square of what it is multiplied with, which makes the
            squared error that of the layer's outputs if inputs were independent; `curvature`: the
            diagonal of the Hessian of the model's outputs.
        model: as it is before weights are packed.
        weights: of which.
        context: of the stage.
        notes: gets the weights whose errors count equally since nothing can be measured of them,
            such as position embeddings that are added, with the reason.

    Raises:
        StageError: if there are no calibration samples.
    """
    if weighting == "none":
        return lambda weight: None
    from zoopress.techniques.scoring import measured_named

    name = _STATISTICS[weighting]
    statistic = measured_named([name], context, model, weights)

    def importance(weight: Weight) -> Tensor | None:
        try:
            found = statistic(name, weight).float()
        except StageError as error:
            notes.setdefault("errors_count_equally", {})[weight.name] = str(error)
            return None
        if weighting == "inputs":
            found = found.square()
        mean = float(found.mean())
        return (found / mean).clamp_min(LEAST) if mean > 0 else None

    return importance
