"""Soft weight-sharing: weights gather around the values that a codebook gives them afterwards."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from digits_reader import digits_card, press, reader
from synthetic_task import Classification
from zoopress.artifacts.artifact import load_artifact
from zoopress.errors import StageError
from zoopress.plugins import Plugins
from zoopress.tasks import Batch
from zoopress.training.loss import Seen
from zoopress_plugins.quantization.codebook_quantization import fit_codebook, nearest
from zoopress_plugins.quantization.losses import gaussian_mixture
from zoopress_plugins.quantization.losses.gaussian_mixture import (
    GaussianMixture,
    Mixtures,
    gamma_prior,
    negative_log_likelihood,
)
from zoopress_plugins.quantization.losses.soft_weight_sharing import (
    SoftWeightSharing,
    SoftWeightSharingConfig,
)

pytestmark = pytest.mark.usefixtures("brief_evaluation")


def seen(parameters: dict[str, Tensor]) -> Seen:
    return Seen(Classification(), Batch(None), torch.zeros(1), parameters=parameters)


def loss(**given: Any) -> SoftWeightSharing:
    return SoftWeightSharing(SoftWeightSharingConfig.model_validate(given))


def weights(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def test_the_likelihood_is_that_of_torchs_own_mixture() -> None:
    from torch import distributions as d

    values, means = weights(50), torch.tensor([0.0, -1.0, 2.0])
    deviations, proportions = torch.tensor([0.3, 0.5, 2.0]), torch.tensor([0.7, 0.1, 0.2])
    mixture = d.MixtureSameFamily(d.Categorical(proportions), d.Normal(means, deviations))  # type: ignore[no-untyped-call]
    got = negative_log_likelihood(values, means, -2 * deviations.log(), proportions.log())
    expected = -mixture.log_prob(values).sum()  # type: ignore[no-untyped-call]
    assert torch.allclose(got, expected, rtol=1e-5)


def test_the_hyper_prior_is_a_gamma_distribution_of_precisions() -> None:
    """Its logarithms differ from torch's by one constant, whatever the precision."""
    precisions, alpha, mode = torch.tensor([0.1, 1.0, 4.0, 50.0]), 6.0, 4.0
    gamma = torch.distributions.Gamma(alpha, (alpha - 1) / mode)  # type: ignore[no-untyped-call]
    expected = -gamma.log_prob(precisions)  # type: ignore[no-untyped-call]
    got = torch.stack(
        [gamma_prior(p.log()[None], torch.tensor([alpha - 1]), mode) for p in precisions]
    )
    assert torch.allclose(got - got[0], expected - expected[0], rtol=1e-4, atol=1e-4)
    assert int(got.argmin()) == 2


@pytest.mark.parametrize("size", [200, 20_000])
def test_no_component_collapses_even_onto_weights_that_are_all_alike(size: int) -> None:
    """Without the hyper-prior the likelihood of weights on three points has no bound."""
    clustered = torch.tensor([-1.0, 0.01, 1.0]).repeat(size)[:size]
    torch.manual_seed(0)
    mixture = GaussianMixture(clustered + 0.1 * weights(size), 4, 0.5, 0.25)
    optimizer = torch.optim.Adam(mixture.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        (mixture(clustered) / size).backward()
        optimizer.step()
    found = (mixture.deviations() / mixture.unit).tolist()
    # The mode of the posterior: a third of the weights, where the prior counts as a half at zero,
    # and as a sixth elsewhere.
    assert found[0] == pytest.approx(0.25 / math.sqrt(1 + 2 / 3), rel=0.1)
    assert min(found) > 0.9 * 0.25 / math.sqrt(1 + 2)


def test_the_value_is_the_same_for_weights_of_any_scale() -> None:
    found = []
    for scale in (1.0, 1e-3):
        parameters = {"a.weight": weights(40, 30) * scale, "b.weight": weights(30, 9) * scale}
        parts = loss()
        value = parts.value(seen(parameters), parts.prepare(seen(parameters)))
        found.append(float(value.detach()))
    assert found[0] == pytest.approx(found[1], rel=0.01)


def test_parts_give_the_value_and_the_gradients_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mixture, gradients, values = GaussianMixture(weights(500), 8, 0.9, 0.25), [], []
    for part in (1 << 18, 64):
        monkeypatch.setattr(gaussian_mixture, "_PART", part)
        given = weights(500).requires_grad_()
        total = mixture(given)
        gradients.append(torch.autograd.grad(total, [given, *mixture.parameters()]))
        values.append(total.detach())
    assert torch.allclose(values[0], values[1], rtol=1e-5)
    for whole, parts in zip(*gradients, strict=True):
        assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-4)


