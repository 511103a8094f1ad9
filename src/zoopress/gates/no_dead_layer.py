"""The gate `no_dead_layer`: no layer was pruned or rounded to nothing."""

from __future__ import annotations

from pydantic import Field

from zoopress.config import Config
from zoopress.gates.layer_error import NOT_MEASURED
from zoopress.results import GateInput


class NoDeadLayerConfig(Config):
    """How much of a layer must be left."""

    min_nonzero: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of a layer's numbers that must not be zero; 0 asks for a single one",
    )


class NoDeadLayer:
    """Fail a model with a layer of which compression left only zeros.

    A layer that was all zeros in the original, or that was removed as a whole, does not count.
    """

    config_type = NoDeadLayerConfig

    def __init__(self, config: NoDeadLayerConfig) -> None:
        self.config = config

    def __call__(self, given: GateInput) -> str | None:
        """Judge every layer that was changed."""
        if given.result.layers is None:
            return NOT_MEASURED
        least = self.config.min_nonzero
        for layer in given.result.layers:
            if layer.zero_share is None or layer.error == 0:
                continue
            left = 1 - layer.zero_share
            if left <= 0 or left < least:
                asked = f"at least {least:.2%}" if least else "more than nothing"
                return (
                    f"of the layer {layer.name!r} {left:.2%} is not zero; {asked} must be. Prune "
                    "less of it, 'exclude' it, or share sparsity out by layer and not globally."
                )
        return None
