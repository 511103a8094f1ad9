"""How to train: a part of the config of every technique that trains."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from zoopress.config import Config
from zoopress.training.loss import LossChoice


class LoraConfig(Config):
    """Learn low-rank updates instead of the weights, and merge them in the end.

    Source: Hu et al. 2021, arXiv:2106.09685.
    """

    rank: int = Field(default=8, ge=1, description="rank of each update")
    alpha: float = Field(default=16.0, gt=0, description="updates count alpha ÷ rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of the updates' inputs")
    include: tuple[str, ...] = Field(
        default=("*",), description="shell patterns; a linear layer's name must match one"
    )


class TrainingConfig(Config):
    """A run of the training loop; give `epochs` or `steps`."""

    epochs: float | None = Field(default=None, gt=0, description="passes over the training split")
    steps: int | None = Field(default=None, ge=1, description="steps of the optimizer")
    batch_size: int = Field(default=32, ge=1, description="samples a forward pass")
    accumulate: int = Field(default=1, ge=1, description="forward passes a step of the optimizer")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="the optimizer")
    learning_rate: float = Field(default=1e-4, gt=0, description="its peak")
    learning_rates: dict[str, float] = Field(
        default={},
        description="factors of it by shell pattern of parameter names; the first match counts, "
        "and 0 freezes",
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(
        default=0.01, ge=0, description="of tensors of two or more axes; biases and norms have none"
    )
    schedule: Literal["cosine", "one_cycle", "linear", "constant"] = Field(
        default="cosine", description="how the learning rate goes from its peak"
    )
    warm_up: float = Field(
        default=0.05, ge=0, lt=1, description="share of the steps in which it rises to its peak"
    )
    max_gradient_norm: float | None = Field(
        default=1.0, gt=0, description="gradients are scaled down to this norm; null: never"
    )
    sharpness: float | None = Field(
        default=None,
        gt=0,
        description="take gradients where the loss is highest within so far of the weights (SAM), "
        "which takes twice the time; 0.05 is usual",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="of forward passes; auto: bfloat16 on a GPU that has it, float32 elsewhere",
    )
    channels_last: bool = Field(
        default=False,
        description="lay convolutions' weights out with the channels last, and so what they put "
        "out; faster, most of all in bfloat16. Not for a model that views instead of reshaping",
    )
    batch_norm: Literal["train", "freeze", "recalibrate"] = Field(
        default="train",
        description="running statistics: learn them, keep them, or keep them while training and "
        "measure them anew in the end",
    )
    evaluations: int = Field(
        default=10, ge=0, description="how often the validation split is looked at; 0: never"
    )
    patience: int | None = Field(
        default=None, ge=1, description="stop after so many evaluations without a better one"
    )
    packed: Literal["frozen", "tune"] = Field(
        default="frozen",
        description="what packed weights hold besides their codes, such as scales, steps and "
        "codebooks: keep it, or train it, too",
    )
    lora: LoraConfig | None = Field(
        default=None, description="learn low-rank updates instead of weights, through peft"
    )
    losses: tuple[LossChoice, ...] = Field(
        default=(),
        description="what is lowered as well: {loss: NAME, weight: 0.1, …}, with options of the "
        "loss and, if it learns from one, its teacher",
    )

    def step_count(self, samples: int) -> int:
        """Return how many steps of the optimizer there are with so many training samples."""
        if self.steps is not None:
            return self.steps
        return max(1, round((self.epochs or 0) * self.steps_per_epoch(samples)))

    def steps_per_epoch(self, samples: int) -> int:
        """Return in how many steps every sample is seen once."""
        return math.ceil(samples / (self.batch_size * self.accumulate))

    def work(self, training: int, validation: int) -> tuple[int, int]:
        """Return how many samples are trained on, and how many looked at for validation."""
        if not training:
            return 0, 0
        trained = self.step_count(training) * training / self.steps_per_epoch(training)
        trained *= 2 if self.sharpness else 1
        return round(trained), validation * (self.evaluations + 1 if self.evaluations else 0)

    def teacher_runs(self, training: int, validation: int) -> int:
        """Return how many samples the teachers of `losses` are run on."""
        return self.teachers * sum(self.work(training, validation))

    @property
    def teachers(self) -> int:
        """How many teachers `losses` may have, the default one included."""
        return len({choice.teacher for choice in self.losses})

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either 'epochs' or 'steps'")
        if self.sharpness and self.packed == "tune":
            raise ValueError("'sharpness' moves weights, not what 'packed: tune' trains; leave one")
        if self.patience is not None and not self.evaluations:
            raise ValueError("'patience' counts evaluations, so 'evaluations' cannot be 0")
        return self
