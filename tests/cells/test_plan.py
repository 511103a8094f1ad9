"""Plans: impossible orders are refused with a reason and an order that works."""

import re
from typing import Any

import pytest
from hypothesis import given, strategies as st

from zoopress.cards import Card, Data, RandomInput
from zoopress.cells.plan import make_plan
from zoopress.errors import PlanError
from zoopress.plugins import Plugins
from zoopress.recipes import Recipe, Stage
from zoopress.techniques import (
    ACTIVATION_RANGES,
    INITIAL_PROPERTIES,
    KINDS,
    MASKS,
    Config,
    Context,
    Effects,
    Outcome,
    Technique,
    float_weights,
)

CARD = Card(name="a", source="path:a", data=Data(random={"x": RandomInput(shape=(1,))}))
PRUNE: dict[str, Any] = {"technique": "magnitude_pruning", "sparsity": 0.5}
PRUNE_LINEAR = {**PRUNE, "kinds": ["linear"]}
SVD: dict[str, Any] = {"technique": "truncated_svd", "rank": 2}
QUANTIZE: dict[str, Any] = {"technique": "weight_quantization"}
CODE: dict[str, Any] = {"technique": "entropy_coding"}


def recipe(plugins: Plugins, *stages: dict[str, Any]) -> Recipe:
    made = []
    for options in stages:
        kind = plugins.technique(options["technique"])
        config = {key: value for key, value in options.items() if key != "technique"}
        made.append(Stage(kind(kind.config_type(**config))))
    return Recipe("r", tuple(made))


@pytest.mark.parametrize(
    "stages",
    [
        (PRUNE,),
        (PRUNE, QUANTIZE, CODE),
        (SVD, PRUNE, QUANTIZE),
        (SVD, QUANTIZE),
        (CODE, PRUNE),
        (PRUNE, PRUNE),
        ({**QUANTIZE, "kinds": ["linear"]}, {**QUANTIZE, "kinds": ["embedding"], "bits": 4}),
        ({**QUANTIZE, "kinds": ["embedding"]}, PRUNE_LINEAR),
        ({**QUANTIZE, "include": ["a.*"]}, {**QUANTIZE, "exclude": ["a.*"]}),
        ({**QUANTIZE, "include": ["a.*"]}, {**PRUNE, "include": ["b.*"]}),
        ({**PRUNE, "include": ["a.*"]}, {**SVD, "include": ["b.*"]}),
        ({**PRUNE, "kinds": ["conv"]}, {**SVD, "kinds": ["linear"]}),
    ],
)
def test_orders_that_work_are_accepted(stages: tuple[Any, ...], plugins: Plugins) -> None:
    made = recipe(plugins, *stages)
    assert make_plan(CARD, made).stages == made.stages


@pytest.mark.parametrize(
    ("stages", "reason", "order"),
    [
        (
            (QUANTIZE, PRUNE),
            r"stage 2 \(magnitude_pruning\) works on float .* but stage 1 \(weight_quantization\)",
            "magnitude_pruning, weight_quantization",
        ),
        (
            (PRUNE_LINEAR, SVD),
            r"stage 2 \(truncated_svd\) would discard the masks that stage 1 \(magnitude_pruning\)",
            "truncated_svd, magnitude_pruning",
        ),
        (
            (QUANTIZE, SVD),
            r"stage 2 \(truncated_svd\) works on float .* but stage 1 \(weight_quantization\)",
            "truncated_svd, weight_quantization",
        ),
        (
            (QUANTIZE, {**PRUNE_LINEAR, "include": ["a.*"]}),
            r"works on float linear weights, but stage 1 .* leaves none of .*\['a\.\*'\]",
            "magnitude_pruning, weight_quantization",
        ),
        (
            ({**QUANTIZE, "include": ["a.*"]}, {**PRUNE, "include": ["a.b.*"]}),
            r"stage 2 \(magnitude_pruning\) works on float",
            "magnitude_pruning, weight_quantization",
        ),
        (
            (CODE, QUANTIZE, PRUNE, SVD),
            "works on float",
            "truncated_svd, magnitude_pruning, weight_quantization, entropy_coding",
        ),
    ],
)
def test_impossible_orders_are_refused_with_reason_and_a_working_order(
    stages: tuple[Any, ...], reason: str, order: str, plugins: Plugins
) -> None:
    with pytest.raises(PlanError, match=reason) as refused:
        make_plan(CARD, recipe(plugins, *stages))
    assert str(refused.value).endswith(f"This order works: {order}.")


