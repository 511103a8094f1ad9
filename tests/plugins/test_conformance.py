"""Every registered technique keeps the rules that third parties are held to as well."""

from typing import Any

import pytest

from zoopress.plugins import load_plugins
from zoopress.testing import check_technique
from zoopress.testing.conformance import check_hash_seed

pytestmark = pytest.mark.usefixtures("brief_latency")

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "activation_quantization": [
        {},
        {"mode": "dynamic", "correct_biases": True},
        {"per": "channel", "bits": 6, "observer": "aciq"},
    ],
    "activation_smoothing": [{}],
    "admm_quantization": [
        {"training": {"steps": 4}, "interval": 2},
        {"training": {"steps": 4}, "grid": "power_of_two", "bits": 4, "scale": "tensor"},
    ],
    "batch_norm_folding": [{}],
    "binarization": [{"bases": 2}, {"weighting": "curvature"}],
    "block_replacement": [
        {"block": "depthwise_separable"},
        {"block": {"name": "depthwise_separable", "multiplier": 3}, "include": ("3.conv*",)},
    ],
    "codebook_quantization": [
        {"bits": 3},
        {"bits": 4, "weighting": "fisher", "entropy_weight": 0.01, "kind_bits": {"linear": 6}},
        {"bits": 5, "scope": "global", "kinds": ("linear", "conv", "parameter")},
    ],
    "distillation": [{"steps": 3, "hints": False}, {"steps": 3, "response": "regression"}],
    "entropy_coding": [{}, {"coder": "huffman"}],
    "fine_tuning": [
        {"steps": 3},
        {"steps": 3, "mode": "feature_extraction"},
        {"steps": 3, "losses": [{"loss": "l1", "weight": 1e-4}, {"loss": "kl_divergence"}]},
    ],
    "float_precision": [{}, {"dtype": "float16"}],
    "focused_quantization": [{"bits": 4}],
    "gradual_pruning": [
        {"sparsity": 0.6, "training": {"steps": 4}, "interval": 2},
        {
            "sparsity": 0.6,
            "training": {"steps": 4},
            "criterion": "magnitude",
            "scope": "layer",
            "per_bit": True,
        },
    ],
    "incremental_quantization": [
        {"bits": 3, "training": {"steps": 6}, "interval": 2},
        {
            "bits": 4,
            "weighting": "fisher",
            "entropy_weight": 0.05,
            "training": {"steps": 4},
            "end": 1.0,
        },
    ],
    "lattice_quantization": [
        {"bits_per_weight": 4},
        {"step": 0.3, "lattice": "Z", "steps": "row", "dither": False},
    ],
    "layer_removal": [{"layers": 1}, {"keep": [1]}],
    "level_quantization": [
        {"grid": "nf4", "group_size": 32},
        {"grid": "power_of_two", "scales": "power_of_two", "weighting": "curvature"},
        {"grid": "piecewise_linear", "bits": 4},
        {"grid": "fp8_e4m3", "clipping": "none", "kinds": ("linear", "conv", "parameter")},
    ],
    "magnitude_pruning": [
        {"sparsity": 0.5},
        {"pattern": "2:4"},
        {"sparsity": 0.6, "scope": "global", "kinds": ("linear", "embedding")},
        {"sparsity": 0.5, "criterion": {"name": "random", "draw": 3}},
    ],
    "mixed_precision": [
        {"target": {"bits_per_weight": 7}},
        {"target": {"ratio": 2}, "sensitivity": "moments", "group_size": 16, "symmetric": False},
        {"target": {"size_bytes": 20_000}, "rounding": "hqq", "bits": (2, 4), "floats": False},
    ],
    "neuron_pruning": [
        {"sparsity": 0.25},
        {"sparsity": 0.25, "scope": "global", "criterion": "magnitude"},
        {"sparsity": 0.25, "criterion": {"name": "random", "draw": 1}},
        {"sparsity": 0.25, "criterion": "geometric_median"},
    ],
    "quantization_aware_training": [
        {"training": {"steps": 3}, "inputs": "learned_step"},
        {"training": {"steps": 3}, "weights": "trained_ternary", "inputs": "pact"},
        {"training": {"steps": 3}, "weights": "scaled_sign", "kinds": ("recurrent", "embedding")},
        {"training": {"steps": 3}, "weights": "differentiable_dynamic"},
    ],
    "rate_distortion_quantization": [
        {"slope": 1e-6, "kinds": ("conv", "embedding", "vector")},
        {"target": {"cosine": 0.8}},
        {"target": {"bits_per_weight": 4}, "sensitivity": "none", "steps": "row"},
        {"target": {"ratio": 4}, "sensitivity": "synthetic", "steps": "tensor"},
    ],
    "ternarization": [
        {},
        {"threshold": "gaussian", "scale": "tensor", "two_scales": True},
        {"threshold": "mean", "group_size": 16, "weighting": "inputs"},
    ],
    "truncated_svd": [{"parameters": 0.5}, {"rank": 4}, {"energy": 0.5}],
    "weight_equalization": [{}],
    "vector_quantization": [
        {"length": 4, "bits": 4},
        {"bits": 3, "weighting": "inputs", "correction": True},
    ],
    "weight_quantization": [
        {"bits": 8},
        {"bits": 4, "group_size": 32, "symmetric": False},
        {"bits": 3, "clipping": "none", "kinds": ("linear", "conv", "parameter")},
    ],
}
"""Configs of every technique; a list, since one config rarely reaches all of a file."""

PLUGINS = load_plugins()
CASES = [
    pytest.param(name, config, id=f"{name}-{i}", marks=(pytest.mark.slow,) if i else ())
    for name in sorted(PLUGINS.techniques)
    for i, config in enumerate(EXAMPLES.get(name, [None]))
]


def test_every_plugin_loads() -> None:
    PLUGINS.check()
    assert [str(broken) for broken in PLUGINS.broken] == []


@pytest.mark.parametrize(("name", "config"), CASES)
def test_technique_conforms(name: str, config: dict[str, Any] | None) -> None:
    if config is None:
        pytest.fail(
            f"Technique {name!r} is registered but has no example config. Add one to EXAMPLES in "
            f"{__file__}."
        )
    technique = PLUGINS.technique(name)
    check_technique(technique(technique.config_type(**config)), PLUGINS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_nothing_follows_from_the_order_of_sets(name: str) -> None:
    technique = PLUGINS.technique(name)
    check_hash_seed(technique(technique.config_type(**EXAMPLES[name][0])), PLUGINS)
