"""Models that do not equal themselves, and models that write into what they are given."""

from __future__ import annotations

import pytest
import torch

from real_use_case import MakeCase, call
from zoopress.errors import SourceError

LEARNING = {"technique": "rate_distortion_quantization", "target": {"cosine": 0.99}}
CODED = {"technique": "entropy_coding"}

NET = """
import random
import numpy as np

CALLS = []
OWN = torch.Generator()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(32, 64)
        self.b = nn.Linear(64, 16)
        self.register_buffer("s", torch.zeros(64), persistent=False)
        self.h = torch.zeros(64)
        self.n = 0
        {init}

    def forward(self, x):
        h = torch.relu(self.a(x))
        {middle}
        return self.b(h)


def build():
    {seed}
    return Net()


def inputs():
    return torch.randn(64, 32, generator=g())
"""


def net(init: str = "pass", middle: str = "pass", seed: str = "pass") -> str:
    return NET.format(init=init, middle=middle, seed=seed)


@pytest.mark.parametrize(
    "middle",
    [
        "h = F.dropout(h, 0.2)",
        "h = h + torch.randn_like(h)",
        "h = h * float(np.random.rand())",
        "h = h * random.random()",
        "h = h[:, torch.randperm(64)]",
    ],
)
def test_random_models_are_compared_on_the_same_random_numbers(case: MakeCase, middle: str) -> None:
    result = case(net(middle=middle)).compress(CODED)
    fidelity = result.report.last.fidelity
    assert fidelity.seeded
    assert fidelity.cosine == pytest.approx(1.0)
    assert result.report.last.reload_difference == 0


def test_lengths_that_are_drawn_are_the_same_too(case: MakeCase) -> None:
    middle = "h = h[:, None].expand(-1, int(torch.randint(3, 9, ())), -1)"
    fidelity = case(net(middle=middle)).compress(CODED).report.last.fidelity
    assert (fidelity.seeded, fidelity.cosine) == (True, pytest.approx(1.0))


@pytest.mark.parametrize(
    ("middle", "cause"),
    [
        ("self.h = 0.9 * self.h + 0.1 * h.mean(0).detach(); h = h + self.h", "'h' changed"),
        ("self.s += h.mean(0); h = h + self.s", "'s' changed"),
        ("self.n += 1; h = h + self.n", "'n' changed"),
        ("h = h + torch.randn(64, generator=OWN)", "generator of its own"),
        ("CALLS.append(1); h = h + len(CALLS)", "not among its inputs"),
    ],
)
def test_models_that_are_others_with_each_call_are_refused_with_the_cause(
    case: MakeCase, middle: str, cause: str
) -> None:
    with pytest.raises(SourceError, match="called again with the same inputs") as raised:
        case(net(middle=middle)).compress(CODED)
    assert cause in str(raised.value)


@pytest.mark.parametrize(
    ("init", "middle", "seed", "cause"),
    [
        ("self.t = torch.randn(64, 64)", "h = h @ self.t", "pass", "'t'"),
        ("self.t = torch.randn(64, 64)", "h = h @ self.t", "torch.manual_seed(0)", "'t'"),
        ("self.t = [torch.randn(64)]", "h = h * self.t[0]", "pass", "'t[0]'"),
        ("self.t = np.random.rand(64)", "h = h * torch.tensor(self.t).float()", "pass", "'t'"),
        ("self.t = random.random()", "h = h * self.t", "pass", "'t'"),
        ("t = torch.randn(64); self.f = lambda h: h * t", "h = self.f(h)", "pass", "state dict"),
        ("self.d = {'t': torch.randn(64)}", "h = h * self.d['t']", "pass", "\"d['t']\""),
    ],
)
def test_models_that_are_others_when_built_again_are_refused_with_the_cause(
    case: MakeCase, init: str, middle: str, seed: str, cause: str
) -> None:
    with pytest.raises(SourceError, match="another model once it is built anew") as raised:
        case(net(init, middle, seed)).compress(CODED)
    assert cause in str(raised.value)


def test_what_is_computed_when_it_is_built_is_no_chance(case: MakeCase) -> None:
    it = case(net("self.t = torch.arange(64) / 64", "h = h * self.t"))
    assert not it.compress(CODED).report.last.fidelity.seeded


IN_PLACE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 32, 3, padding=1)
        self.d = nn.Conv2d(32, 32, 3)
        self.f = nn.Linear(32, 10)

    def forward(self, x):
        {change}
        return self.f(self.d(torch.relu(self.c(x))).mean((2, 3)))


def build():
    return Net()


def inputs():
    return torch.rand(96, 3, 8, 8, generator=g())
"""


@pytest.mark.parametrize(
    "change",
    [
        "x.sub_(0.5).div_(0.25)",
        "x.data.mul_(3)",
        "x[:, 0] = x[:, 0] * 2",
        "x.numpy()[...] *= 2",
        "torch.mul(x, 2, out=x)",
    ],
)
@pytest.mark.parametrize(
    "stage",
    [
        CODED,
        {"technique": "float_precision"},
        {"technique": "neuron_pruning", "sparsity": 0.25},
        LEARNING,
    ],
    ids=lambda stage: stage["technique"],
)
def test_samples_stay_as_they_are(case: MakeCase, change: str, stage: dict[str, object]) -> None:
    if "numpy" in change and stage["technique"] in ("float_precision", LEARNING["technique"]):
        pytest.skip("numpy knows neither gradients nor bfloat16")
    it = case(IN_PLACE.format(change=change))
    result = it.compress(stage)
    x = it.module.inputs()[:32]
    pair = call(it.model, x), call(it.load(result), x).float()
    true = torch.nn.functional.cosine_similarity(*pair, dim=1).mean()
    assert result.report.last.fidelity.cosine == pytest.approx(float(true), abs=1e-4)


def test_training_sees_its_samples_as_they_are(case: MakeCase) -> None:
    stage = {
        **{"technique": "magnitude_pruning", "sparsity": 0.5},
        "recovery": {"technique": "distillation", "epochs": 2},
    }
    plain = case(IN_PLACE.format(change="x = x - 0.5")).compress(stage)
    written = case(IN_PLACE.format(change="x.sub_(0.5)")).compress(stage)
    cosines = [each.report.last.fidelity.cosine for each in (plain, written)]
    assert cosines[0] == pytest.approx(cosines[1], abs=1e-6)
