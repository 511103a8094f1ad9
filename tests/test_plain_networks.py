"""Plain networks that people bring, through the recipes of the benchmark."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
_NAMES = """
    resnet_18 resnet_50 resnext preactivation_resnet densenet inception mobilenet_v1 mobilenet_v2
    mobilenet_v3 efficientnet shufflenet_v1 shufflenet_v2 ghostnet squeezenet vgg alexnet
    unet_interpolating unet_transposing feature_pyramid attention_gates deeplab super_resolution
    convnext vision_transformer mlp_mixer conv_mixer repvgg standardized_weights involution
    lstm_tagger gru_tagger packed_sequences attending_decoder tied_language_model small_llama
    nano_gpt translator mixture_of_experts character_highway embedding_bag temporal_convolutions
    temporal_convolutions_old_norm wavenet wave_separator speech_reader einsum_experts state_space
    fourier_mixer graph_convolution graph_attention message_passing point_net edge_convolution
    deep_set radiance_field sinusoidal_representation kolmogorov_arnold generator styled_generator
    autoencoder normalizing_flow tabular_transformer policy_and_value hyper_network shared_steps
    prototypes maxout_and_bilinear diffusion discriminator variational_autoencoder
    quantizing_autoencoder factorization_machine two_towers attending_recommender volume detector
    capsules windows octave deforming conditional blurred modulated quantization_aware
    shuffled_upscaler convolved_state latents conformer recalled time_mixing quasi_recurrent
    dense_table integrated adapted hyperbolic siamese complex_convolutions fourier_operator
"""
NAMES = _NAMES.split()
REFUSED = {
    ("standardized_weights", "neuron_pruning"): "reduced by the operation 'mean'",
    ("tied_language_model", "neuron_pruning"): "weight is tied to another",
    ("graph_attention", "neuron_pruning"): "axis is split into two",
    ("convolved_state", "neuron_pruning"): "a tensor whose size does not follow",
    ("tied_language_model", "truncated_svd"): "kinds ['embedding', 'recurrent']",
    ("kolmogorov_arnold", "truncated_svd"): "kinds ['parameter']",
}
"""The true causes: weights computed from sums over inputs, sizes that the code spells out, tied
weights, and no layer of the kinds that are factored by default."""
LEAST_GONE = {
    "shufflenet_v1": 40,
    "shufflenet_v2": 40,
    "message_passing": 45,
    "kolmogorov_arnold": 50,
    "diffusion": 65,
    "discriminator": 45,
    "fourier_operator": 50,
    "recalled": 40,
    "complex_convolutions": 50,
    "temporal_convolutions_old_norm": 45,
}
"""Percent of the parameters that pruning three of ten neurons removes where all can be followed."""


@pytest.fixture
def walker(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import architectures

    yield architectures
    for name in list(sys.modules):
        if name.partition(".")[0] in ("architectures", "plain_networks", "results_files"):
            del sys.modules[name]


def test_all_networks_are_named(walker: Any) -> None:
    assert sorted(walker._names(plain=True)) == sorted(NAMES)


def test_nearly_all_work_with_each_recipe(walker: Any) -> None:
    for recipe in walker.PLAIN_RECIPES:
        refused = [name for name, which in REFUSED if which == recipe]
        assert len(refused) <= 0.05 * len(NAMES)


@pytest.mark.parametrize("name", LEAST_GONE)
def test_pruning_reaches_nearly_all_neurons(walker: Any, name: str) -> None:
    (row,) = walker.walk_plain(name, ["neuron_pruning"], frozenset())
    assert row["end"] == "ok", row["text"]
    assert int(row["text"].partition("; ")[2].partition(" ")[0]) >= LEAST_GONE[name]


@pytest.mark.parametrize(("name", "recipe"), REFUSED)
def test_what_is_refused_is_told_why(walker: Any, name: str, recipe: str) -> None:
    (row,) = walker.walk_plain(name, [recipe], frozenset())
    assert row["end"] == "refused", row["text"]
    assert REFUSED[name, recipe] in row["text"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_network_works_or_is_refused_with_its_cause(walker: Any, name: str) -> None:
    for row in walker.walk_plain(name, list(walker.PLAIN_RECIPES), frozenset()):
        cause = REFUSED.get((name, row["recipe"]))
        assert row["end"] == ("refused" if cause else "ok"), row
        assert cause is None or cause in row["text"]
