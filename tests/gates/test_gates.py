"""Gates: each passes what is good, stops what is not, and says what to change."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from zoopress.config import Config
from zoopress.errors import GateError, PluginError
from zoopress.gates import check_chosen, check_sound, check_targets, gates
from zoopress.gates.bytes_saved import BytesSaved
from zoopress.gates.layer_error import LayerError
from zoopress.gates.no_dead_layer import NoDeadLayer
from zoopress.recipes import ChosenGate, Targets
from zoopress.results import Fidelity, GateInput, LayerChange, StageResult
from zoopress.techniques import Claim

SOUND = StageResult(
    technique="pruning",
    config={},
    touched=["a.weight"],
    shrinks=True,
    claims=[Claim("sparsity", 0.5, 0.5)],
    weight_bytes_before=100,
    weight_bytes=50,
    size_bytes=60,
    parameters=25,
    pruned=12,
    finite=True,
    reload_difference=0.0,
    fidelity=Fidelity(8, 0.99, 0.9, 0.8),
)


def given_of(targets: Targets | None = None, **changes: Any) -> GateInput:
    return GateInput(replace(SOUND, **changes), targets or Targets(), 120)


def test_a_sound_result_passes_every_gate() -> None:
    check_sound(given_of(), 1)
    check_targets(given_of(), 1, True)


@pytest.mark.parametrize(
    ("changes", "gate", "remedy"),
    [
        ({"touched": []}, "something_touched", "Select other layers"),
        ({"claims": [Claim("sparsity", 0.5, 0.4)]}, "claims_reached", "Ask for less"),
        ({"claims": [Claim("sparsity", 0.5, math.nan)]}, "claims_reached", "Ask for less"),
        ({"finite": False}, "outputs_finite", "milder"),
        ({"reload_difference": 1e-4}, "reloads_identically", "bug in the technique"),
        ({"reload_difference": math.inf}, "reloads_identically", "bug in the technique"),
        ({"reload_difference": math.nan}, "reloads_identically", "bug in the technique"),
        ({"weight_bytes": 100}, "bytes_shrank", "stronger settings"),
    ],
)
def test_an_unsound_result_is_stopped_by_its_gate_with_a_remedy(
    changes: dict[str, Any], gate: str, remedy: str
) -> None:
    with pytest.raises(GateError, match=rf"Stage 3 \(pruning\) .* gate '{gate}': .*{remedy}"):
        check_sound(given_of(**changes), 3)


def test_a_stage_that_promises_no_smaller_files_may_grow_them() -> None:
    check_sound(given_of(weight_bytes=200, shrinks=False), 1)


@given(requested=st.floats(0.01, 10), share=st.floats(0, 2), tolerance=st.floats(0, 0.5))
def test_a_claim_passes_exactly_within_its_tolerance(
    requested: float, share: float, tolerance: float
) -> None:
    claim = Claim("x", requested, requested * share, tolerance)
    problem = gates.claims_reached(given_of(claims=[claim]))
    if share >= 1 - tolerance + 1e-9:
        assert problem is None
    elif share <= 1 - tolerance - 1e-9:
        assert problem is not None


def test_a_claim_that_whole_units_cannot_meet_is_met_by_the_nearest() -> None:
    of_three = Claim("sparsity", 0.5, 1 / 3, unit=1 / 3)
    assert gates.claims_reached(given_of(claims=[of_three])) is None
    for reached, unit in ((0.0, 1 / 3), (1 / 3, 0.0)):
        missed = Claim("sparsity", 0.5, reached, unit=unit)
        assert gates.claims_reached(given_of(claims=[missed])) is not None


def test_fewer_bytes_are_fewer_than_the_model_came_with() -> None:
    shrunk = {"weight_bytes_before": 200, "weight_bytes": 110}
    assert gates.bytes_shrank(given_of(**shrunk)) is None
    assert gates.bytes_shrank(given_of(**shrunk, original_weight_bytes=120)) is None
    problem = gates.bytes_shrank(given_of(**shrunk, original_weight_bytes=100))
    assert problem is not None
    assert "came with 100" in problem
    assert gates.bytes_shrank(given_of(**shrunk, original_weight_bytes=100, shrinks=False)) is None


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (Targets(min_cosine=0.995), r"cosine is 0\.9900, below .*0\.9950.*lower min_cosine"),
        (Targets(min_label_loyalty=0.95), "label_loyalty is"),
        (Targets(min_probability_loyalty=0.9), "probability_loyalty is"),
        (Targets(max_size_bytes=59), "60 bytes, above the target of 59.*raise max_size_bytes"),
        (Targets(min_compression_ratio=2.1), r"ratio is 2\.00, below .*2\.10"),
    ],
)
def test_a_missed_target_is_named_with_value_bound_and_remedy(
    targets: Targets, message: str
) -> None:
    with pytest.raises(GateError, match=message):
        check_targets(given_of(targets), 1, True)


def test_size_is_asked_of_the_last_stage_alone() -> None:
    check_targets(given_of(Targets(max_size_bytes=1)), 1, False)


def test_a_target_that_cannot_be_checked_is_refused_rather_than_passed() -> None:
    for name in ("label_loyalty", "probability_loyalty"):
        given_input = given_of(Targets(**{f"min_{name}": 0.1}), fidelity=Fidelity(8, 0.99))
        with pytest.raises(GateError, match=f"min_{name} cannot be checked"):
            check_targets(given_input, 1, True)
    with pytest.raises(GateError, match="cosine is nan"):
        check_targets(given_of(Targets(min_cosine=0.1), fidelity=Fidelity(8, math.nan)), 1, True)


class BoundedConfig(Config):
    bound: float


class Bounded:
    config_type = BoundedConfig

    def __init__(self, config: BoundedConfig) -> None:
        self.config = config

    def __call__(self, given: GateInput) -> str | None:
        cosine = given.result.fidelity.cosine
        return None if cosine >= self.config.bound else f"cosine {cosine} is no {self.config.bound}"


def test_a_recipes_gates_are_asked_with_their_options() -> None:
    def chosen(bound: float) -> ChosenGate:
        config = Bounded.config_type(bound=bound)
        return ChosenGate("mine", Bounded(config), config)

    check_chosen(given_of(), 2, [chosen(0.9)])
    with pytest.raises(GateError, match=r"Stage 2 \(pruning\) .* gate 'mine': cosine 0.99 is no 1"):
        check_chosen(given_of(), 2, [chosen(0.9), chosen(1.0)])


def crash(given: GateInput) -> str | None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (crash, r"gate 'mine' .*failed to judge: ZeroDivisionError.*leave the gate out"),
        (
            lambda given: False,
            r"gate 'mine' must return None or True .*; it returned bool False",
        ),
    ],
)
def test_a_gate_that_cannot_judge_is_named(gate: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        check_chosen(given_of(), 1, [ChosenGate("mine", gate)])


LAYERS = [
    LayerChange("a", 0.0, 1.0),
    LayerChange("b", 0.4, 0.9),
    LayerChange("gone", None, None),
]


@pytest.mark.parametrize(
    ("gate", "changes", "problem"),
    [
        (LayerError(LayerError.config_type()), {"layers": LAYERS}, None),
        (
            LayerError(LayerError.config_type(bound=0.3)),
            {"layers": LAYERS},
            r"'b' has a relative error of 0\.4, above the bound of 0\.3 \(1 of 3 layers are\)",
        ),
        (
            LayerError(LayerError.config_type(bound=100)),
            {"layers": [LayerChange("was zero", None, 0.5)]},
            "'was zero' has a relative error of inf",
        ),
        (LayerError(LayerError.config_type()), {}, "did not measure layers.*another --store"),
        (NoDeadLayer(NoDeadLayer.config_type()), {"layers": LAYERS}, None),
        (
            NoDeadLayer(NoDeadLayer.config_type()),
            {"layers": [LayerChange("b", 1.0, 1.0)]},
            r"'b' 0\.00% is not zero; more than nothing must be",
        ),
        (
            NoDeadLayer(NoDeadLayer.config_type(min_nonzero=0.2)),
            {"layers": LAYERS},
            r"'b' 10\.00% is not zero; at least 20\.00% must be",
        ),
        (NoDeadLayer(NoDeadLayer.config_type()), {}, "did not measure layers"),
        (BytesSaved(BytesSaved.config_type(at_least=0.5)), {}, None),
        (
            BytesSaved(BytesSaved.config_type(at_least=0.5)),
            {"weight_bytes": 51},
            r"saved 49\.00% of the tensor files \(100 → 51 bytes\), less than the 50\.00%",
        ),
    ],
)
def test_a_gate_that_recipes_choose_judges_by_its_bound(
    gate: Any, changes: dict[str, Any], problem: str | None
) -> None:
    answer = gate(given_of(**changes))
    if problem is None:
        assert answer is None
    else:
        assert answer is not None
        assert re.search(problem, answer)


@given(
    touched=st.lists(st.text(max_size=5)),
    claims=st.lists(st.builds(Claim, st.text(max_size=5), st.floats(0, 1), st.floats(0, 1))),
    notes=st.dictionaries(st.text(max_size=5), st.integers()),
    loyalty=st.none() | st.floats(0, 1),
)
def test_a_stage_result_survives_plain_data(
    touched: list[str], claims: list[Claim], notes: dict[str, int], loyalty: float | None
) -> None:
    result = replace(
        SOUND, touched=touched, claims=claims, notes=notes, fidelity=Fidelity(2, 0.5, loyalty)
    )
    assert StageResult.from_dict(result.as_dict()) == result
