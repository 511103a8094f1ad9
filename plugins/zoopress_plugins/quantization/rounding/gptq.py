"""GPTQ: columns are rounded one after another, and those to come make up for each error.

Scales are chosen for all groups first, so that codes are stored in the order of the weight,
whatever the order in which they were found. After that, levels and scales can be improved in turn
against the same measure, which goes beyond the paper.

Sources: Frantar et al. 2022, arXiv:2210.17323 (error feedback, order by activations); Chee et al.
2023, arXiv:2307.13304, section 3 (the form of it used here), section 4 (greedy passes after it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from zoopress.config import Config
from zoopress.techniques.rounder import Matrix, Rounded, Rounder

if TYPE_CHECKING:
    pass


class GptqOptions(Config):
    """How columns are taken, and what comes after."""

    damping: float = Field(
        default=0.01, gt=0, description="share of the mean input power added to all inputs"
    )
    activation_order: bool = Field(
        default=True, description="whether columns with the strongest inputs come first"
    )
    sweeps: int = Field(
        default=2,
        ge=0,
        description="how often scales, then levels are improved in turn afterwards; 0 is the paper",
    )


class Gptq(Rounder[GptqOptions]):
    """Let columns still to come make up for the errors of those before."""

    name = "gptq"
    config_type = GptqOptions
    needs_inputs = True

    def round(self, matrix: Matrix) -> Rounded:
        """Round with error feedback; a row that nearest points serve better keeps those."""
        import torch

        from zoopress_plugins.quantization.rounding.feedback_rounding import with_error_feedback
        from zoopress_plugins.quantization.rounding.output_error import (
            better_rows,
            damped,
            descend,
            refitted,
            start_of,
        )

        start = start_of(matrix)
        if matrix.inputs is None or matrix.inputs.ndim == 1:
            return start  # each column by itself: nothing makes up for anything
        inputs = damped(matrix.inputs.float(), self.config.damping)
        order = torch.arange(len(inputs))
        if self.config.activation_order:
            order = inputs.diagonal().argsort(descending=True, stable=True)
        rounded = with_error_feedback(matrix, start, inputs, order)
        for _ in range(self.config.sweeps):
            rounded = refitted(matrix, rounded, inputs)
            rounded = descend(matrix, rounded, inputs, order)
        return better_rows(matrix, start, rounded, inputs)
