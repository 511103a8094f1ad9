"""The conformance test of losses.

from zoopress.testing import check_loss

def test_it_conforms():
    check_loss(MyLoss(MyOptions(margin=0.5)))
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.plugins import Plugins, load_plugins
from zoopress.tasks import Batch, Task
from zoopress.techniques import Context
from zoopress.testing import models as testing_models
from zoopress.testing.conformance import require
from zoopress.testing.declared import check_declared, named
from zoopress.testing.tiny import (
    TINY_MODELS,
    artifact_bytes,
    context_for,
    run_chain,
    seeded,
    tiny_card,
)
from zoopress.training.config import TrainingConfig
from zoopress.training.loss import Loss, LossChoice
from zoopress.training.loss_term import make_term


def check_loss(loss: Loss[Any], plugins: Plugins | None = None) -> None:
    """Check that a loss keeps every rule.

    Args:
        loss: with options under which it should work on at least one of the tiny models, of which
            the CNN has labels.
        plugins: what is registered, the loss included; everything installed by default.

    Raises:
        ConformanceError: naming the first rule it breaks.
    """
    plugins = plugins or load_plugins()
    with named(loss), tempfile.TemporaryDirectory() as folder:
        check_declared(loss, "losses", Loss, plugins)
        refused: dict[str, str] = {}
        for name in TINY_MODELS:
            try:
                _check_on_model(loss, name, Path(folder) / name, plugins)
            except StageError as error:
                refused[name] = str(error)
        require(len(refused) < len(TINY_MODELS), f"it works on none of the tiny models: {refused}")
        if "cnn" not in refused:
            _check_chain(loss, Path(folder) / "chain", plugins)


def _check_on_model(loss: Loss[Any], name: str, folder: Path, plugins: Plugins) -> None:
    card = tiny_card(name, folder, labelled=name == "cnn")
    assert card.data is not None
    if card.data.random is not None:
        data = card.data.model_copy(update={"training_samples": 32, "validation_samples": 16})
        card = card.model_copy(update={"data": data})
    context = context_for(card, folder / "checkpoint", plugins)
    build = getattr(testing_models, name)
    teacher = seeded(build) if loss.taught else None
    _check_values(loss, context, _perturbed(build), teacher)
    trained = []
    for run in ("first", "second"):
        model = Model(_perturbed(build), plugins.layers)
        context = context_for(card, folder / run, plugins)
        config = TrainingConfig(steps=3, evaluations=1, learning_rate=1e-3, losses=(_chosen(loss),))
        context.train(model, config, task_weight=float(name == "cnn"))
        trained.append({key: tensor.clone() for key, tensor in model.tensors().items()})
    require(
        all(torch.equal(tensor, trained[1][key]) for key, tensor in trained[0].items()),
        f"two trainings of the {name} with one seed give different weights. Draw random numbers "
        "from torch's global generator alone, which is seeded for every step",
    )


def _check_values(
    loss: Loss[Any], context: Context, student: nn.Module, teacher: nn.Module | None
) -> None:
    """Check one batch: a finite scalar, with gradients for the student and none for the teacher."""
    task = context.task
    assert task is not None
    taught = {} if teacher is None else copy.deepcopy(teacher.state_dict())
    term = make_term(
        *(Model(student), task, [(loss, 1.0)], context.batches()[0], context.call, 0),
        *(teacher, "the original", True),
    )
    samples = task.samples("training")
    batch = samples.batch(range(min(8, len(samples))))
    with term.watching(student):
        with torch.no_grad():  # away from where training began, where some are at their least
            for parameter in student.parameters():
                parameter.mul_(1.01)
        values = [_value(term, task, student, batch) for _ in range(2)]
        require(
            bool(values[0].isfinite()),
            f"its value on an ordinary batch is {values[0].item()}",
        )
        require(
            values[0].item() == values[1].item(),
            "two calls on one batch give different values",
        )
        require(
            values[0].requires_grad,
            "its value has no gradients. Compute it from what is seen, without detach() or item()",
        )
        values[0].backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    require(
        any(bool(gradient.any()) for gradient in gradients),
        "its gradient is zero for every parameter of the student on an ordinary batch, so nothing "
        "is learned there; check it with options under which it is not",
    )
    require(
        all(bool(gradient.isfinite().all()) for gradient in gradients),
        "its gradients hold NaN or infinity on an ordinary batch",
    )
    if teacher is not None:
        require(
            all(torch.equal(t, taught[n]) for n, t in teacher.state_dict().items())
            and all(p.grad is None for p in teacher.parameters()),
            "it changes the teacher, or sends gradients into it",
        )


def _value(term: nn.Module, task: Task, student: nn.Module, batch: Batch) -> Tensor:
    value: Tensor = term(batch, task.forward(student, batch.inputs).float())
    return value


def _check_chain(loss: Loss[Any], folder: Path, plugins: Plugins) -> None:
    """Check that a recipe can name it: a run of fine-tuning with it, twice, to the same bytes."""
    kind = plugins.technique("fine_tuning")
    chosen = _chosen(loss).model_dump(mode="json")
    options = {"steps": 3, "evaluations": 1, "losses": [chosen]}
    if loss.taught:
        options["losses"] = [{**chosen, "teacher": "input"}]
    technique = kind(kind.config_type.model_validate(options))
    card = tiny_card("cnn", folder, labelled=True)
    runs = [run_chain([technique], card, folder / run, plugins) for run in ("one", "two")]
    require(
        artifact_bytes(runs[0].artifact) == artifact_bytes(runs[1].artifact),
        "two runs with one seed give different files",
    )


def _chosen(loss: Loss[Any]) -> LossChoice:
    return LossChoice.model_validate({"loss": loss.name, **loss.config.model_dump(mode="json")})


def _perturbed(build: Any) -> nn.Module:
    """Return a module close to the teacher, not at the place where every loss is at its least."""
    module = seeded(build)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module
