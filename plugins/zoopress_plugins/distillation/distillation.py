"""Distillation: a student learns to answer as its teacher does, and to think alike on the way.

Sources: Hinton et al. 2015, arXiv:1503.02531 (softened outputs); Romero et al. 2014, FitNets,
arXiv:1412.6550 (hints); Tung & Mori 2019, arXiv:1907.09682 (similarities within a batch).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from zoopress.errors import StageError, nearest
from zoopress.plugins import hookimpl
from zoopress.techniques import Config, Effects, Outcome, Technique
from zoopress.training.config import TrainingConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoopress.models.model import Model
    from zoopress.techniques import Context

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
        default=None, description="a card; by default the model that was compressed, as it came"
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
        return () if self.config.teacher is None else (self.config.teacher,)

    def apply(self, model: Model, context: Context) -> Outcome:
        """Check that the teacher fits, and train."""
        import torch

        from zoopress_plugins.distillation.teaching import Teaching, paired_layers, states_in

        config = self.config
        assert context.teacher is not None
        assert context.task is not None
        context.progress("fetching the teacher")
        teacher = context.teacher(config.teacher)
        hints: Sequence[tuple[str, str]] = ()
        settings = Hints() if config.hints is True else config.hints
        if settings:
            hints = self._pairs(model, teacher, settings, paired_layers)
        batch = context.batches()[0]
        context.progress("comparing student and teacher")
        with (
            states_in(model.module, [one for one, _ in hints], {}) as own,
            states_in(teacher, [other for _, other in hints], {}) as others,
        ):
            output = context.call(model.module, batch)
            expected = self._call(context, teacher, batch)
        response = self._response(context, expected)
        loss, widths = self._loss(response, output, expected), _widths(hints, own, others)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)  # adapters start at random
            term = Teaching(
                context.task,
                teacher,
                loss,
                1 - config.alpha,
                hints,
                settings.weight if settings else 0.0,
                widths,
            )
        result = context.train(model, config, [term], config.alpha)
        notes = {
            "teacher": config.teacher or "the original",
            "response": response,
            **({"hints": [list(pair) for pair in hints]} if hints else {}),
        }
        return Outcome(touched=result.trained, shrinks=False, notes={**notes, **result.notes()})

    def training_work(self, training: int, validation: int) -> tuple[int, int]:
        """Return what the config asks for, and as many runs of the teacher."""
        trained, looked_at = self.config.work(training, validation)
        return trained, trained + 2 * looked_at

    def working_bytes(self, total: int, largest: int) -> int:
        """Return room for the teacher, gradients, the optimizer's state and the best weights."""
        return 6 * total

    def _call(self, context: Context, teacher: nn.Module, batch: Any) -> Tensor:
        try:
            return context.call(teacher, batch)
        except StageError as error:
            raise StageError(
                f"The teacher {self.config.teacher or 'the original'} cannot run on the student's "
                f"inputs; it must take the same. {error}"
            ) from error

    def _response(self, context: Context, expected: Tensor) -> Response:
        """Return what kind of output the teacher's is, by how the task takes labels from it."""
        from zoopress_plugins.distillation.losses import rows

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

    def _loss(
        self, response: Response, output: Tensor, expected: Tensor
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss of outputs, as rows.

        Raises:
            StageError: if the student's outputs cannot be compared with the teacher's.
        """
        from zoopress_plugins.distillation import losses

        alike = output.shape == expected.shape
        if response == "embedding":
            if output.ndim != 2 or expected.ndim != 2:
                raise StageError(
                    f"Embeddings are [samples, size], but the output is {list(output.shape)} and "
                    f"the teacher's {list(expected.shape)}. Set 'response' to 'logits' or "
                    "'regression'."
                )
            relational = self.config.relational
            if not alike and not relational:
                raise StageError(
                    f"Embeddings of {output.shape[1]} and {expected.shape[1]} numbers have no "
                    "cosine; give 'relational' a weight above 0, which compares samples with each "
                    "other."
                )

            def loss(student: Tensor, teacher: Tensor) -> Tensor:
                total = relational * losses.relational_loss(student, teacher)
                return total + losses.cosine_loss(student, teacher) if alike else total

            return loss
        if not alike:
            raise StageError(
                f"The student puts out {list(output.shape)}, the teacher "
                f"{self.config.teacher or 'the original'} {list(expected.shape)}; to be compared "
                "as 'logits' or 'regression' they must be alike. Choose a teacher of the same task."
            )
        if response == "regression":
            return losses.regression_loss
        temperature = self.config.temperature
        return lambda student, teacher: losses.response_loss(student, teacher, temperature)

    def _pairs(
        self,
        model: Model,
        teacher: nn.Module,
        settings: Hints,
        paired: Callable[[Model, nn.Module, bool], list[tuple[str, str]]],
    ) -> Sequence[tuple[str, str]]:
        """Return which modules' hidden states are compared.

        Raises:
            StageError: if there are none, or not those that were named.
        """
        if settings.layers == "auto":
            found = paired(model, teacher, self.config.teacher is None)
            if not found:
                raise StageError(
                    "'hints': student and teacher have no lists of equal layers that could be "
                    "paired. Name pairs of modules: 'hints: {layers: [[student's, teacher's]]}'."
                )
            return found
        for whose, module, position in (("student", model.module, 0), ("teacher", teacher, 1)):
            there = dict(module.named_modules(remove_duplicate=False))
            for pair in settings.layers:
                if pair[position] not in there:
                    raise StageError(
                        f"'hints': the {whose} has no module {pair[position]!r}."
                        f"{nearest(pair[position], there)}"
                    )
        return settings.layers


def _widths(
    hints: Sequence[tuple[str, str]], own: dict[str, Tensor], others: dict[str, Tensor]
) -> list[tuple[int, int]]:
    """Return the features of each pair's hidden states.

    Raises:
        StageError: if one has none, or they have other positions.
    """
    from zoopress_plugins.distillation.losses import rows

    found = []
    for one, other in hints:
        if one not in own or other not in others:
            missing = f"student's {one!r}" if one not in own else f"teacher's {other!r}"
            raise StageError(f"'hints': the {missing} puts out no tensor on the task's inputs.")
        student, teacher = rows(own[one]), rows(others[other])
        if len(student) != len(teacher):
            raise StageError(
                f"'hints': {one!r} puts out {list(own[one].shape)}, {other!r} "
                f"{list(others[other].shape)}; they must be alike but for the features."
            )
        found.append((student.shape[1], teacher.shape[1]))
    return found


@hookimpl
def zoopress_techniques() -> list[type[Distillation]]:
    """Register the technique."""
    return [Distillation]
