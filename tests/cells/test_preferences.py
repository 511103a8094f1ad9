"""Which order is better, of several that work."""

from typing import Any

import pytest

from zoopress.cards import Card, Data, RandomInput
from zoopress.cells.plan import make_plan
from zoopress.plugins import Plugins
from zoopress.recipes import Recipe, Stage

CARD = Card(name="a", source="path:a", data=Data(random={"x": RandomInput(shape=(1,))}))
CHOICES: dict[str, dict[str, Any]] = {
    "prune": {"technique": "magnitude_pruning", "sparsity": 0.5},
    "neurons": {"technique": "neuron_pruning", "sparsity": 0.2},
    "svd": {"technique": "truncated_svd", "rank": 2},
    "fold": {"technique": "batch_norm_folding"},
    "quantize": {"technique": "weight_quantization", "kinds": ["linear"]},
    "code": {"technique": "entropy_coding"},
    "distil": {"technique": "distillation", "epochs": 1},
    "tune": {"technique": "fine_tuning", "epochs": 1},
    "layers": {"technique": "layer_removal", "layers": 2},
}


def advice(plugins: Plugins, *names: str) -> str:
    stages = []
    for name in names:
        options = dict(CHOICES[name])
        kind = plugins.technique(options.pop("technique"))
        stages.append(Stage(kind(kind.config_type(**options))))
    return " ".join(make_plan(CARD, Recipe("r", tuple(stages))).advice)


@pytest.mark.parametrize(
    "names",
    [
        ("fold", "neurons", "prune", "quantize", "code"),
        ("layers", "distil", "quantize", "code"),
        ("tune", "neurons", "prune"),
        ("neurons", "svd", "distil", "quantize"),
        ("neurons", "layers"),
        ("code",),
    ],
)
def test_a_good_order_gets_no_advice(names: tuple[str, ...], plugins: Plugins) -> None:
    assert advice(plugins, *names) == ""


@pytest.mark.parametrize(
    ("names", "better", "reason"),
    [
        (("code", "prune"), "magnitude_pruning, entropy_coding", "measured for nothing"),
        (("svd", "neurons"), "neuron_pruning, truncated_svd", "need not be worked on"),
        (("prune", "fold"), "batch_norm_folding, magnitude_pruning", "folding changes"),
        (("distil", "layers"), "layer_removal, distillation", "takes away again"),
        (
            ("code", "distil", "prune"),
            "magnitude_pruning, distillation, entropy_coding",
            "takes away again",
        ),
    ],
)
def test_a_worse_order_works_and_is_told_the_better_one_with_its_reason(
    names: tuple[str, ...], better: str, reason: str, plugins: Plugins
) -> None:
    said = advice(plugins, *names)
    assert f"better is: {better}." in said
    assert reason in said


def test_following_the_advice_leaves_none(plugins: Plugins) -> None:
    by_name = {options["technique"]: name for name, options in CHOICES.items()}
    for start in (("code", "quantize", "fold"), ("svd", "fold", "layers", "distil")):
        try:
            said = advice(plugins, *start)
        except Exception as refusal:
            said = str(refusal)
        order = said.partition("better is: ")[2] or said.partition("This order works: ")[2]
        assert order, said
        names = [by_name[item] for item in order.split(".")[0].split(", ")]
        assert advice(plugins, *names) == ""
