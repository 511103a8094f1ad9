"""Gradients, curvature and Taylor terms against autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statistics_models import InputsTask, normal, seeded_model, service
from zoopress.dependencies import find_dependencies
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.plugins import load_plugins
from zoopress.statistics import Statistics
from zoopress.statistics.groups import taylor_of_groups
from zoopress.statistics.named.factored_curvature import FactoredCurvature
from zoopress.statistics.named.gradients import DiagonalCurvature, Gradients
from zoopress.statistics.probes import probe
from zoopress.testing import context_for, run_chain, tiny_card
from zoopress_plugins.quantization.weight_quantization import (
    WeightQuantization,
    WeightQuantizationConfig,
)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.ReLU(inplace=True),
        nn.Linear(6, 3),
    )


IMAGES = [normal(3, 2, 4, 4), normal(2, 2, 4, 4, seed=5)]
LABELS = [torch.tensor([0, 2, 1]), torch.tensor([2, 2])]


def by_autograd(model: Model, name: str, score: Any) -> list[Tensor]:
    """Return the gradient of each sample's scalar, one after another."""
    parameter = dict(model.module.named_parameters())[name]
    gradients = []
    for number, (x, y) in enumerate(zip(torch.cat(IMAGES), torch.cat(LABELS), strict=True)):
        scalar = score(model.module(x[None]), y[None], number)
        gradients.append(torch.autograd.grad(scalar, parameter)[0])
    return gradients


@pytest.mark.parametrize("name", ["0.weight", "4.weight", "6.weight", "6.bias", "1.weight"])
def test_gradients_are_those_of_the_tasks_loss(name: str) -> None:
    model = seeded_model(network())
    weights = [*(weight.name for weight in model.weights()), "6.bias", "1.weight"]
    model.module.requires_grad_(False)
    found, first = service(IMAGES, LABELS).measure(model, ["gradients", "first_taylor"], weights)
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    model.module.requires_grad_(True)
    expected = torch.stack(
        by_autograd(model, name, lambda output, y, _: F.cross_entropy(output, y))
    ).flatten(2 if dict(model.module.named_parameters())[name].ndim > 1 else 1)
    expected = expected.reshape(5, len(expected[0]), -1)
    assert found.seen(name) == 5
    torch.testing.assert_close(found[name]["mean"], expected.mean(0))
    torch.testing.assert_close(found[name]["mean_square"], expected.square().mean(0))
    matrix = dict(model.module.named_parameters())[name].detach().reshape(len(expected[0]), -1)
    torch.testing.assert_close(first[name].value, matrix * expected.mean(0))


def test_curvature_is_that_of_the_same_probes() -> None:
    model = seeded_model(network())
    task = InputsTask(IMAGES)
    asked = service(IMAGES, seed=7)
    found, second = asked.measure(model, [DiagonalCurvature(probes=2), "second_taylor"])
    squares = torch.zeros(6, 16)
    once = torch.zeros(6, 16)
    for done, x in enumerate(torch.cat(IMAGES), start=1):
        generator = torch.Generator().manual_seed(7 * 1_000_003 + done)
        for turn in range(2):
            scalar = probe(task, model.module(x[None]), generator)
            (gradient,) = torch.autograd.grad(scalar, model.module[4].weight)  # type: ignore[index]
            squares += gradient.square() / 10
            once += gradient.square() / 5 if not turn else 0
    torch.testing.assert_close(found["4"].value, squares)
    weight = model.module[4].weight.detach()  # type: ignore[index]
    torch.testing.assert_close(second["4"].value, weight.square() * once / 2)


def test_own_gradients_need_no_labels() -> None:
    model = seeded_model(network())
    labelled = service(IMAGES, LABELS).of(model, Gradients("own"))["4"]["mean"]
    torch.testing.assert_close(service(IMAGES).of(model, "gradients")["4"]["mean"], labelled)
    with pytest.raises(StageError, match=r"labels='true'.*labels='own'"):
        service(IMAGES).of(model, Gradients("true"))


