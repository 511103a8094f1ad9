"""A model whose inputs are disturbed: its scores under attacks, its radius, its sensitivities."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor, nn

from zoopress.evaluation import attacks
from zoopress.evaluation.attacks import Values
from zoopress.evaluation.corruptions import bounds
from zoopress.evaluation.fidelity import call
from zoopress.evaluation.judges import ByOutputs, Judge, class_scores, labels_are_own
from zoopress.evaluation.surface import Surface, surface_of
from zoopress.models.packing import differentiable
from zoopress.tasks import Batch, Task

EPSILON = 8 / 255
"""Strength of attacks, as a share of the range of the attacked values."""
PGD_STEPS, PGD_STEP = 10, 0.25
"""How many steps, and how long one is as a share of ε."""
MAX_RADIUS = 0.5
"""The robustness radius is looked for up to this share of the range of the attacked values."""


class NotApplicableError(Exception):
    """A figure has no meaning for a task or a model."""


class Subject:
    """A model that is disturbed.

    Args:
        task: runs it.
        module: the model.
        batches: the samples.
        judge: scores it.
        seed: all that is random follows from it.
    """

    def __init__(
        self, task: Task, module: nn.Module, batches: Sequence[Batch], judge: Judge, seed: int
    ) -> None:
        self.task, self.module, self.judge, self._seed = task, module, judge, seed
        self._surfaces = [surface_of(task, batch.inputs) for batch in batches]

    @property
    def attacked(self) -> str:
        """What attacks and small changes are made to."""
        return "inputs" if self._surfaces[0].names else "token embeddings"

    def clean(self) -> float | None:
        """Score the model on the samples as they are."""
        return self.judge.score([self._call(surface.inputs) for surface in self._surfaces])

    def on(self, inputs: Sequence[Any]) -> float | None:
        """Score the model on other inputs of the same samples."""
        return self.judge.score([self._call(one) for one in inputs])

    def fgsm(self) -> float | None:
        """Score the model under an attack of one step.

        Raises:
            NotApplicableError: if there is no slope to follow.
        """
        if isinstance(self.judge, ByOutputs):
            raise NotApplicableError("the cosine to the original has no slope where it is 1")
        return self._under_attack(
            lambda loss, values: attacks.fgsm(loss, values, self._epsilons, self._bounds)
        )

    def pgd(self) -> float | None:
        """Score the model under an attack of several steps."""
        generator = self._generator("pgd")
        return self._under_attack(
            lambda loss, values: attacks.pgd(
                loss, values, self._epsilons, self._bounds, generator, PGD_STEPS, PGD_STEP
            )
        )

    def radius(self) -> float | None:
        """Return the mean distance, as a share of the values' range, to another label.

        Along the sign of the slope of the label's lead over the second, so that it is an upper
        bound of the distance in L∞, and exact for a linear model of two classes.

        Raises:
            NotApplicableError: if samples have no label of their own.
        """
        found = []
        for surface, values in zip(self._surfaces, self._values, strict=True):
            output = surface.run(self.module, values)
            if not labels_are_own(self.task, output):
                raise NotApplicableError("a label does not follow from its sample's output alone")
            labels = class_scores(self.task, output).argmax(1)
            if len(labels) != len(output):
                raise NotApplicableError("a sample has more than one label")

            def lead(at: Values, surface: Surface = surface, labels: Tensor = labels) -> Tensor:
                scores = class_scores(self.task, self._run_smooth(surface, at))
                own = scores.gather(1, labels[:, None])
                others = scores.scatter(1, labels[:, None], -torch.inf)
                return (own.squeeze(1) - others.amax(1)).sum()

            def changed(at: Values, surface: Surface = surface, labels: Tensor = labels) -> Tensor:
                scores = class_scores(self.task, surface.run(self.module, at))
                return scores.argmax(1) != labels

            slopes = attacks.gradients(lead, values)
            pairs = zip(self._spans, slopes, strict=True)
            away = [-span * slope.sign() for span, slope in pairs]
            with torch.no_grad():
                found.append(attacks.radii(changed, values, away, MAX_RADIUS))
        return float(torch.cat(found).mean())

    def sensitivity(self) -> float | None:
        """Return the relative change of the output ÷ that of the values, for random changes."""
        generator = self._generator("sensitivity")
        with torch.no_grad():
            return self._mean(
                lambda surface, values: attacks.random_sensitivity(
                    lambda at: surface.run(self.module, at), values, generator
                )
            )

    def largest_sensitivity(self) -> float | None:
        """Return the same for the changes that change the output most."""
        generator = self._generator("largest sensitivity")
        return self._mean(
            lambda surface, values: attacks.largest_sensitivity(
                lambda at: self._run_smooth(surface, at), values, generator
            )
        )

    def _run_smooth(self, surface: Surface, values: Values) -> Tensor:
        """Run the model in a form that has gradients."""
        with differentiable(self.module):
            return surface.run(self.module, values)

    @cached_property
    def _values(self) -> list[list[Tensor]]:
        try:
            return [surface.values(self.module) for surface in self._surfaces]
        except ValueError as error:
            raise NotApplicableError(str(error)) from error

    @cached_property
    def _bounds(self) -> list[tuple[float, float]]:
        """What attacked values stay within: inputs in the samples' range, embeddings anywhere."""
        if self._surfaces[0].names:
            return [bounds(tensors) for tensors in zip(*self._values, strict=True)]
        return [(-math.inf, math.inf)]

    @cached_property
    def _spans(self) -> list[float]:
        """What ε is a share of: the values' range.

        Few values make the range of embeddings; theirs is four standard deviations, as that of a
        picture of average contrast is.
        """
        if self._surfaces[0].names:
            return [high - low for low, high in self._bounds]
        tokens = torch.cat([values[0].flatten(0, -2) for values in self._values])
        return [4 * float(tokens.std())]

    @property
    def _epsilons(self) -> list[float]:
        return [EPSILON * span for span in self._spans]

    def _under_attack(
        self, attack: Callable[[Callable[[Values], Tensor], Values], Values]
    ) -> float | None:
        outputs = []
        for i, (surface, values) in enumerate(zip(self._surfaces, self._values, strict=True)):
            moved = attack(lambda at: self.judge.loss(i, self._run_smooth(surface, at)), values)  # noqa: B023
            with torch.no_grad():
                outputs.append(surface.run(self.module, moved).float())
        return self.judge.score(outputs)

    def _mean(self, figure: Callable[[Surface, Values], Tensor]) -> float | None:
        each = [figure(*pair) for pair in zip(self._surfaces, self._values, strict=True)]
        mean = float(torch.cat(each).mean())
        return mean if math.isfinite(mean) else None

    def _call(self, inputs: Any) -> Tensor:
        return call(self.task, self.module, inputs)

    def _generator(self, what: str) -> Generator:
        return seeded_generator(self._seed, what)


def seeded_generator(seed: int, what: str) -> Generator:
    """Return a generator of its own for each of the things that are random."""
    return Generator().manual_seed(zlib.crc32(f"{seed} {what}".encode()))
