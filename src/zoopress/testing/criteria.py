"""The conformance test of pruning criteria.

from zoopress.testing import check_criterion

def test_it_conforms():
    check_criterion(MyCriterion(MyOptions(strength=0.5)))
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoopress.dependencies import NeuronGroup, find_dependencies
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.weights import Weight
from zoopress.plugins import Plugins, load_plugins
from zoopress.techniques import Criterion
from zoopress.techniques.scoring import unit_scores, weight_scores
from zoopress.testing import models as testing_models
from zoopress.testing.conformance import ConformanceError, require
from zoopress.testing.declared import check_declared, named
from zoopress.testing.tiny import TINY_MODELS, context_for, seeded, tiny_card


def check_criterion(criterion: Criterion[Any], plugins: Plugins | None = None) -> None:
    """Check that a pruning criterion keeps every rule.

    What it declares in `statistics` is made up, positive random numbers for each weight, until
    models are pruned by it: then it is measured.

    Args:
        criterion: with options under which it should score at least one of the tiny models.
        plugins: what is registered, the criterion included; everything installed by default.

    Raises:
        ConformanceError: naming the first rule it breaks.
    """
    plugins = plugins or load_plugins()
    with named(criterion):
        check_declared(criterion, "criteria", Criterion, plugins)
        kind = type(criterion)
        of_weights = kind.weights is not Criterion.weights
        require(
            of_weights or kind.units is not Criterion.units,
            "it overrides neither weights(evidence) nor units(evidence)",
        )
        if of_weights:
            _check_weights(criterion)
        _check_units(criterion)
        _check_pruning(criterion, of_weights, plugins)


def _check_weights(criterion: Criterion[Any]) -> None:
    refused: dict[str, str] = {}
    count = 0
    for name in TINY_MODELS:
        for weight in Model(seeded(getattr(testing_models, name))).weights():
            count += 1
            try:
                _check_scores(criterion, weight)
            except StageError as error:
                refused[f"{name}'s {weight.name}"] = str(error)
    require(
        len(refused) < count,
        f"it scores the weights of none of the tiny models: {dict(list(refused.items())[:3])}",
    )


def _check_scores(criterion: Criterion[Any], weight: Weight) -> None:
    def scores() -> Tensor:
        return weight_scores(criterion, weight, statistic=_made_up)

    before = weight.parameter.detach().clone()
    first = scores()
    require(
        torch.equal(weight.parameter.detach(), before),
        "it changes the weights that it scores; compute with a copy",
    )
    require(
        torch.equal(first, scores()),
        "two calls give different scores. Draw random numbers from evidence.generator() alone",
    )
    require(first.is_floating_point(), f"scores are {first.dtype}, not floating point")
    with torch.no_grad():
        weight.parameter[0] = 0.0  # as a stage before may have left them
        try:
            scores()
        except StageError as error:
            raise ConformanceError(f"weights that were pruned break it: {error}") from error
        finally:
            weight.parameter.copy_(before)


def _check_units(criterion: Criterion[Any]) -> None:
    refused: dict[str, str] = {}
    count = 0
    for name in TINY_MODELS:
        model = Model(seeded(getattr(testing_models, name)))
        for group in _groups(model, name):
            count += 1
            try:
                first = unit_scores(criterion, model, [group], statistic=_made_up)
            except StageError as error:
                refused[f"{name}'s {group.name}"] = str(error)
                continue
            again = unit_scores(criterion, model, [group], statistic=_made_up)
            require(
                torch.equal(first[group.name], again[group.name]),
                "two calls give different scores. Draw random numbers from evidence.generator() "
                "alone",
            )
    require(
        len(refused) < count,
        f"it scores the neurons of none of the tiny models: {dict(list(refused.items())[:3])}",
    )


def _groups(model: Model, name: str) -> tuple[NeuronGroup, ...]:
    inputs = testing_models.example_inputs(name)
    return find_dependencies(model.module, lambda: model.module(inputs)).groups


def _check_pruning(criterion: Criterion[Any], of_weights: bool, plugins: Plugins) -> None:
    """Check that the built-in techniques prune by it, and leave the sparsity that is asked for."""
    chosen = {"name": criterion.name, **criterion.config.model_dump(mode="json")}
    asked: dict[str, dict[str, Any]] = {"neuron_pruning": {"sparsity": 0.25, "criterion": chosen}}
    if of_weights:
        asked["magnitude_pruning"] = {"sparsity": 0.5, "criterion": chosen}
    for name, options in asked.items():
        technique = plugins.technique(name)
        if name == "neuron_pruning":
            options = {**options, "exclude": _unscored(criterion)}
        with tempfile.TemporaryDirectory() as folder:
            card = tiny_card("cnn", Path(folder))
            context = context_for(card, Path(folder) / "checkpoint", plugins)
            model = Model(seeded(testing_models.cnn))
            try:
                outcome = technique(technique.config_type.model_validate(options)).apply(
                    model, context
                )
            except StageError as error:
                if name == "neuron_pruning" and "No prunable layer" in str(error):
                    continue
                raise ConformanceError(f"{name} cannot prune by it: {error}") from error
        (claim,) = outcome.claims
        require(
            abs(claim.reached - claim.requested) < 0.05,
            f"{name} by it leaves a sparsity of {claim.reached:.3f}, not {claim.requested}",
        )


def _unscored(criterion: Criterion[Any]) -> tuple[str, ...]:
    model = Model(seeded(testing_models.cnn))
    names = []
    for group in _groups(model, "cnn"):
        try:
            unit_scores(criterion, model, [group], statistic=_made_up)
        except StageError:
            names.append(group.name)
    return tuple(names)


def _made_up(name: str, weight: Weight) -> Tensor:
    generator = torch.Generator().manual_seed(len(name) + len(weight.name))
    return torch.rand(weight.matrix().shape, generator=generator) + 0.1
