"""Distillation: a student learns to answer as its teacher does, and to think alike on the way.

Sources: Hinton et al. 2015, arXiv:1503.02531 (softened outputs); Romero et al. 2014, FitNets,
arXiv:1412.6550 (hints); Tung & Mori 2019, arXiv:1907.09682 (similarities within a batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from zoopress.choice import NoOptions
from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import Config, Effects, Outcome, Technique
from zoopress.training.config import TrainingConfig
from zoopress.training.loss import INPUT, Loss

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoopress.models.model import Model
    from zoopress.techniques import Context
    from zoopress_plugins.distillation.losses.hidden_states import HiddenStates

Response = Literal["logits", "regression", "embedding"]


class Hints(Config):
    """What the student learns from the teacher's hidden states."""

    weight: float = Field(default=1.0, gt=0, description="of the mean loss of all pairs")
    layers: Literal["auto"] | tuple[tuple[str, str], ...] = Field(
        default="auto",
        description="pairs of modules, [student's, teacher's]; auto: the layers of the stacks that "
        "both have, those that were removed left out",
    )


class DistillationConfig(TrainingConfig):
    """How to train, and what to learn from the teacher."""

    teacher: str | None = Field(
        default=None,
        description="a card, or 'input': the model as it entered the stage; by default the model "
        "that was compressed, as it came",
    )
    response: Literal["auto", "logits", "regression", "embedding"] = Field(
        default="auto",
        description="what outputs are: scores of classes, numbers or embeddings; auto: as the task "
        "compares them",
    )
    temperature: float = Field(default=2.0, gt=0, description="logits: softens both softmaxes")
    relational: float = Field(
        default=1.0,
        ge=0,
        description="embedding: weight of the similarities within a batch, beside the cosine's 1",
    )
    alpha: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="weight of the task's own loss, the teacher's outputs having 1 − alpha; with 0 "
        "no labels are needed",
    )
    hints: bool | Hints = Field(
        default=False, description="learn from hidden states, too: true, or {weight, layers}"
    )


class Distillation(Technique[DistillationConfig]):
    """Train a model to do what a teacher does."""

    name = "distillation"
    family = "distillation"
    config_type = DistillationConfig
    needs = frozenset({"calibration", "training", "teacher"})
    recovers = True
    timed = False

    def effects(self) -> Effects:
        """Neither require nor destroy anything: whatever is still a float parameter is trained."""
        return Effects()

    def cards(self) -> Sequence[str]:
        """Return the teacher's card, if it is another than the model's own."""
        teacher = self.config.teacher
        return () if teacher in (None, INPUT) else (str(teacher),)

    def apply(self, model: Model, context: Context) -> Outcome:
        """Check that the teacher fits, and train."""
        from zoopress.techniques.teaching import taught, teacher_name

        config = self.config
        assert context.teacher is not None
        assert context.task is not None
        context.progress("fetching the teacher")
        teacher = context.teacher(config.teacher)
        batch = context.batches()[0]
        context.progress("comparing student and teacher")
        output = context.call(model.module, batch)
        expected = self._call(context, teacher, batch)
        response = self._response(context, expected)
        hints = self._hints(model, teacher)
        losses = [*self._losses(response, output, expected), *hints]
        term = taught(context, model, losses, config.teacher)
        result = context.train(model, config, [term], config.alpha)
        pairs = [list(pair) for loss, _ in hints for pair in loss.config.layers]
        notes = {
            "teacher": teacher_name(config.teacher),
            "response": response,
            **({"hints": pairs} if pairs else {}),
        }
        return Outcome(touched=result.trained, shrinks=False, notes={**notes, **result.notes()})

    def training_work(self, training: int, validation: int) -> tuple[int, int]:
        """Return what the config asks for, and as many runs of the teacher."""
        trained, looked_at = self.config.work(training, validation)
        others = self.config.teacher_runs(training, validation)
        return trained, trained + 2 * looked_at + others

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for the teacher, gradients, the optimizer's state and the best weights."""
        return 6 * total

    def _call(self, context: Context, teacher: nn.Module, batch: Any) -> Tensor:
        from zoopress.techniques.teaching import teacher_name

        try:
            return context.call(teacher, batch)
        except StageError as error:
            raise StageError(
                f"The teacher {teacher_name(self.config.teacher)} cannot run on the student's "
                f"inputs; it must take the same. {error}"
            ) from error

    def _response(self, context: Context, expected: Tensor) -> Response:
        """Return what kind of output the teacher's is, by how the task takes labels from it."""
        from zoopress.training.loss import rows

        if self.config.response != "auto":
            return self.config.response
        assert context.task is not None
        scores = context.task.similarity([expected])
        if scores is None:
            return "regression"
        own = rows(expected)
        return (
            "logits" if scores.shape == own.shape and bool((scores == own).all()) else "embedding"
        )

    def _losses(
        self, response: Response, output: Tensor, expected: Tensor
    ) -> list[tuple[Loss[Any], float]]:
        """Return the losses of outputs, with their weights.

        Raises:
            StageError: if embeddings of two sizes are to be compared by their cosine.
        """
        from zoopress_plugins.distillation.losses.cosine import Cosine
        from zoopress_plugins.distillation.losses.kl_divergence import (
            KlDivergence,
            KlDivergenceConfig,
        )
        from zoopress_plugins.distillation.losses.mean_squared_error import MeanSquaredError
        from zoopress_plugins.distillation.losses.relational import Relational

        weight, relational = 1 - self.config.alpha, self.config.relational
        if response == "logits":
            options = KlDivergenceConfig(temperature=self.config.temperature)
            return [(KlDivergence(options), weight)]
        if response == "regression":
            return [(MeanSquaredError(NoOptions()), weight)]
        by_relations = [(Relational(NoOptions()), weight * relational)] if relational else []
        if output.shape == expected.shape:
            return [*by_relations, (Cosine(NoOptions()), weight)]
        if output.ndim == expected.ndim == 2 and not by_relations:
            raise StageError(
                f"Embeddings of {output.shape[1]} and {expected.shape[1]} numbers have no "
                "cosine; give 'relational' a weight above 0, which compares samples with each "
                "other."
            )
        return list(by_relations) or [(Cosine(NoOptions()), weight)]

    def _hints(self, model: Model, teacher: nn.Module) -> list[tuple[HiddenStates, float]]:
        """Return a loss for each pair of layers; their weights sum to that of `hints`.

        Raises:
            StageError: if there are none to pair.
        """
        from zoopress_plugins.distillation.losses.hidden_states import (
            HiddenStates,
            HiddenStatesConfig,
        )

        settings = Hints() if self.config.hints is True else self.config.hints
        if not settings:
            return []
        every = HiddenStates(HiddenStatesConfig(layers=settings.layers))
        pairs = every.layers(model, teacher, self.config.teacher in (None, INPUT))
        return [
            (HiddenStates(HiddenStatesConfig(layers=(pair,))), settings.weight / len(pairs))
            for pair in pairs
        ]


@hookimpl
def zoopress_techniques() -> list[type[Distillation]]:
    """Register the technique."""
    return [Distillation]