def test_factors_of_the_curvature() -> None:
    """The product of a layer's sides is its curvature, exactly where a sample has one row."""
    model = seeded_model(network())
    asked = service(IMAGES, seed=3)
    found = asked.of(model, FactoredCurvature())
    task, grams = InputsTask(IMAGES), torch.zeros(6, 6)
    channels = torch.zeros(2, 2, 2)
    inputs = torch.zeros(16, 16)
    for done, x in enumerate(torch.cat(IMAGES), start=1):
        generator = torch.Generator().manual_seed(3 * 1_000_003 + done)
        image = model.module[0](x[None])  # type: ignore[index]
        features = model.module[3](model.module[1](image).relu())  # type: ignore[index]
        hidden = model.module[4](features)  # type: ignore[index]
        scalar = probe(task, model.module[6](hidden.relu()), generator)  # type: ignore[index]
        g, first = torch.autograd.grad(scalar, [hidden, image])
        grams += g.T @ g / 5
        inputs += (features.T @ features).detach() / 5
        rows = first[0].reshape(2, 2, -1)  # [groups, channels of a group, positions]
        channels += rows @ rows.mT / 5
    sides = found["4"].results()
    torch.testing.assert_close(sides["inputs"], inputs)
    torch.testing.assert_close(sides["outputs"], grams)
    sides = found["0"].results()
    assert sides["inputs"].shape == (2, 9, 9)
    torch.testing.assert_close(sides["outputs"], channels)
    patches = F.unfold(torch.cat(IMAGES)[:, 1:], 3).movedim(1, 2).reshape(-1, 9)
    torch.testing.assert_close(sides["inputs"][1], patches.T @ patches / len(patches))


def test_wide_sides_are_diagonals() -> None:
    model = seeded_model(network())
    whole, narrow = service(IMAGES).measure(
        model, [FactoredCurvature(), FactoredCurvature(most_columns=6)]
    )
    sides = narrow["4"].results()
    torch.testing.assert_close(sides["inputs"], whole["4"]["inputs"].diagonal())
    torch.testing.assert_close(sides["outputs"], whole["4"]["outputs"])


class Sequence(InputsTask):
    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        output: Tensor = module(inputs)[0][:, -1]
        return output


def test_curvature_of_a_recurrent_layer() -> None:
    """The states' side has the gradients of all gates in all steps."""
    model = seeded_model(nn.LSTM(4, 3, batch_first=True))
    data = normal(2, 5, 4)
    asked, task = service([data]), Sequence([data])
    asked.task, asked.call = task, task.call
    found, gradients = asked.measure(model, ["factored_curvature", Gradients("own")])
    sides = found["weight_hh_l0"].results()
    assert sides["outputs"].shape == (12, 12)
    # Before each step the state is known; the bias' gradient is the sum over steps of the gates'.
    cell = {name: p.detach() for name, p in model.module.named_parameters()}
    outputs = torch.zeros(12, 12)
    for done, x in enumerate(data, start=1):
        state = [torch.zeros(1, 3), torch.zeros(1, 3)]
        gates_of = []
        for step in x:
            gates = (
                F.linear(step[None], cell["weight_ih_l0"], cell["bias_ih_l0"])
                + F.linear(state[0], cell["weight_hh_l0"], cell["bias_hh_l0"])
            ).requires_grad_()
            gates_of.append(gates)
            i, f, g, o = gates.chunk(4, 1)
            state[1] = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
            state[0] = o.sigmoid() * state[1].tanh()
        generator = torch.Generator().manual_seed(done)
        grads = torch.autograd.grad(probe(task, state[0], generator), gates_of)
        rows = torch.cat(grads)
        outputs += rows.T @ rows / 2
    torch.testing.assert_close(sides["outputs"], outputs)
    assert gradients.seen("weight_hh_l0") == 2


