"""Rate–distortion quantization meets the target it is given, or says why it cannot."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from zoopress.cards import Card
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.models.weights import as_matrix
from zoopress.pipeline.compress import Result
from zoopress.plugins import load_plugins
from zoopress.tasks.batches import batch_length
from zoopress.techniques import Context, Outcome
from zoopress.testing import context_for, reload_artifact, run_chain, tiny_card
from zoopress_plugins.quantization.forms.grid import GridWeight
from zoopress_plugins.quantization.rate_distortion import slope_search
from zoopress_plugins.quantization.rate_distortion.packing import packed_copy, quantize_weights
from zoopress_plugins.quantization.rate_distortion.solver import Settings
from zoopress_plugins.quantization.rate_distortion.target_measures import split_batches
from zoopress_plugins.quantization.rate_distortion_quantization import (
    RateDistortionConfig,
    RateDistortionQuantization,
    Target,
)

pytestmark = pytest.mark.usefixtures("brief_latency")

PLUGINS = load_plugins()


@pytest.fixture(scope="module")
def lstm_card(tmp_path_factory: pytest.TempPathFactory) -> Card:
    return tiny_card("lstm", tmp_path_factory.mktemp("lstm"))


@pytest.fixture
def context(lstm_card: Card, tmp_path: Path) -> Context:
    return context_for(lstm_card, tmp_path / "checkpoint", PLUGINS)


def technique(**config: Any) -> RateDistortionQuantization:
    return RateDistortionQuantization(RateDistortionConfig.model_validate(config))


def original(context: Context) -> Model:
    assert context.teacher is not None
    return Model(context.teacher(None), PLUGINS.layers)


def grids(model: Model) -> dict[str, GridWeight]:
    found = packed_weights(model.module)
    assert all(isinstance(weight, GridWeight) for weight in found.values())
    return found  # type: ignore[return-value]


def compress(card: Card, folder: Path, **config: Any) -> Result:
    return run_chain([technique(**config)], card, folder, PLUGINS)


def test_a_ratio_counts_every_file_and_is_hardly_exceeded(lstm_card: Card, tmp_path: Path) -> None:
    result = compress(lstm_card, tmp_path, target={"ratio": 6}, quantizer="uniform")
    assert 6 <= result.report.compression_ratio <= 6.1
    files = sum(f.stat().st_size for f in result.artifact.iterdir() if f.name != "README.md")
    assert result.report.original_size_bytes / files == result.report.compression_ratio
    assert (result.artifact / "model.zpz").exists()
    (claim,) = result.report.last.claims
    assert claim.reached == pytest.approx(result.report.compression_ratio, rel=5e-3)
    model = reload_artifact(result.artifact, lstm_card, PLUGINS)
    assert {weight.scan for weight in grids(model).values()} <= {"rows", "columns"}


@pytest.mark.parametrize(
    "target",
    [
        {"size_bytes": 11_000},
        {"bits_per_weight": 2.5},
        {"cosine": 0.98},
        pytest.param({"label_loyalty": 0.8}, marks=pytest.mark.slow),
        pytest.param({"probability_loyalty": 0.97}, marks=pytest.mark.slow),
    ],
)
def test_every_target_is_reached_and_claimed(
    target: dict[str, float], lstm_card: Card, tmp_path: Path
) -> None:
    result = compress(lstm_card, tmp_path, target=target, quantizer="uniform")
    (claim,) = result.report.last.claims
    assert claim.reached >= claim.requested
    trials = result.report.last.notes["trials"]
    assert result.report.last.notes["slope"] in [trial["slope"] for trial in trials]
    if "size_bytes" in target:
        assert 0.97 * 11_000 <= result.report.last.size_bytes <= 11_000
    if "bits_per_weight" in target:
        assert 32 - claim.reached == pytest.approx(2.5, rel=0.02)


@pytest.mark.slow
def test_a_metric_may_drop_by_what_is_allowed_on_validation_data(tmp_path: Path) -> None:
    card = tiny_card("cnn", tmp_path / "model", labelled=True)
    result = compress(card, tmp_path / "out", target={"max_metric_drop": 0.1}, quantizer="uniform")
    (claim,) = result.report.last.claims
    assert claim.requested == -0.1
    assert claim.reached >= -0.1
    assert "validation" in result.report.last.notes["judged_on"]


def test_a_given_slope_is_used_without_a_search(context: Context) -> None:
    model = original(context)
    before = model.parameter_count()
    outcome = technique(slope=1e-6).apply(model, context)
    assert outcome.notes["slope"] == 1e-6
    assert "trials" not in outcome.notes
    assert list(outcome.claims) == []
    assert set(outcome.touched) == set(grids(model))
    assert model.storage == "zpz"
    assert model.parameter_count() == before


def test_a_smaller_slope_is_closer_and_larger(context: Context) -> None:
    notes, errors = [], []
    for slope in (1e-7, 1e-5):
        model = original(context)
        notes.append(technique(slope=slope).apply(model, context).notes["bits_per_weight"])
        error = 0.0
        for weight in original(context).weights():
            if weight.name in grids(model):
                dense = grids(model)[weight.name].dense()
                error += float((dense - weight.parameter.detach()).square().sum())
        errors.append(error)
    assert notes[0] > notes[1]
    assert errors[0] < errors[1]


def test_pruned_weights_stay_zero_and_what_is_rounded_to_zero_joins_them(context: Context) -> None:
    model = original(context)
    kept = {}
    for weight in model.weights():
        size = weight.parameter.detach().abs()
        model.mask(weight, size > size.median())
        kept[weight.name] = as_matrix(model.masks[weight.name], weight.output_axis)
    technique(slope=1e-6).apply(model, context)
    assert set(model.masks) == {f"{name}.codes" for name in kept}
    for name, mask in kept.items():
        codes = grids(model)[name].codes
        assert torch.equal(model.masks[f"{name}.codes"], codes != 0)
        assert not bool(codes[~mask].any())


def test_without_a_mask_no_zero_counts_as_pruned(context: Context) -> None:
    model = original(context)
    technique(slope=1e-5).apply(model, context)
    assert any(bool((weight.codes == 0).any()) for weight in grids(model).values())
    assert model.masks == {}


def test_a_tied_weight_is_quantized_once(context: Context) -> None:
    module = nn.Sequential(nn.Embedding(40, 32), nn.Linear(32, 40))
    module[1].weight = module[0].weight
    model = Model(module.eval(), PLUGINS.layers)
    outcome = technique(slope=1e-4, sensitivity="none").apply(model, context)
    assert "0.weight" in outcome.touched
    assert "1.weight" not in outcome.touched
    one, other = grids(model)["0.weight"], module[1].weight
    assert isinstance(module[1]._modules["weight"], GridWeight)
    assert torch.equal(one.dense(), other)
    assert one.codes.data_ptr() == module[1]._modules["weight"].codes.data_ptr()


def test_a_killed_run_measures_no_sensitivities_again_and_gives_the_same_model(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = technique(target={"bits_per_weight": 3}, quantizer="uniform")
    whole = original(context)
    elsewhere = replace(context, checkpoint=context.checkpoint / "whole")
    elsewhere.checkpoint.mkdir()
    expected = asked.apply(whole, elsewhere)

    calls = {"sensitivities": 0, "trials": 0}
    measure, quantize = slope_search.measure_sensitivities, slope_search.quantize_weights

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls["sensitivities"] += 1
        return measure(*args, **kwargs)

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls["trials"] += 1
        if calls["trials"] == 2:
            raise KeyboardInterrupt
        return quantize(*args, **kwargs)

    monkeypatch.setattr(slope_search, "measure_sensitivities", counted)
    monkeypatch.setattr(slope_search, "quantize_weights", killed)
    with pytest.raises(KeyboardInterrupt):
        asked.apply(original(context), context)
    resumed = original(context)
    outcome = asked.apply(resumed, context)
    assert calls["sensitivities"] == 1
    assert outcome == expected
    for name, tensor in whole.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor)


def test_a_fidelity_out_of_reach_says_what_was_reached_and_leaves_the_model(
    context: Context,
) -> None:
    model = original(context)
    for weight in model.weights():
        model.mask(weight, torch.rand(weight.parameter.shape) < 0.5)
    with pytest.raises(StageError, match=r"cosine 0.9999 cannot be met: at .* it is 0\.\d+"):
        technique(target={"cosine": 0.9999}, quantizer="uniform").apply(model, context)
    assert not packed_weights(model.module)


def test_a_size_out_of_reach_says_what_the_rest_is(lstm_card: Card, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"ratio 1000 cannot be met: .* the ratio is \d+"):
        compress(lstm_card, tmp_path, target={"ratio": 1000}, quantizer="uniform")


@pytest.mark.parametrize("target", [{"label_loyalty": 0.9}, {"max_metric_drop": 0.1}])
def test_a_target_that_needs_labels_is_refused_before_any_work(
    target: dict[str, float], context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("long work began")

    monkeypatch.setattr(slope_search, "measure_sensitivities", work)
    assert context.task is not None
    monkeypatch.setattr(context.task, "similarity", lambda outputs: None)
    with pytest.raises(StageError, match="cannot be measured"):
        technique(target=target).apply(original(context), context)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "give either 'target', such as {ratio: 12}, or 'slope'; none is given"),
        ({"slope": 1e-6, "target": {"ratio": 4}}, "or 'slope'; both is given"),
        ({"target": {}}, "give exactly one of 'ratio', 'size_bytes'.* not none"),
        ({"target": {"ratio": 4, "cosine": 0.9}}, r"not \['cosine', 'ratio'\]"),
        ({"target": {"ration": 4}}, "ration"),
        ({"target": {"ratio": 1}}, "greater than 1"),
        ({"target": {"cosine": 1.0}}, "less than 1"),
        ({"slope": 0}, "greater than 0"),
        ({"slope": 1, "quantizer": "vector"}, "'uniform' or 'trellis'"),
    ],
)
def test_a_config_that_says_too_little_or_too_much_is_refused(
    config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        RateDistortionConfig.model_validate(config)


@pytest.mark.parametrize("field", Target.model_fields)
def test_every_target_goes_through_json(field: str) -> None:
    values = {"size_bytes": 1000, "ratio": 3.5, "max_metric_drop": 0.0}
    config = RateDistortionConfig.model_validate({"target": {field: values.get(field, 0.9)}})
    assert RateDistortionConfig.model_validate(config.model_dump(mode="json")) == config


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_every_fourth_sample_judges_and_the_others_are_seen(sizes: list[int]) -> None:
    samples = torch.arange(sum(sizes))
    batches = [{"ids": part, "shared": torch.zeros(1, 50)} for part in samples.split(sizes)]
    seen, judging = split_batches(batches)
    if sum(size // 4 for size in sizes) < 8:
        assert seen == batches
        assert judging == batches
        return
    parts = [torch.cat([batch["ids"] for batch in part]) for part in (seen, judging)]
    assert torch.equal(torch.cat(parts).sort().values, samples)
    assert len(parts[1]) == sum(size // 4 for size in sizes)
    assert all(batch_length(batch) for batch in judging)


def test_a_packed_copy_shares_what_is_not_packed_and_leaves_the_original(context: Context) -> None:
    model = original(context)
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    select: Callable[[Model], Any] = lambda model: list(model.weights(["recurrent"]))  # noqa: E731
    packings = quantize_weights(select(model), {}, {}, Settings(), 1e-4)
    copied = packed_copy(model, select, packings)
    assert set(packed_weights(copied.module)) == {weight.name for weight in select(model)}
    assert (model.edits, model.storage, copied.storage) == ([], "safetensors", "zpz")
    for name, tensor in model.tensors().items():
        assert torch.equal(tensor, before[name])
        if name in copied.tensors():
            assert copied.tensors()[name].data_ptr() == tensor.data_ptr()
    assert isinstance(context.call(copied.module, context.batches()[0]), Tensor)


def test_codes_are_the_same_with_any_number_of_threads() -> None:
    torch.manual_seed(0)
    model = Model(nn.Sequential(nn.Linear(70, 50), nn.Linear(50, 30)).eval())
    weights = list(model.weights())
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(quantize_weights(weights, {}, {}, Settings(), 1e-4))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_weights_that_are_smaller_as_they_are_stay(context: Context) -> None:
    module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    model = Model(module.eval(), PLUGINS.layers)
    outcome: Outcome = technique(slope=1e-6, sensitivity="none").apply(model, context)
    assert "1.bias" not in outcome.touched
    assert "0.weight" in outcome.touched
    assert outcome.notes["left_in_floating_point"] >= 1
    with pytest.raises(StageError, match="fewer bits as it is"):
        technique(slope=1e-6, sensitivity="none", kinds=["vector"], include=["1.bias"]).apply(
            Model(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2)).eval(), PLUGINS.layers),
            context,
        )
