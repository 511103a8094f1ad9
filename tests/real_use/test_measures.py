"""What a target on outputs means for models with more, fewer or other outputs than one vector."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from real_use_case import Case, MakeCase, call, error
from zoopress.errors import CardError, GateError, ZoopressError

HARSH = {"technique": "magnitude_pruning", "sparsity": 0.99}
MILD = {"technique": "weight_quantization", "bits": 8, "group_size": 32}
CLOSE = {"min_cosine": 0.9999}

NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(32, 64)
        self.h = nn.Linear(64, 64)
        self.b = nn.Linear(64, {width})
        self.register_buffer("fixed", torch.randn(32, 8, generator=g(3)))

    def forward(self, x):
        y = self.b(torch.relu(self.h(torch.relu(self.a(x)))))
        {answer}


def build():
    return Net()


def inputs():
    return torch.randn(400, 32, generator=g())
"""


def net(case: MakeCase, answer: str, width: int = 16, before: str = "") -> Case:
    return case(before + NET.format(answer=answer.strip(), width=width))


@pytest.mark.parametrize(
    "answer",
    [
        "return F.softplus(8 * y)",
        "return y.squeeze(1)",
        "return {'score': torch.sigmoid(y)}",
        "return (y.view(-1, 1, 1, 1),)",
    ],
)
def test_one_number_a_sample_is_held_to_the_numbers_of_the_others(
    case: MakeCase, answer: str
) -> None:
    it = net(case, answer, width=1)
    with pytest.raises(GateError, match=r"concordance .*below the target"):
        it.compress({**HARSH, "targets": {"min_cosine": 0.9}})
    result = it.compress({**MILD, "targets": {"min_cosine": 0.99}})
    assert result.report.last.fidelity.outputs[0].measure == "concordance"


