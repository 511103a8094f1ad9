"""The gate `bytes_saved`: a stage is worth its place in the chain."""

from __future__ import annotations

from pydantic import Field

from zoopress.config import Config
from zoopress.results import GateInput


class BytesSavedConfig(Config):
    """How much a stage must save."""

    at_least: float = Field(
        default=0.01, gt=0, lt=1, description="1 − bytes after ÷ bytes before the stage"
    )


class BytesSaved:
    """Fail a stage that saves too small a share of the tensor files' bytes.

    What only a later stage turns into fewer bytes, such as masks before `entropy_coding`, saves
    none here: ask it of the stages that are to save by themselves.
    """

    config_type = BytesSavedConfig

    def __init__(self, config: BytesSavedConfig) -> None:
        self.config = config

    def __call__(self, given: GateInput) -> str | None:
        """Judge by the bytes of the tensor files before and after."""
        result = given.result
        saved = 1 - result.weight_bytes / max(1, result.weight_bytes_before)
        if saved >= self.config.at_least:
            return None
        return (
            f"it saved {saved:.2%} of the tensor files ({result.weight_bytes_before:,} → "
            f"{result.weight_bytes:,} bytes), less than the {self.config.at_least:.2%} of "
            "'at_least'. Use stronger settings, leave the stage out, or ask for less."
        )
