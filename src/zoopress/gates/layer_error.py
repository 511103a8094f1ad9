"""The gate `layer_error`: no single layer is far from the original's."""

from __future__ import annotations

from pydantic import Field

from zoopress.config import Config
from zoopress.results import GateInput

NOT_MEASURED = (
    "its result was stored by a version of zoopress that did not measure layers yet, so this "
    "cannot be judged. Run the recipe with another --store, or leave the gate out."
)


class LayerErrorConfig(Config):
    """How far is too far."""

    bound: float = Field(
        default=0.5,
        ge=0,
        allow_inf_nan=False,
        description="largest ‖compressed − original‖ ÷ ‖original‖ that a layer may have",
    )


class LayerError:
    """Fail a model with a layer whose weight is far from the original's.

    Outputs can hide a ruined layer, since their mean over inputs and layers is one number. Layers
    that were removed, or have another shape now, have no error and are passed over.
    """

    config_type = LayerErrorConfig

    def __init__(self, config: LayerErrorConfig) -> None:
        self.config = config

    def __call__(self, given: GateInput) -> str | None:
        """Judge by the layer with the largest error."""
        if given.result.layers is None:
            return NOT_MEASURED
        errors = {layer.name: layer.error or 0.0 for layer in given.result.layers}
        worst = max(errors, key=lambda name: errors[name], default=None)
        if worst is None or errors[worst] <= self.config.bound:
            return None
        beyond = sum(error > self.config.bound for error in errors.values())
        return (
            f"the layer {worst!r} has a relative error of {errors[worst]:.4g}, above the bound of "
            f"{self.config.bound:.4g} ({beyond} of {len(errors)} layers are). Treat it more "
            "gently, 'exclude' it, or raise 'bound'."
        )