def test_zero_stays_where_it_is_as_large_as_it_is_and_pruned_weights_do_not_count() -> None:
    mixture = GaussianMixture(weights(500), 8, 0.8, 0.25)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.add_(0.1 * weights(len(parameter)))
    proportions = mixture.log_proportions().detach().exp()
    assert float(proportions[0]) == pytest.approx(0.8, rel=1e-5)
    assert float(proportions.sum()) == pytest.approx(1, rel=1e-5)
    assert len(mixture.means) == 7  # that at zero is not among what is learned
    alone = weights(500)
    assert torch.equal(mixture(alone), mixture(torch.cat([alone, torch.zeros(100)])))


def test_a_layer_has_a_mixture_of_its_own_unless_all_share_one() -> None:
    parameters = {"a.weight": weights(40, 30), "b.weight": 0.1 * weights(40, 30, seed=1)}
    own, shared = (loss(scope=scope).prepare(seen(parameters)) for scope in ("layer", "global"))
    assert isinstance(own, Mixtures)
    assert isinstance(shared, Mixtures)
    assert own.names == [("a.weight",), ("b.weight",)]
    assert shared.names == [("a.weight", "b.weight")]
    first, second = (float(mixture.unit) for mixture in own.mixtures)  # type: ignore[arg-type]
    assert first / second == pytest.approx(10, rel=0.2)


def test_what_cannot_share_values_is_refused_with_the_remedy() -> None:
    with pytest.raises(StageError, match=r"all selected weights are zero.*'include'"):
        loss().prepare(seen({"a.weight": torch.zeros(3, 3)}))
    learned = loss().prepare(seen({"a.weight": weights(3, 3)}))
    with pytest.raises(StageError, match="Leave 'lora' out"):
        loss().value(seen({"a.lora_A": weights(3, 3)}), learned)
    for wrong in ({"components": 1}, {"zero_proportion": 1.0}, {"deviation": 0}):
        with pytest.raises(ValidationError):
            SoftWeightSharingConfig.model_validate(wrong)


BITS = 3


def rounding_error(matrix: Tensor) -> float:
    """Return the squared error of the best codebook, relative to the weights' squares."""
    flat, one = matrix.float().flatten(), torch.ones(1)
    book = fit_codebook(flat, one, 2**BITS, 0.0, 0.0)
    error = flat - book.values[nearest(flat, one, book, 0.0)]
    return float(error.square().sum() / flat.square().sum())


def test_trained_weights_gather_around_values_at_equal_accuracy(
    tmp_path: Path, plugins: Plugins
) -> None:
    card, errors, metrics = digits_card(tmp_path, 2), {}, {}
    option = f"{{loss: soft_weight_sharing, weight: 0.3, components: {2**BITS}}}"
    for name, losses in (("without", "[]"), ("with", f"[{option}]")):
        stages = f"""[{{technique: fine_tuning, epochs: 20, learning_rate: 2.0e-3,
            weight_decay: 0, batch_size: 64, evaluations: 0, losses: {losses}}}]"""
        made = press(card, stages, tmp_path / name, plugins)
        model = load_artifact(made.artifact, plugins, reader)[0]
        errors[name] = [rounding_error(weight.matrix()) for weight in model.weights()]
        metrics[name] = made.report.last.metric_drop
    assert all(a < 0.5 * b for a, b in zip(errors["with"], errors["without"], strict=True))
    assert sum(errors["with"]) < 0.1 * sum(errors["without"])
    assert metrics["with"] is not None
    assert metrics["without"] is not None
    assert metrics["with"] < metrics["without"] + 0.02
