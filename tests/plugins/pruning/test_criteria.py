"""Criteria score as their papers say, and every technique that prunes takes them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoopress.errors import RecipeError, StageError
from zoopress.models.model import Model
from zoopress.plugins import Plugins
from zoopress.recipes import Recipe, parse_recipe
from zoopress.techniques import Criterion, Evidence, Outcome, UnitCriterion, WeightCriterion
from zoopress.techniques.scoring import unit_scores, weight_scores
from zoopress.testing import (
    check_criterion,
    context_for,
    models as testing_models,
    seeded,
    tiny_card,
)
from zoopress.testing.models import cnn, transformer
from zoopress.yaml_source import parse_yaml
from zoopress_plugins.pruning.criteria.fisher import fisher_scores
from zoopress_plugins.pruning.criteria.geometric_median import summed_distances
from zoopress_plugins.pruning.gradual_pruning import GradualPruningConfig, RisingSparsity
from zoopress_plugins.pruning.magnitude_pruning import (
    MagnitudePruning,
    MagnitudePruningConfig,
    smallest_pruned,
)
from zoopress_plugins.pruning.neuron_pruning import NeuronPruning, NeuronPruningConfig

NAMES = ["batch_norm_scale", "fisher", "geometric_median", "l2_norm", "magnitude", "random"]


def evidence(
    values: Tensor,
    role: Any = "producer",
    module: nn.Module | None = None,
    attribute: str = "weight",
) -> Evidence:
    owner = module or nn.Linear(1, 1)
    axes = 1 if values.shape[1] == 1 and module is not None else 2
    return Evidence(f"layer.{attribute}", owner, attribute, role, axes, values)


def made(plugins: Plugins, name: str, **options: Any) -> Criterion[Any]:
    criterion: Criterion[Any] = UnitCriterion.model_validate({"name": name, **options}).make(
        plugins
    )
    return criterion


@pytest.mark.parametrize("name", NAMES)
def test_it_conforms(name: str, plugins: Plugins) -> None:
    check_criterion(made(plugins, name), plugins)


def test_every_criterion_is_checked(plugins: Plugins) -> None:
    assert sorted(plugins.references["criteria"]) == NAMES


def test_norms_average_over_members_each_divided_by_its_mean(plugins: Plugins) -> None:
    first = evidence(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    second = evidence(torch.tensor([[100.0, 0.0], [-300.0, 0.0]]), "consumer")
    bias = evidence(torch.tensor([[1e9], [0.0]]), "producer", nn.Linear(1, 2), "bias")
    expected = torch.tensor([(5 / 3 + 0.5) / 2, (1 / 3 + 1.5) / 2])
    torch.testing.assert_close(made(plugins, "l2_norm").units([first, second, bias]), expected)
    l1 = torch.tensor([(7 / 4 + 0.5) / 2, (1 / 4 + 1.5) / 2])
    torch.testing.assert_close(made(plugins, "magnitude").units([first, second, bias]), l1)


def test_fisher_scores_are_half_the_curvature_times_the_square() -> None:
    scores = fisher_scores(torch.tensor([2.0, -1.0, 3.0]), torch.tensor([0.5, 4.0, 0.0]))
    assert scores.tolist() == [1.0, 2.0, 0.0]


def test_the_filter_between_all_others_is_the_first_to_go(plugins: Plugins) -> None:
    filters = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0], [4.0, 3.0], [2.0, 1.5]])
    scores = summed_distances(filters)
    torch.testing.assert_close(scores, torch.tensor([14.5, 14.5, 14.5, 14.5, 10.0]))
    # Small weights do not make it go, as they would by a norm: the middle does.
    criterion = made(plugins, "geometric_median")
    read = evidence(torch.rand(5, 3), "consumer")
    assert int(criterion.units([evidence(filters), read]).argmin()) == 4
    assert int(made(plugins, "l2_norm").units([evidence(filters)]).argmin()) == 0


def test_channels_go_by_the_scale_of_their_batch_normalization(plugins: Plugins) -> None:
    criterion, norm = made(plugins, "batch_norm_scale"), nn.BatchNorm2d(3)
    given = [
        evidence(torch.rand(3, 9)),
        evidence(torch.tensor([[0.5], [-2.0], [0.1]]), "norm", norm),
        evidence(torch.rand(3, 1), "norm", norm, "running_var"),
    ]
    torch.testing.assert_close(criterion.units(given), torch.tensor([0.5, 2.0, 0.1]))


def test_random_scores_follow_from_seed_name_and_draw(plugins: Plugins) -> None:
    (weight, *_) = Model(seeded(cnn)).weights(("conv",))
    one, other = made(plugins, "random"), made(plugins, "random", draw=1)
    scores = weight_scores(one, weight, seed=3)
    assert torch.equal(scores, weight_scores(one, weight, seed=3))
    assert not torch.equal(scores, weight_scores(one, weight, seed=4))
    assert not torch.equal(scores, weight_scores(other, weight, seed=3))


# ----- in techniques ---------------------------------------------------------------------------


def recipe(stage: str, plugins: Plugins) -> Recipe:
    text = f"stages:\n  - {{{stage}}}\n"
    return parse_recipe(parse_yaml(text, Path("r.yaml"), RecipeError), plugins, "r")


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("technique: magnitude_pruning, sparsity: 0.5, criterion: magnitde", "mean 'magnitude'"),
        (
            "technique: magnitude_pruning, sparsity: 0.5, criterion: {name: random, drow: 1}",
            "r.yaml:2: criterion.drow: 'random' has no option 'drow'. Did you mean 'draw'",
        ),
        (
            "technique: neuron_pruning, sparsity: 0.5, criterion: {name: random, draw: -1}",
            r"criterion.draw: input should be greater than or equal to 0, got -1",
        ),
        (
            "technique: magnitude_pruning, sparsity: 0.5, criterion: l2_norm",
            "scores whole neurons, not single weights",
        ),
        ("technique: neuron_pruning, sparsity: 0.5, criterion: 3", "expected a name, or {name"),
    ],
)
def test_what_cannot_be_chosen_is_told_with_file_line_and_key(
    stage: str, said: str, plugins: Plugins
) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(stage, plugins)
    assert said in str(error.value)


def test_a_recipe_tells_options_that_were_left_out(plugins: Plugins) -> None:
    stage = "technique: magnitude_pruning, sparsity: 0.5, criterion: {name: random}"
    spelled = recipe(stage, plugins).stages[0].as_dict()
    assert spelled["criterion"] == {"name": "random", "draw": 0}
    plain = recipe("technique: magnitude_pruning, sparsity: 0.5", plugins).stages[0].as_dict()
    assert plain["criterion"] == "magnitude"


def test_old_keys_choose_what_they_chose(plugins: Plugins) -> None:
    for key, name in (("norm: l1", "magnitude"), ("norm: l2", "l2_norm")):
        stage = recipe(f"technique: neuron_pruning, sparsity: 0.5, {key}", plugins).stages[0]
        assert stage.as_dict()["criterion"] == name
    gradual = "technique: gradual_pruning, sparsity: 0.5, training: {steps: 1}, score: magnitude"
    assert recipe(gradual, plugins).stages[0].as_dict()["criterion"] == "magnitude"


def pruned(folder: Path, plugins: Plugins, model: Model, **given: Any) -> Outcome:
    context = context_for(tiny_card("cnn", folder), folder / "checkpoint", plugins)
    return MagnitudePruning(MagnitudePruningConfig(**given)).apply(model, context)


def test_magnitude_prunes_what_it_always_did(tmp_path: Path, plugins: Plugins) -> None:
    model = Model(seeded(transformer))
    before = {w.name: w.parameter.detach().clone() for w in model.weights(("linear", "conv"))}
    pruned(tmp_path, plugins, model, sparsity=0.7, kinds=("linear", "conv"))
    for name, values in before.items():
        assert torch.equal(model.masks[name], smallest_pruned([values.abs()], 0.7)[0])


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_was_pruned_goes_again_first_whatever_the_criterion(
    tmp_path: Path, plugins: Plugins, scope: str
) -> None:
    model = Model(seeded(cnn))
    given: dict[str, Any] = {"scope": scope, "kinds": ("conv",)}
    pruned(tmp_path, plugins, model, sparsity=0.5, criterion={"name": "random", "draw": 1}, **given)
    before = copy.deepcopy(model.masks)
    outcome = pruned(tmp_path, plugins, model, sparsity=0.6, criterion="random", **given)
    total = sum(mask.numel() for mask in model.masks.values())
    gone = sum(int((~mask).sum()) for mask in model.masks.values())
    assert gone == pytest.approx(0.6 * total, abs=len(model.masks))
    assert outcome.claims[0].reached == pytest.approx(gone / total)
    assert all(not bool((mask & ~before[name]).any()) for name, mask in model.masks.items())


class Norms(Criterion[Any]):
    """Wanda: magnitude times the norm of what a weight multiplies."""

    name = "norms"
    statistics = ("input_norms",)

    def weights(self, evidence: Evidence) -> Tensor:
        return evidence.values.abs() * evidence.statistics["input_norms"]


def test_a_criterion_gets_what_it_declares_shaped_like_the_weights() -> None:
    model = Model(seeded(cnn))
    norms = {w.name: torch.rand(w.matrix().shape[1]) for w in model.weights()}
    criterion = Norms(None)
    for weight in model.weights():
        scores = weight_scores(criterion, weight, statistic=lambda _, w: norms[w.name])
        expected = weight.from_matrix(weight.matrix().abs() * norms[weight.name])
        assert torch.equal(scores, expected)


def test_units_get_statistics_of_every_matrix_they_are_in(tmp_path: Path) -> None:
    from zoopress.dependencies import find_dependencies

    model = Model(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    groups = find_dependencies(model.module, lambda: model.module(torch.rand(2, 4))).groups
    norms = {"0.weight": torch.rand(4), "2.weight": torch.rand(3)}
    scores = unit_scores(Norms(None), model, groups, statistic=lambda _, w: norms[w.name])
    first, second = (w.matrix() for w in model.weights())
    made = (first.abs() * norms["0.weight"]).sum(1)
    read = (second.abs() * norms["2.weight"]).sum(0)
    torch.testing.assert_close(scores["0"], (made / made.mean() + read / read.mean()) / 2)


def test_what_a_criterion_declares_is_measured_on_calibration_data(
    tmp_path: Path, plugins: Plugins
) -> None:
    context = context_for(tiny_card("cnn", tmp_path), tmp_path / "checkpoint", plugins)
    model = Model(seeded(cnn))
    weights = list(model.weights(("linear", "conv")))
    squares = context.statistics.of(model, "gradients", weights)
    expected = {
        w.name: weight_kept(
            fisher_scores(w.parameter.detach(), w.from_matrix(squares[w].spread("mean_square")))
        )
        for w in weights
    }
    config = MagnitudePruningConfig(
        sparsity=0.5, kinds=("linear", "conv"), criterion=WeightCriterion(name="fisher")
    )
    MagnitudePruning(config).apply(model, context)
    for name, keep in expected.items():
        assert torch.equal(model.masks[name], keep)


def weight_kept(scores: Tensor) -> Tensor:
    return smallest_pruned([scores], 0.5)[0]


@pytest.mark.parametrize("name", ["cnn", "lstm"])
def test_neurons_are_scored_by_what_is_measured(
    name: str, tmp_path: Path, plugins: Plugins
) -> None:
    context = context_for(tiny_card(name, tmp_path), tmp_path / "checkpoint", plugins)
    model = Model(seeded(getattr(testing_models, name)))
    before = model.parameter_count()
    config = NeuronPruningConfig(sparsity=0.25, criterion=UnitCriterion(name="fisher"))
    NeuronPruning(config).apply(model, context)
    assert model.parameter_count() < before


def test_what_a_training_does_not_measure_is_refused(tmp_path: Path) -> None:
    (weight, *_) = Model(seeded(cnn)).weights()
    config = GradualPruningConfig.model_validate({"sparsity": 0.5, "training": {"steps": 1}})
    with pytest.raises(StageError, match="'norms' has to know input_norms, which this stage does"):
        RisingSparsity([weight], 1, config, Norms(None))


class Broken(Criterion[Any]):
    """Scores with what cannot be ranked."""

    name = "broken"

    def weights(self, evidence: Evidence) -> Tensor:
        return evidence.values / 0 if evidence.values.shape[1] > 30 else evidence.values[0]


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    large, small = Model(nn.Sequential(nn.Linear(40, 2), nn.Linear(2, 3))).weights()
    with pytest.raises(StageError, match=r"80 of 80 scores of 0\.weight that are NaN or infinite"):
        weight_scores(Broken(None), large)
    with pytest.raises(StageError, match=r"shape \(2,\) for 1\.weight, which needs \(3, 2\)"):
        weight_scores(Broken(None), small)


def test_layers_that_cannot_be_scored_are_named_together(tmp_path: Path, plugins: Plugins) -> None:
    card = tiny_card("cnn", tmp_path)
    context = context_for(card, tmp_path / "checkpoint", plugins)
    config = NeuronPruningConfig(sparsity=0.25, criterion=UnitCriterion(name="batch_norm_scale"))
    with pytest.raises(StageError, match=r"cannot score 1 of the 4 .*exclude: \['9'\]"):
        NeuronPruning(config).apply(Model(seeded(cnn)), context)
    model = Model(seeded(cnn))
    scale = model.tensors()["3.norm1.weight"].abs()
    keep = scale.argsort(stable=True)[6:].sort().values
    kept = model.tensors()["3.norm1.weight"][keep]
    NeuronPruning(config.model_copy(update={"include": ("3.conv1",)})).apply(model, context)
    assert torch.equal(model.tensors()["3.norm1.weight"], kept)


def test_a_choice_made_by_hand_is_checked_when_it_is_made(plugins: Plugins) -> None:
    with pytest.raises(StageError, match=r"There is no criterion 'magnitde'\. Did you mean"):
        WeightCriterion(name="magnitde").make(plugins)
    with pytest.raises(StageError, match="name 'random': draw: Input should be greater"):
        WeightCriterion.model_validate({"name": "random", "draw": -1}).make(plugins)
