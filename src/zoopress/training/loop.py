"""The training loop that recovery, quantization-aware training and distillation share.

    train ── finished before? ─▶ its weights
      └─ workplace, updates, terms' hooks ─▶ Walk.run: step, step, … evaluation … ─▶ best weights

A step, and all that is random in it, follows from the state before it and its number. So a
checkpoint is that state, and a run that goes on from it takes the steps that it would have taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.caches import caches_forgotten
from zoopress.models.model import Model
from zoopress.models.packing import differentiable, packed_weights
from zoopress.tasks import Task
from zoopress.training.checkpoint import Checkpoint, Saved, training_identity
from zoopress.training.config import TrainingConfig
from zoopress.training.constraints import (
    Constraint,
    PrunedWeights,
    TunedBuffers,
    tunable_parameters,
)
from zoopress.training.lora import low_rank_updates, updated_layers
from zoopress.training.objective import Objective
from zoopress.training.optimization import learning_rate_factors, make_optimizer, parameter_names
from zoopress.training.result import Evaluation, TrainingResult
from zoopress.training.sampling import Sampler, derived_seed, own_randomness
from zoopress.training.term import Term
from zoopress.training.walk import Walk, assign, changing_buffers
from zoopress.training.workplace import as_trained, deterministic, workplace

if TYPE_CHECKING:
    from zoopress.progress import Progress


def train(
    model: Model,
    task: Task,
    config: TrainingConfig,
    *,
    terms: Sequence[Term],
    task_weight: float,
    seed: int,
    device: torch.device,
    progress: Progress,
    checkpoint: Path,
    constrain: Callable[[int], Constraint] | None = None,
) -> TrainingResult:
    """See `Context.train`.

    If it raises, the model has its structure, its pruned weights are zero, and the others are what
    the last step made of them; the stage fails, and nothing of it is stored.
    """
    start, module = time.perf_counter(), model.module
    objective = Objective(task, task_weight, terms, config, device)
    objective.check()
    identity = training_identity(model, task, config, terms, task_weight, seed, device)
    file = Checkpoint(checkpoint, identity)
    saved = file.load()
    sampler = Sampler(len(task.samples("training")), config, seed)
    with ExitStack() as stack:
        tunable = stack.enter_context(tunable_parameters(module, config.packed == "tune"))
        names = parameter_names(module)
        factors, paths = _chosen(module, config, names, tunable)
        trained = [names[p][0] for p in factors] + [f"{path}.weight" for path in paths]
        if saved is not None and "result" in saved.plain:
            return _finished(model, saved, time.perf_counter() - start)
        stack.enter_context(own_randomness(derived_seed(seed, "start"), device))
        stack.enter_context(deterministic(device))
        stack.enter_context(as_trained(module))
        stack.enter_context(caches_forgotten(module))
        stack.enter_context(workplace(module, device, factors, config.channels_last))
        stack.enter_context(differentiable(module))
        if config.lora:
            stack.enter_context(low_rank_updates(module, config.lora, paths, model.masks))
        for parameter in names:
            parameter.requires_grad_(parameter in factors)
        for term in terms:
            stack.enter_context(term.watching(module))
            term.to(device)
        updates = [p for p in module.parameters() if p.requires_grad and p not in factors]
        learned = [p for term in terms for p in term.parameters() if p.requires_grad]
        pruned = PrunedWeights({parameter: names[parameter] for parameter in factors}, model.masks)
        tuned = TunedBuffers({p: dtype for p, dtype in tunable.items() if p in factors})
        rates = {tuned.factors.get(p, p): factor for p, factor in factors.items()}
        walk = Walk(
            module,
            objective,
            make_optimizer(config, rates, [*updates, *learned]),
            sampler,
            [pruned, tuned, *([constrain(sampler.steps)] if constrain else [])],
            seed,
            file,
        )
        if saved is not None:
            walk.restore(saved)
        walk.run(progress)
    result = TrainingResult(
        trained=tuple(trained),
        steps=walk.step,
        best_step=walk.kept_step,
        stopped_early=walk.stopped,
        losses=tuple(walk.losses),
        evaluations=tuple(walk.evaluations),
        seconds=time.perf_counter() - start,
    )
    file.save({"result": asdict(result)}, _outcome(module, trained))
    model.values_changed()
    return result


def _chosen(
    module: nn.Module,
    config: TrainingConfig,
    names: Mapping[nn.Parameter, list[str]],
    tunable: Collection[nn.Parameter],
) -> tuple[dict[nn.Parameter, float], list[str]]:
    """Return the factors of the learning rates of what is trained, and the layers to update.

    Raises:
        StageError: if that is nothing, or `packed: tune` finds nothing to tune.
    """
    if config.packed == "tune" and not tunable:
        count = len(packed_weights(module))
        raise StageError(
            "'packed: tune': "
            + (
                f"none of the {count} packed weights holds anything that training may change."
                if count
                else "the model has no packed weights. Quantize first, or leave 'packed' out."
            )
        )
    chosen = learning_rate_factors(names, config.learning_rates)
    others = 0.0 if config.lora else 1.0
    factors = {
        p: factor for p in names if (factor := chosen.get(p, 1.0 if p in tunable else others)) > 0
    }
    paths = updated_layers(module, config.lora.include, chosen) if config.lora else []
    if not factors and not paths:
        raise StageError(
            "There is nothing to train: "
            + (
                f"'learning_rates' {config.learning_rates} freezes every float parameter."
                if names
                else "the model has no float parameter left. Train before the stage that packs "
                "the last ones, or set 'packed: tune' to train their scales, steps or codebooks."
            )
        )
    return factors, paths


def _outcome(module: nn.Module, trained: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors that training may have changed."""
    tensors = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    return {**{name: tensors[name] for name in trained}, **changing_buffers(module)}


def _finished(model: Model, saved: Saved, seconds: float) -> TrainingResult:
    """Put what a training came to into a model."""
    result = saved.plain["result"]
    assign(_outcome(model.module, result["trained"]), saved.tensors)
    model.values_changed()
    return TrainingResult(
        trained=tuple(result["trained"]),
        steps=result["steps"],
        best_step=result["best_step"],
        stopped_early=result["stopped_early"],
        losses=tuple((step, loss) for step, loss in result["losses"]),
        evaluations=tuple(Evaluation(**evaluation) for evaluation in result["evaluations"]),
        seconds=seconds,
    )