def test_models_made_in_inference_mode_are_differentiated() -> None:
    with torch.inference_mode():
        model = seeded_model(network())
        tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        tied[2].weight = tied[0].weight
        images = [batch.clone() for batch in IMAGES]
    before = {name: id(tensor) for name, tensor in model.module.named_parameters()}
    found = service(images).of(model, "gradients")
    assert {name: id(tensor) for name, tensor in model.module.named_parameters()} == before
    again = seeded_model(network())
    torch.testing.assert_close(
        found["4"]["mean"], service(IMAGES).of(again, "gradients")["4"]["mean"]
    )
    both = service([normal(2, 4)]).of(Model(tied.eval()), "gradients")
    assert list(both) == ["0.weight"]
    assert both.seen("2.weight") == 2


def test_embeddings_know_which_rows_were_reached() -> None:
    model = seeded_model(nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(8, 3)))
    found = service([torch.tensor([[0, 3], [3, 3]])]).of(model, "gradients")["0"]
    reached = found.reached[:, 0]
    assert reached.tolist() == [1, 0, 0, 3, 0, 0, 0]
    assert torch.equal((found["mean_square"] != 0).any(1), reached > 0)


def test_packed_weights_have_statistics_too(tmp_path: Path) -> None:
    plugins = load_plugins()
    for name in ("cnn", "lstm", "transformer"):
        card = tiny_card(name, tmp_path / name)
        config = WeightQuantizationConfig(bits=8, kinds=("linear", "embedding", "recurrent"))
        result = run_chain([WeightQuantization(config)], card, tmp_path / name / "out")
        from zoopress.models.packing import packed_weights, unpack
        from zoopress.testing import reload_artifact

        packed = reload_artifact(result.artifact, card)
        assert packed_weights(packed.module)
        dense = reload_artifact(result.artifact, card)
        unpack(dense.module, "all")
        asked = ["input_norms", "output_means", "diagonal_curvature", "factored_curvature"]
        context = context_for(card, tmp_path / name / "context", plugins)
        for one, other in zip(
            context.statistics.measure(packed, asked),
            context.statistics.measure(dense, asked),
            strict=True,
        ):
            assert set(one) == set(other)
            for weight in one:
                assert one.seen(weight) == other.seen(weight)
                mine, theirs = one.get(weight), other.get(weight)
                if mine is None or theirs is None:
                    assert weight == "position"
                    continue
                assert mine.seen == theirs.seen
                for key, tensor in mine.results().items():
                    torch.testing.assert_close(tensor, theirs[key], rtol=1e-3, atol=1e-5)
        assert "dense" not in vars(next(iter(packed_weights(packed.module).values())))


def test_terms_of_neurons_add_up_over_all_that_shrinks_with_them() -> None:
    model = seeded_model(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
    batches, labels = [normal(6, 4)], [torch.tensor([0, 1, 2, 0, 1, 2])]
    asked = service(batches, labels)
    dependencies = find_dependencies(model.module, lambda: model.module(batches[0]))
    terms = asked.of(model, "first_taylor", taylor_weights(dependencies))
    found = taylor_of_groups(dependencies, terms)
    (group,) = dependencies.groups
    loss = F.cross_entropy(model.module(batches[0]), labels[0])
    first, second = model.module[0], model.module[2]  # type: ignore[index]
    g = torch.autograd.grad(loss, [first.weight, first.bias, second.weight])
    expected = (first.weight * g[0]).sum(1) + first.bias * g[1] + (second.weight * g[2]).sum(0)
    torch.testing.assert_close(found[group.name], expected.detach())


def taylor_weights(dependencies: Any) -> list[str]:
    from zoopress.statistics.groups import weights_of_groups

    return weights_of_groups(dependencies)


def test_gradients_without_a_task_or_without_a_path_are_refused() -> None:
    model = seeded_model(network())
    asked = service(IMAGES)
    alone = Statistics(asked.call, asked.batches, None, asked.progress, 0)
    with pytest.raises(StageError, match="need a task"):
        alone.of(model, "gradients")

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).detach()

    with pytest.raises(StageError, match="have no gradients"):
        service([normal(2, 2)]).of(seeded_model(Constant()), "gradients")
