"""Bits go where they matter: budgets are met in real bytes and fidelity, or refused in words."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from pydantic import ValidationError

from zoopress.cards import Card
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.pipeline.compress import Result
from zoopress.plugins import load_plugins
from zoopress.techniques import Context, Outcome, Technique
from zoopress.testing import context_for, reload_artifact, run_chain, tiny_card
from zoopress_plugins.quantization.mixed_precision import MixedPrecision, MixedPrecisionConfig

pytestmark = pytest.mark.usefixtures("brief_latency")

PLUGINS = load_plugins()


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Card]:
    names = ("cnn", "lstm", "transformer")
    return {name: tiny_card(name, tmp_path_factory.mktemp(name)) for name in names}


@pytest.fixture(scope="module")
def contexts(
    cards: dict[str, Card], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Context]:
    """One each: what was measured of a model stays in its checkpoint, for all tests."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: context_for(card, folder / name, PLUGINS) for name, card in cards.items()}


def technique(**config: Any) -> MixedPrecision:
    return MixedPrecision(MixedPrecisionConfig.model_validate(config))


def other(name: str, **config: Any) -> Technique[Any]:
    kind = PLUGINS.technique(name)
    return kind(kind.config_type.model_validate(config))


def original(context: Context) -> Model:
    assert context.teacher is not None
    return Model(context.teacher(None), PLUGINS.layers)


def applied(context: Context, **config: Any) -> tuple[Model, Outcome]:
    model = original(context)
    return model, technique(**config).apply(model, context)


def files(result: Result) -> int:
    return sum(f.stat().st_size for f in result.artifact.iterdir() if f.name != "README.md")


@pytest.mark.parametrize("name", ["cnn", "lstm", "transformer"])
def test_a_ratio_is_met_in_the_bytes_of_all_files(
    name: str, cards: dict[str, Card], tmp_path: Path
) -> None:
    result = run_chain([technique(target={"ratio": 3})], cards[name], tmp_path, PLUGINS)
    assert result.report.original_size_bytes / files(result) >= 3
    (claim,) = result.report.last.claims
    assert claim.reached >= claim.requested
    bits = result.report.last.notes["bits"]
    assert len({*bits.values()}) > 1  # mixed
    model = reload_artifact(result.artifact, cards[name], PLUGINS)
    packed = packed_weights(model.module)
    assert {n: b for n, b in bits.items() if b != "float"} == {
        n: p.bits for n, p in packed.items() if n in bits
    }


def test_pruning_before_and_coding_after_shrink_further(
    cards: dict[str, Card], tmp_path: Path
) -> None:
    chain = [
        other("magnitude_pruning", sparsity=0.5),
        technique(target={"ratio": 4}),
        other("entropy_coding"),
    ]
    result = run_chain(chain, cards["cnn"], tmp_path, PLUGINS)
    assert result.report.original_size_bytes / files(result) > 4
    model = reload_artifact(result.artifact, cards["cnn"], PLUGINS)
    assert model.masks
    for name, keep in model.masks.items():
        codes = model.integers().get(name)
        if codes is not None:
            assert bool((codes.values[~keep] == 0).all())


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["cnn", "lstm", "transformer"]),
    limit=st.floats(5, 12),
    more=st.floats(0, 4),
)
def test_more_bits_do_no_more_damage_and_budgets_are_kept(
    name: str, limit: float, more: float, contexts: dict[str, Context]
) -> None:
    outcomes = []
    for target in (limit, limit + more):
        model, outcome = applied(contexts[name], target={"bits_per_weight": target})
        packed = packed_weights(model.module)
        names = outcome.notes["bits"]
        own = {id(t): t.nbytes for n in packed if n in names for t in packed[n].buffers()}
        floats = [w for w in model.weights() if w.name in names]
        count = sum(w.parameter.numel() for w in original(contexts[name]).weights())
        taken = 8 * (sum(own.values()) + sum(w.parameter.nbytes for w in floats)) / count
        assert taken <= target
        assert taken == pytest.approx(outcome.notes["bits_per_weight"])
        outcomes.append(outcome)
    assert outcomes[1].notes["damage"] <= outcomes[0].notes["damage"] * (1 + 1e-9)
    assert all(outcome.notes["optimality_gap"] <= 1e-9 for outcome in outcomes)


def test_a_fidelity_is_reached_with_fewer_bytes_than_equal_bits_of_no_more_damage(
    cards: dict[str, Card], tmp_path: Path
) -> None:
    mixed = technique(target={"cosine": 0.99}, sensitivity="none")
    result = run_chain([mixed], cards["lstm"], tmp_path, PLUGINS)
    (claim,) = result.report.last.claims
    assert claim.reached >= claim.requested == 0.99
    notes = result.report.last.notes
    equal = {}
    for bits in range(2, 9):
        context = context_for(cards["lstm"], tmp_path / str(bits), PLUGINS)
        equal[bits] = applied(
            context,
            bits=[bits],
            floats=False,
            sensitivity="none",
            target={"bits_per_weight": 16},
        )[1].notes
    fine = [n["bits_per_weight"] for n in equal.values() if n["damage"] <= notes["damage"]]
    assert notes["bits_per_weight"] <= min(fine)


