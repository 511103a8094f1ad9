"""Gates: each passes what is good, stops what is not, and says what to change."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoopress.errors import GateError, PluginError
from zoopress.gates import check_sound, check_targets, gates
from zoopress.plugins import Plugins, hookimpl, load_plugins
from zoopress.recipes import Targets
from zoopress.results import Fidelity, GateInput, StageResult
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


def test_a_sound_result_passes_every_gate(plugins: Plugins) -> None:
    check_sound(given_of(), 1)
    check_targets(given_of(), 1, True, plugins)


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
    targets: Targets, message: str, plugins: Plugins
) -> None:
    with pytest.raises(GateError, match=message):
        check_targets(given_of(targets), 1, True, plugins)


def test_size_is_asked_of_the_last_stage_alone(plugins: Plugins) -> None:
    check_targets(given_of(Targets(max_size_bytes=1)), 1, False, plugins)


def test_a_target_that_cannot_be_checked_is_refused_rather_than_passed(plugins: Plugins) -> None:
    for name in ("label_loyalty", "probability_loyalty"):
        given_input = given_of(Targets(**{f"min_{name}": 0.1}), fidelity=Fidelity(8, 0.99))
        with pytest.raises(GateError, match=f"min_{name} cannot be checked"):
            check_targets(given_input, 1, True, plugins)
    with pytest.raises(GateError, match="cosine is nan"):
        check_targets(
            given_of(Targets(min_cosine=0.1), fidelity=Fidelity(8, math.nan)), 1, True, plugins
        )


def refuse(given: GateInput) -> str | None:
    return f"{given.result.technique} is not liked here."


def crash(given: GateInput) -> str | None:
    raise ZeroDivisionError


def with_gate(function: str, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    hook = hookimpl(lambda: {"mine": f"gates_of_a_plugin:{function}"}, specname="zoopress_gates")
    module = SimpleNamespace(refuse=refuse, crash=crash)
    monkeypatch.setitem(__import__("sys").modules, "gates_of_a_plugin", module)  # type: ignore[arg-type]
    return load_plugins(extra={"extra": SimpleNamespace(hook=hook)})


def test_a_plugins_gate_is_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GateError, match=r"the gate 'mine': pruning is not liked here\."):
        check_targets(given_of(), 1, False, with_gate("refuse", monkeypatch))


def test_a_plugins_gate_that_crashes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match=r"gate 'mine' .*ZeroDivisionError.*BLOCK"):
        check_targets(given_of(), 1, False, with_gate("crash", monkeypatch))


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
