"""Fine-tuning: train a model on its task, all of it or the head alone, before or after compression.

Source: Yosinski et al. 2014, arXiv:1411.1792 (fine-tuning and feature extraction compared).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import Effects, Outcome, Technique
from zoopress.training.config import TrainingConfig

if TYPE_CHECKING:
    from torch import Tensor

    from zoopress.models.model import Model
    from zoopress.techniques import Context


class FineTuningConfig(TrainingConfig):
    """How to train, and what of the model."""

    mode: Literal["full", "feature_extraction"] = Field(
        default="full",
        description="what is trained: everything, or the head on the features that the rest makes, "
        "which stays as it is. The head is the last layer to run; for another choice use "
        "`learning_rates`",
    )

    @model_validator(mode="after")
    def _check_mode(self) -> FineTuningConfig:
        if self.mode == "feature_extraction" and self.learning_rates:
            raise ValueError(
                "'feature_extraction' trains the head alone; leave it out and let "
                "'learning_rates' say what is trained, such as {'classifier.*': 1, '*': 0}"
            )
        return self


class FineTuning(Technique[FineTuningConfig]):
    """Train a model on its task's labels."""

    name = "fine_tuning"
    family = "transfer"
    config_type = FineTuningConfig
    needs = frozenset({"calibration", "training"})
    recovers = True
    timed = False

    def effects(self) -> Effects:
        """Neither require nor destroy anything: whatever is still a float parameter is trained."""
        return Effects()

    def apply(self, model: Model, context: Context) -> Outcome:
        """Train."""
        config, notes = self.config, {}
        if config.mode == "feature_extraction":
            head = last_layer(model, context)
            notes["head"] = head
            changes: dict[str, Any] = {"learning_rates": {f"{head}.*": 1.0, "*": 0.0}}
            if "batch_norm" not in config.model_fields_set:
                changes["batch_norm"] = "freeze"  # its statistics are part of the features
            config = config.model_copy(update=changes)
        result = context.train(model, config)
        return Outcome(touched=result.trained, shrinks=False, notes={**notes, **result.notes()})

    def training_work(self, training: int, validation: int) -> tuple[int, int]:
        """Return what the config asks for."""
        trained, looked_at = self.config.work(training, validation)
        return trained, looked_at + self.config.teacher_runs(training, validation)

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for gradients, the optimizer's state, the best weights and teachers."""
        return (5 + self.config.teachers) * total


def last_layer(model: Model, context: Context) -> str:
    """Return the path of the last linear layer or convolution that runs.

    Raises:
        StageError: if none with float weights does.
    """
    from zoopress.models.stacks import watched

    layers = {weight.path: weight.module for weight in model.weights(("linear", "conv"))}
    ran: list[str] = []

    def look(path: str, before: Tensor | None, after: Tensor | None) -> None:
        ran.append(path)

    with watched(layers, look):
        context.call(model.module, context.batches()[0])
    if not ran:
        raise StageError(
            "No linear layer or convolution with float weights ran, so there is no head to train. "
            "Say what is trained with 'learning_rates', and leave 'mode' out."
        )
    return ran[-1]


@hookimpl
def zoopress_techniques() -> list[type[FineTuning]]:
    """Register the technique."""
    return [FineTuning]