@pytest.mark.parametrize(
    ("target", "least"),
    [({"bits_per_weight": 0.5}, "least possible is"), ({"size_bytes": 900}, "least possible is")],
)
def test_a_budget_that_cannot_be_met_is_refused_with_the_least_possible(
    target: dict[str, float], least: str, cards: dict[str, Card], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=least):
        run_chain([technique(target=target)], cards["lstm"], tmp_path, PLUGINS)


def test_a_fidelity_beyond_the_bits_allowed_is_refused(contexts: dict[str, Context]) -> None:
    with pytest.raises(StageError, match="most bits allowed"):
        applied(contexts["lstm"], target={"cosine": 0.9999999}, bits=[2], floats=False)


def test_a_budget_that_floats_meet_changes_nothing_and_says_so(
    contexts: dict[str, Context],
) -> None:
    with pytest.raises(StageError, match="stay in floating point"):
        applied(contexts["cnn"], target={"cosine": 0.999999999999})


@pytest.mark.parametrize("sensitivity", ["moments", "none"])
def test_cheaper_estimates_are_named(
    sensitivity: str, cards: dict[str, Card], tmp_path: Path
) -> None:
    context = context_for(cards["transformer"], tmp_path, PLUGINS)
    _, outcome = applied(context, target={"bits_per_weight": 6}, sensitivity=sensitivity)
    assert outcome.notes["sensitivity"] == sensitivity
    without = outcome.notes.get("without_moments", {})
    assert (sensitivity == "moments") == any("embedding" in name for name in without)


def test_what_was_measured_before_a_kill_is_not_measured_again(
    cards: dict[str, Card], tmp_path: Path
) -> None:
    context = context_for(cards["cnn"], tmp_path, PLUGINS)
    _, first = applied(context, target={"bits_per_weight": 6})
    calls = 0
    call = context.call

    def counted(module: torch.nn.Module, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return call(module, batch)

    context.call = counted
    _, second = applied(context, target={"bits_per_weight": 6})
    assert calls == 0
    assert second.notes["bits"] == first.notes["bits"]


def test_configs_that_mean_nothing_are_refused() -> None:
    for wrong in ({"target": {"ratio": 4}, "bits": [9]}, {"target": {}}, {"bits": [4]}):
        with pytest.raises(ValidationError):
            MixedPrecisionConfig.model_validate(wrong)


class Odd(torch.nn.Module):
    """A tied table, a transposed convolution, fused gates, experts in one parameter, and NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(40, 24)
        self.gates = torch.nn.GRU(24, 24, batch_first=True)
        self.up = torch.nn.ConvTranspose1d(24, 24, 3, padding=1)
        self.experts = torch.nn.Parameter(torch.randn(3, 24, 24) / 5)
        self.unused = torch.nn.Linear(24, 24)
        self.out = torch.nn.Linear(24, 40, bias=False)
        self.out.weight = self.table.weight
        with torch.no_grad():
            self.unused.weight[0, 0] = torch.nan

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, _ = self.gates(self.table(tokens))
        x = self.up(x.mT).mT
        x = torch.einsum("blc,edc->bld", x, self.experts).tanh()
        return self.out(x)


@pytest.mark.parametrize("sensitivity", ["outputs", "none"])
def test_every_kind_of_weight_gets_bits_and_tied_ones_count_once(
    sensitivity: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Odd().eval()
    tokens = torch.randint(0, 40, (8, 10))
    context = Context(
        seed=0,
        device=torch.device("cpu"),
        batches=lambda: [tokens],
        call=lambda module, batch: module(batch).detach(),
        progress=lambda item, fraction=None: None,
        checkpoint=tmp_path,
        plugins=PLUGINS,
    )
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = Model(module, PLUGINS.layers)
    stage = technique(target={"bits_per_weight": 6}, sensitivity=sensitivity)
    outcome = stage.apply(model, context)
    bits = outcome.notes["bits"]
    kinds = {"table.weight", "gates.weight_ih_l0", "gates.weight_hh_l0", "up.weight", "experts"}
    assert set(bits) == kinds
    assert "NaN" in outcome.notes["left"]["unused.weight"]
    packed = packed_weights(module)
    for name, width in bits.items():
        if width != "float":
            assert packed[name].bits == width
            off = (packed[name].value() - before[name]).norm() / before[name].norm()
            assert 0 < off < 2.0 ** (2 - int(width))
    if bits["table.weight"] != "float":
        assert packed["out.weight"].codes.data_ptr() == packed["table.weight"].codes.data_ptr()
    assert bool(module(tokens).isfinite().all())