def test_a_search_for_a_cosine_does_not_end_at_a_constant(case: MakeCase) -> None:
    it = net(case, "return F.softplus(8 * y)", width=1)
    target = {"technique": "rate_distortion_quantization", "target": {"cosine": 0.999}}
    result = it.compress(target, calibration_samples=64, evaluation_samples=64)
    x = it.module.inputs()[-100:]
    pair = torch.stack([call(it.model, x).flatten(), call(it.load(result), x).flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.95


@pytest.mark.parametrize("offset", ["10", "1000", "torch.arange(16) * 100.0"])
def test_a_large_mean_hides_no_lost_signal(case: MakeCase, offset: str) -> None:
    it = net(case, f"return y + {offset}")
    with pytest.raises(
        GateError, match=r"concordance is .*a constant output would reach (0\.99|1\.0)"
    ):
        it.compress({**HARSH, "targets": {"min_cosine": 0.99}})
    it.compress({**MILD, "targets": {"min_cosine": 0.99}})


@pytest.mark.parametrize(
    ("answer", "measure"),
    [
        ("return self.fixed.mean(0).expand(len(x), -1), y", "cosine of '1'"),
        ("return {'loss': x.mean(), 'logits': x @ self.fixed, 'more': {'y': y}}", "more"),
        ("return x @ self.fixed, y.argmax(1)", "agreement of '1'"),
        ("return x @ self.fixed, y > 0", "agreement of '1'"),
        ("return [x @ self.fixed, [y, None]]", "cosine of '1.0'"),
        ("return torch.complex(x @ self.fixed, 60 * y)", "cosine"),
        ("return Answer(x @ self.fixed, y)", "cosine of 'hidden'"),
        ("return Pair(x @ self.fixed, y)", "cosine of 'second'"),
        ("return x @ self.fixed, Holder(y)", "cosine of '1.kept'"),
        ("return x @ self.fixed, y.to_sparse()", "cosine of '1'"),
    ],
)
def test_the_worst_of_all_outputs_decides(case: MakeCase, answer: str, measure: str) -> None:
    before = """
from dataclasses import dataclass
from typing import NamedTuple


@dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Holder:
    def __init__(self, kept):
        self.kept = kept

"""
    it = net(case, answer, width=8, before=before)
    with pytest.raises(GateError) as raised:
        it.compress({**HARSH, "targets": {"min_cosine": 0.99}})
    assert measure in str(raised.value)
    result = it.compress(MILD)
    assert result.report.last.fidelity.cosine > 0.9
    assert result.report.quality[-1].like_original


def test_only_real_outputs_of_samples_are_what_techniques_look_at(case: MakeCase) -> None:
    it = net(case, "return {'loss': y.mean(), 'codes': y.argmax(1), 'values': y}")
    result = it.compress({"technique": "rate_distortion_quantization", "target": {"cosine": 0.999}})
    fidelity = result.report.last.fidelity
    assert {each.name for each in fidelity.outputs} == {"loss", "codes", "values"}
    assert fidelity.label_loyalty is None  # values are no scores of classes
    assert result.report.evaluation.get("task") is None


def test_integers_alone_are_compared_by_how_many_are_equal(case: MakeCase) -> None:
    it = net(case, "return y.argmax(1)")
    (output,) = it.compress(MILD).report.last.fidelity.outputs
    assert (output.kind, output.measure) == ("integer", "agreement")
    assert output.value > 0.8
    with pytest.raises(GateError, match="agreement is"):
        it.compress({**HARSH, "targets": {"min_cosine": 0.8}})


def test_states_of_recurrent_layers_count(case: MakeCase) -> None:
    it = case("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.r = nn.LSTM(8, 32, batch_first=True)
        self.register_buffer("w", torch.randn(8, 4, generator=g(2)))

    def forward(self, x):
        return x[:, -1] @ self.w, self.r(x)[1]


def build():
    return Net()


def inputs():
    return torch.randn(64, 5, 8, generator=g())
""")
    with pytest.raises(GateError, match=r"cosine of '1\.[01]'"):
        it.compress({**HARSH, "kinds": ["recurrent"], "targets": CLOSE})


def test_what_would_become_infinite_is_told_by_the_name_of_its_weight(case: MakeCase) -> None:
    it = net(
        case,
        "return {'codes': y.argmax(1), 'audio': y.float() * self.h.weight.abs().max().float()}",
    )
    with torch.no_grad():
        it.model.h.weight.mul_(1e7)
        it.model.b.weight.mul_(1e-7)
    torch.save(it.model.state_dict(), it.folder / "weights.pt")
    with pytest.raises(ZoopressError, match=r"h\.weight: .*too large") as raised:
        it.compress({"technique": "float_precision", "dtype": "float16"})
    assert "bug" not in str(raised.value)


def test_what_a_mask_holds_of_infinity_is_no_fault(case: MakeCase) -> None:
    it = net(case, "return y, torch.full((len(x), 4), -torch.inf).triu(1)[:, :4]")
    fidelity = it.compress({**MILD, "targets": {"min_cosine": 0.99}}).report.last.fidelity
    assert all(each.finite for each in fidelity.outputs)


def test_a_card_names_the_outputs_that_count(case: MakeCase) -> None:
    it = net(case, "return {'anchors': x @ self.fixed, 'y': y}")
    stage = {**HARSH, "targets": CLOSE}
    it.compress(stage, outputs=["anchors"])
    with pytest.raises(GateError, match="of 'y'"):
        it.compress(stage, outputs=["y"])
    with pytest.raises(
        CardError, match=r"no output 'anchor', but anchors .*Did you mean 'anchors'"
    ):
        it.compress(stage, outputs=["anchor"])


@pytest.mark.parametrize(
    "answer",
    [
        "return y.mean()",
        "return y.mean(0)",
        "return {'loss': y.square().mean()}",
        "return {'text': 'none'}",
        "return y.sum(0, keepdim=True).expand(5, -1)",
    ],
)
@pytest.mark.parametrize("technique", ["weight_quantization", "rate_distortion_quantization"])
def test_outputs_without_samples_are_refused_in_words(
    case: MakeCase, answer: str, technique: str
) -> None:
    it = net(case, answer)
    stage: dict[str, Any] = {"technique": technique}
    if technique.startswith("rate"):
        stage["target"] = {"bits_per_weight": 6}
    with pytest.raises(CardError, match=r"has an axis of samples.*Let the factory return"):
        it.compress(stage)


SEQUENCES = """
from torch.nn.utils.rnn import pack_padded_sequence


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.i = nn.Linear(8, 32)
        self.r = nn.GRU(32, 32, batch_first={first})
        self.o = nn.Linear(32, 8)

    def forward(self, x):
        h = torch.relu(self.i(x))
        {answer}


def build():
    return Net()


def inputs():
    return torch.randn(64, 6, 8, generator=g())
"""


@pytest.mark.parametrize(
    ("first", "answer"),
    [
        ("False", "return self.o(self.r(h.transpose(0, 1))[0])"),
        ("True", "return self.o(self.r(h)[0]).flatten(0, 1)"),
        (
            "True",
            "return self.r(pack_padded_sequence(h, torch.arange(len(x)) % 6 + 1, "
            "batch_first=True, enforce_sorted=False))[0]",
        ),
        (
            "True",
            "return [{'boxes': t[: 1 + int(s > 0)], 's': t[:1, 0]} for t, s in "
            "zip(self.o(self.r(h)[0]), x.sum((1, 2)))]",
        ),
        (
            "True",
            "return [t[: 1 + int(s > 0)] for t, s in zip(self.o(self.r(h)[0]), x.sum((1, 2)))]",
        ),
    ],
)
@pytest.mark.parametrize("technique", ["weight_quantization", "rate_distortion_quantization"])
def test_samples_are_found_wherever_they_are(
    case: MakeCase, first: str, answer: str, technique: str
) -> None:
    it = case(SEQUENCES.format(first=first, answer=answer))
    stage: dict[str, Any] = {"technique": technique}
    if technique.startswith("rate"):
        stage["target"] = {"cosine": 0.995}
    result = it.compress({**stage, "targets": {"min_cosine": 0.9}})
    assert result.report.last.fidelity.samples == 32
    with pytest.raises(GateError):
        it.compress({**HARSH, "targets": {"min_cosine": 0.99}})


def test_lengths_that_follow_from_values_may_differ(case: MakeCase) -> None:
    it = net(case, "return y[y[:, 0] > 0] if len(x) < 0 else (y, y[y[:, 0] > 0])")
    result = it.compress({"technique": "weight_quantization", "bits": 4, "group_size": 32})
    second = result.report.last.fidelity.outputs[1]
    assert second.problem is None
    assert (
        0
        < error(call(it.model, it.module.inputs())[0], call(it.load(result), it.module.inputs())[0])
        < 0.3
    )