def test_stages_that_fit_in_no_order_are_refused_with_another_remedy(plugins: Plugins) -> None:
    with pytest.raises(PlanError, match=r"No order of these stages works.*'kinds'"):
        make_plan(CARD, recipe(plugins, QUANTIZE, QUANTIZE))


PROPERTIES = sorted(INITIAL_PROPERTIES | {MASKS})
SETS = st.frozensets(st.sampled_from(PROPERTIES), max_size=2)


def fake(position: int, effects: Effects) -> Stage:
    class Fake(Technique[Config]):
        name = f"fake_{position}"
        family = "pruning"
        config_type = Config

        def effects(self) -> Effects:
            return effects

        def apply(self, model: Any, context: Context) -> Outcome:
            raise AssertionError("a plan computes nothing")

    return Stage(Fake(Config()))


@given(st.lists(st.builds(Effects, SETS, SETS, SETS), min_size=1, max_size=5))
def test_the_order_that_a_refusal_proposes_is_accepted(effects: list[Effects]) -> None:
    stages = [fake(i, effect) for i, effect in enumerate(effects)]
    try:
        make_plan(CARD, Recipe("r", tuple(stages)))
    except PlanError as error:
        proposed = re.search(r"This order works: (.*)\.$", str(error))
        if proposed:
            by_name = {stage.name: stage for stage in stages}
            order = tuple(by_name[name] for name in proposed[1].split(", "))
            assert sorted(by_name) == sorted(stage.name for stage in order)
            assert make_plan(CARD, Recipe("r", order)).stages == order


@given(st.permutations(range(4)))
def test_a_chain_with_one_good_order_is_led_to_it_from_any_other(order: list[int]) -> None:
    linear = frozenset({float_weights(KINDS[0])})
    chain = [
        fake(0, Effects(requires=linear, destroys=frozenset({MASKS}))),
        fake(1, Effects(requires=linear, adds=frozenset({MASKS}))),
        fake(2, Effects(requires=linear | {MASKS}, destroys=linear, adds=frozenset({"codes"}))),
        fake(3, Effects(requires=frozenset({"codes"}))),
    ]
    mixed = Recipe("r", tuple(chain[i] for i in order))
    if order == [0, 1, 2, 3]:
        assert make_plan(CARD, mixed).stages == tuple(chain)
    else:
        with pytest.raises(PlanError, match="This order works: fake_0, fake_1, fake_2, fake_3"):
            make_plan(CARD, mixed)


def test_what_changes_activations_may_not_follow_what_measured_their_ranges() -> None:
    measured = fake(0, Effects(adds=frozenset({ACTIVATION_RANGES})))
    changing, keeping = fake(1, Effects()), fake(2, Effects(activations="kept"))
    assert make_plan(CARD, Recipe("r", (changing, measured, keeping)))
    with pytest.raises(PlanError, match=r"fake_1.*changes the activations.*fake_0.*This order"):
        make_plan(CARD, Recipe("r", (measured, changing)))


def test_a_technique_that_needs_data_is_refused_on_a_card_without() -> None:
    class Hungry(type(fake(0, Effects()).technique)):  # type: ignore[misc]
        name = "hungry"
        needs = frozenset({"calibration"})

    chain = Recipe("r", (Stage(Hungry(Config())),))
    assert make_plan(CARD, chain)
    with pytest.raises(PlanError, match=r"stage 1 \(hungry\) needs calibration data.*Give the"):
        make_plan(Card(name="a", source="path:a"), chain)


def test_a_technique_that_stands_twice_is_told_apart_by_its_position(plugins: Plugins) -> None:
    embedding, linear = ({**QUANTIZE, "kinds": [kind]} for kind in ("embedding", "linear"))
    made = recipe(plugins, linear, embedding, PRUNE_LINEAR)
    with pytest.raises(PlanError, match=r"\(now stage 2\), magnitude_.*n \(now stage 1\)"):
        make_plan(CARD, made)
