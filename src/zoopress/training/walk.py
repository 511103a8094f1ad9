"""The walk of training: steps, looks at the validation split, and what is kept of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoopress.errors import StageError, ZoopressError
from zoopress.models.packing import packed_weights
from zoopress.tasks import Batch
from zoopress.tasks.failures import differentiating, place_in_model
from zoopress.training.batch_norm import batch_norms, recalibrate, statistics_kept
from zoopress.training.checkpoint import Checkpoint, Saved
from zoopress.training.constraints import Constraint, PrunedWeights
from zoopress.training.objective import Objective
from zoopress.training.optimization import schedule_factor, set_learning_rate
from zoopress.training.result import Evaluation
from zoopress.training.sampling import Sampler, derived_seed, seed_everything
from zoopress.training.sharpness import climbed

if TYPE_CHECKING:
    from zoopress.progress import Progress

RECALIBRATION_SAMPLES = 10_000
"""From so many, running statistics are known to about a hundredth of their spread."""

_LOSSES = 100
_SECONDS_BETWEEN_NEWS = 0.5
_BATCH_NORM_OF_ONE = "more than 1 value per channel"
_LET_GO = "Let it keep only what does not depend on weights, or detach it."


class Walk:
    """Trains a module that is ready for it, from the start or from a checkpoint.

    Args:
        module: on its device; what is trained has `requires_grad` set.
        objective: what to lower.
        optimizer: of all that is trained, the terms' parameters as well.
        sampler: of the training split.
        constraints: on what steps may change.
        seed: of all that is random in a step.
        file: where to leave the state.

    Attributes:
        step: how many steps were taken.
        kept_step: after how many of them the weights were the module's that are kept.
        stopped: whether patience ended it.
        losses: see `TrainingResult`.
        evaluations: see `TrainingResult`.
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        sampler: Sampler,
        constraints: Sequence[Constraint],
        seed: int,
        file: Checkpoint,
    ) -> None:
        self._module, self._objective, self._config = module, objective, objective.config
        self._optimizer, self._sampler, self._constraints = optimizer, sampler, constraints
        self._seed, self._file = seed, file
        self._training = objective.task.samples("training")
        self._trained = [p for group in optimizer.param_groups for p in group["params"]]
        self._learned = {
            f"{i}/{name}": tensor
            for i, term in enumerate(objective.terms)
            for name, tensor in (*term.named_parameters(), *term.named_buffers())
        }
        self._held = {
            f"{i}/{name}": tensor
            for i, constraint in enumerate(constraints)
            for name, tensor in constraint.tensors().items()
        }
        self.step = 0
        self.kept_step = 0
        self.stopped = False
        self.losses: list[tuple[int, float]] = []
        self.evaluations: list[Evaluation] = []
        self._best: dict[str, Tensor] = {}
        self._recent: list[float] = []

    def run(self, progress: Progress) -> None:
        """Take all steps; in the end the module has the best weights, in evaluation mode."""
        steps, evaluations = self._sampler.steps, self._config.evaluations
        looks = {math.ceil(i * steps / evaluations) for i in range(1, evaluations + 1)}
        if evaluations and not self.evaluations and self._constrained():
            self._look()
        every, told = max(1, math.ceil(steps / _LOSSES)), 0.0
        self._objective.prepare(self._module)
        while self.step < steps and not self.stopped:
            loss = self._take_step()
            self.step += 1
            self._recent.append(loss)
            if self.step % every == 0 or self.step == steps:
                self.losses.append((self.step, math.fsum(self._recent) / len(self._recent)))
                self._recent = []
            if self.step in looks and self._constrained():
                self._look()
                self._objective.prepare(self._module)
            if self._file.due:
                self._file.save(*self._state())
            if time.monotonic() - told > _SECONDS_BETWEEN_NEWS or self.step == steps:
                told = time.monotonic()
                progress(f"step {self.step} of {steps}, loss {loss:.4f}", self.step / steps)
        self._module.eval()
        if not evaluations:
            self.kept_step = self.step
        elif self.kept_step != self.step:
            assign(changing_tensors(self._module), self._best)
        if self._config.batch_norm == "recalibrate" and batch_norms(self._module):
            progress("recalibrating batch normalization")
            recalibrate(self._module, self._pass_samples)
            if evaluations:
                self.evaluations.append(self._objective.evaluate(self._module, self.kept_step))

    def restore(self, saved: Saved) -> None:
        """Continue from what `_state` returned."""
        kinds = ("now", "best", "terms", "constraints", "optimizer")
        groups: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
        for name, tensor in saved.tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        assign(changing_tensors(self._module), groups["now"])
        assign(self._learned, groups["terms"])
        assign(self._held, groups["constraints"])
        self._best = groups["best"]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in groups["optimizer"].items():
            index, _, moment = name.partition("/")
            moments.setdefault(int(index), {})[moment] = tensor
        options = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": options})
        plain = saved.plain
        self.step, self.kept_step = plain["step"], plain["kept_step"]
        self.stopped = plain["stopped"]
        self.losses = [(step, loss) for step, loss in plain["losses"]]
        self.evaluations = [Evaluation(**evaluation) for evaluation in plain["evaluations"]]
        self._recent = plain["recent"]

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return all that the next steps follow from."""
        plain = {
            "step": self.step,
            "kept_step": self.kept_step,
            "stopped": self.stopped,
            "losses": self.losses,
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            "recent": self._recent,
        }
        moments = {
            f"{index}/{name}": tensor
            for index, state in self._optimizer.state_dict()["state"].items()
            for name, tensor in state.items()
            if isinstance(tensor, Tensor)
        }
        groups: dict[str, Mapping[str, Tensor]] = {
            "now": changing_tensors(self._module),
            "best": self._best,
            "terms": self._learned,
            "constraints": self._held,
            "optimizer": moments,
        }
        return plain, {
            f"{group}/{name}": tensor
            for group, tensors in groups.items()
            for name, tensor in tensors.items()
        }

    def _take_step(self) -> float:
        """Take one step and return the loss before it."""
        seed_everything(derived_seed(self._seed, "step", self.step))
        rate = schedule_factor(
            self._config.schedule, self._config.warm_up, self.step, self._sampler.steps
        )
        set_learning_rate(self._optimizer, rate)
        loss = self._differentiate()
        self._check_finite("loss", loss, rate)
        if self._config.sharpness:
            self._climb(self._config.sharpness)
        for constraint in self._constraints:
            constraint.before_step()
        limit = self._config.max_gradient_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self._trained, limit)
        self._check_finite("norm of the gradients", float(norm), rate)
        self._optimizer.step()
        for constraint in self._constraints:
            constraint.after_step()
        return loss

    def _climb(self, radius: float) -> None:
        """Take the gradients anew where the loss is highest nearby, with the same random numbers.

        Pruned weights are not moved: their gradients are none.
        """
        for constraint in self._constraints:
            if isinstance(constraint, PrunedWeights):
                constraint.before_step()
        with climbed(self._trained, radius), statistics_kept(self._module):
            seed_everything(derived_seed(self._seed, "step", self.step))
            self._differentiate()

    def _differentiate(self) -> float:
        """Take the gradients of a step, and return the loss."""
        augmentation = torch.Generator().manual_seed(derived_seed(self._seed, "data", self.step))
        self._optimizer.zero_grad(set_to_none=True)
        passes = self._sampler.passes(self.step)
        total, loss = sum(map(len, passes)), 0.0
        for rows in passes:
            batch = self._objective.on_device(self._training.batch(rows, augmentation))
            # By samples, so that several passes give what one large one would.
            part = self._loss(batch) * (len(rows) / total)
            with differentiating(_LET_GO):
                part.backward()
            loss += float(part.detach())
        for parameter in self._trained:
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                # Of an embedding with sparse=True; norms, decay and AdamW know dense ones alone.
                parameter.grad = parameter.grad.to_dense()
        return loss

    def _loss(self, batch: Batch) -> Tensor:
        try:
            loss = self._objective.loss(self._module, batch)
        except ValueError as error:
            if _BATCH_NORM_OF_ONE not in str(error):
                raise
            raise StageError(
                "Batch normalization cannot learn from a forward pass of a single value a channel. "
                "Raise 'batch_size', or set 'batch_norm: freeze'."
            ) from error
        except torch.OutOfMemoryError as error:
            raise StageError(
                f"A forward pass of {self._config.batch_size} samples does not fit into memory. "
                "Lower 'batch_size' and raise 'accumulate' by the same factor."
            ) from error
        except ZoopressError:
            raise
        except Exception as error:  # a model's code may raise anything
            place = place_in_model(error)
            if place is None:
                raise
            raise StageError(
                f"The model's own code fails in training mode: {type(error).__name__}: {error} "
                f"({place}). Repair it there; to see it, call `model.train()` and run the model."
            ) from error
        if not loss.requires_grad:
            raise StageError(
                "The loss does not depend on anything that is trained. Check 'learning_rates', and "
                "that the task's output is computed from the weights that it leaves trainable."
            )
        return loss

    def _check_finite(self, what: str, value: float, rate: float) -> None:
        if math.isfinite(value):
            return
        known = [*(loss for _, loss in self.losses), *self._recent]
        before = f"the last finite loss was {known[-1]:.6g}" if known else "none was finite before"
        raise StageError(
            f"In step {self.step + 1} of {self._sampler.steps} the {what} became {value}, at "
            f"learning rate {self._config.learning_rate * rate:.3g}; {before}. Lower "
            "'learning_rate', set or lower 'max_gradient_norm', raise 'warm_up', or compute in "
            "'precision: float32'."
        )

    def _constrained(self) -> bool:
        return all(constraint.reached() for constraint in self._constraints)

    def _look(self) -> None:
        """Evaluate, keep the weights if they are the best so far, and see whether to go on."""
        seed_everything(derived_seed(self._seed, "validation"))
        evaluation = self._objective.evaluate(self._module, self.step)
        before = [self._objective.score(one) for one in self.evaluations]
        self.evaluations.append(evaluation)
        best = max(range(len(before)), key=before.__getitem__, default=None)
        if best is None or self._objective.score(evaluation) > before[best]:
            self.kept_step = self.step
            now = changing_tensors(self._module)
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in now.items()}
        elif self._config.patience is not None:
            self.stopped = len(before) - best >= self._config.patience

    def _pass_samples(self) -> None:
        """Pass samples of the training split through the module, as they come, in float32."""
        passed = 0
        for step in range(self._sampler.steps_per_epoch):
            for rows in self._sampler.passes(step):
                batch = self._objective.on_device(self._training.batch(rows))
                self._objective.task.call(self._module, batch.inputs)
                passed += len(rows)
            if passed >= RECALIBRATION_SAMPLES:
                return


def changing_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a forward pass may change; those of packed weights never do."""
    packed = {id(b) for weight in packed_weights(module).values() for b in weight.buffers()}
    return {name: b for name, b in module.named_buffers() if id(b) not in packed}


def changing_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that are trained, and the buffers that may change."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return {**trained, **changing_buffers(module)}


def assign(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Set tensors to the values of the same names."""
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(values[name])
