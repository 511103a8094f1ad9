"""Every registered technique keeps the rules that third parties are held to as well."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from zoopress.evaluation.latency import measure_latency
from zoopress.plugins import load_plugins
from zoopress.testing import check_technique

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "distillation": [{"steps": 3, "hints": False}, {"steps": 3, "response": "regression"}],
    "entropy_coding": [{}],
    "fine_tuning": [{"steps": 3}, {"steps": 3, "mode": "feature_extraction"}],
    "float_precision": [{}, {"dtype": "float16"}],
    "layer_removal": [{"layers": 1}, {"keep": [1]}],
    "magnitude_pruning": [
        {"sparsity": 0.5},
        {"pattern": "2:4"},
        {"sparsity": 0.6, "scope": "global", "kinds": ("linear", "embedding")},
    ],
    "neuron_pruning": [{"sparsity": 0.25}, {"sparsity": 0.25, "scope": "global", "norm": "l1"}],
    "truncated_svd": [{"parameters": 0.5}, {"rank": 4}, {"energy": 0.5}],
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


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On busy machines, threads that wait for each other take tiny models ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def brief_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency is measured elsewhere; here it would take most of the time."""
    monkeypatch.setattr("zoopress.stages.measure_latency", partial(measure_latency, seconds=0.01))


@pytest.mark.parametrize(("name", "config"), CASES)
def test_technique_conforms(name: str, config: dict[str, Any] | None) -> None:
    if config is None:
        pytest.fail(
            f"Technique {name!r} is registered but has no example config. Add one to EXAMPLES in "
            f"{__file__}."
        )
    technique = PLUGINS.technique(name)
    check_technique(technique(technique.config_type(**config)), PLUGINS)
