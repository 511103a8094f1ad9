"""What happens with gradients: models that take or forbid them, and training of unusual ones."""

from __future__ import annotations

import pytest
import torch

from real_use_case import MakeCase, error
from zoopress.errors import ZoopressError

DISTILLED = {
    "technique": "magnitude_pruning",
    "sparsity": 0.3,
    "recovery": {"technique": "distillation", "steps": 3, "evaluations": 1},
}
FISHER = {"technique": "magnitude_pruning", "sparsity": 0.3, "criterion": "fisher"}


def net(forward: str, made: str = "", data: str = "torch.randn(96, 32, generator=g())") -> str:
    def indented(text: str) -> str:
        return "\n".join(f"        {line}" for line in text.strip().splitlines())

    return f"""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(32, 64)
        self.b = nn.Linear(64, 16)
{indented(made)}

    def forward(self, x):
{indented(forward)}


def build():
    return Net()


def inputs():
    return {data}
"""


ENERGY = (
    "e = torch.tanh(self.b(torch.tanh(self.a(x)))).sum()\n"
    "return -torch.autograd.grad(e, x, create_graph=True)[0]"
)


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


@pytest.mark.parametrize(
    "forward",
    [
        "x = x.detach().requires_grad_()\n" + ENERGY,
        "with torch.enable_grad():\n    x = x.detach().requires_grad_()\n" + indented(ENERGY),
        "return torch.func.vmap(torch.func.grad("
        "lambda y: torch.tanh(self.b(torch.tanh(self.a(y)))).sum()))(x)",
    ],
)
def test_models_that_take_gradients_inside_are_measured_and_trained(
    case: MakeCase, forward: str
) -> None:
    it = case(net(forward))
    x = it.module.inputs()[:4]
    for stage in (DISTILLED, {"technique": "float_precision"}):
        result = it.compress(stage)
        with torch.enable_grad():
            wanted, got = it.model(x).detach(), it.load(result)(x).detach().float()
        assert error(wanted, got) < 0.6
        assert result.report.stages[-1].fidelity.cosine > 0.9
    coded = it.load(it.compress({"technique": "entropy_coding"}))
    assert error(it.model(x).detach(), coded(x).detach()) == 0.0


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ("assert self.training, 'no'", "AssertionError: no"),
        ("if not self.training:\n        raise LookupError('no')", "LookupError: no"),
    ],
)
def test_models_that_forbid_gradients_outside_of_training(
    case: MakeCase, check: str, words: str
) -> None:
    it = case(
        net(f"if torch.is_grad_enabled():\n    {check}\nreturn self.b(torch.relu(self.a(x)))")
    )
    assert it.compress(DISTILLED).report.stages[-1].fidelity.cosine > 0.9
    with pytest.raises(
        ZoopressError,
        match=rf"own code fails when gradients are taken in evaluation mode: ({words}).*"
        r"in forward\).*another criterion",
    ):
        it.compress(FISHER)


def test_a_model_that_gives_its_loss_in_training_is_refused(case: MakeCase) -> None:
    it = case(
        net(
            "y = self.b(torch.relu(self.a(x)))\n"
            "return {'loss': y.square().mean()} if self.training else y"
        )
    )
    with pytest.raises(ZoopressError, match=r"In training mode: .* the model returns loss"):
        it.compress(DISTILLED)


def test_a_model_that_fails_in_training_names_its_line(case: MakeCase) -> None:
    it = case(
        net("if self.training:\n    raise KeyError('aux')\nreturn self.b(torch.relu(self.a(x)))")
    )
    with pytest.raises(
        ZoopressError, match=r"own code fails in training mode: KeyError: 'aux' \(.*line \d+"
    ):
        it.compress(DISTILLED)


def test_a_model_that_keeps_a_graph_is_refused_in_training(case: MakeCase) -> None:
    it = case(
        net(
            "if self.training and self.w is None:\n    self.w = self.a.weight * 2\n"
            "w = self.w if self.training else self.a.weight * 2\n"
            "return self.b(torch.relu(F.linear(x, w)))",
            "self.w = None",
        )
    )
    with pytest.raises(ZoopressError, match="keeps tensors of one forward pass for the next"):
        it.compress(DISTILLED)


def test_a_table_made_at_the_first_call_does_not_hinder_training(case: MakeCase) -> None:
    it = case(
        net(
            "if self.cos is None:\n"
            "    self.cos = torch.cos(torch.arange(64) * torch.linspace(0.1, 1, 64))\n"
            "return self.b(torch.relu(self.a(x) * self.cos))",
            "self.cos = None",
        )
    )
    for stage in (DISTILLED, {"technique": "distillation", "steps": 3, "evaluations": 0}, FISHER):
        assert it.compress(stage).report.stages[-1].fidelity.cosine > 0.9


def test_sparse_gradients_are_taken(case: MakeCase) -> None:
    it = case(
        net(
            "return self.b(torch.relu(self.a(self.e(x).mean(1) + self.g(x))))",
            "self.e = nn.Embedding(40, 32, sparse=True)\n"
            "self.g = nn.EmbeddingBag(40, 32, sparse=True, mode='sum')",
            "torch.randint(0, 40, (96, 10), generator=g())",
        )
    )
    kinds = ["linear", "embedding"]
    for stage in (DISTILLED, FISHER, {**FISHER, "kinds": kinds}):
        assert it.compress(stage).report.stages[-1].fidelity.cosine > 0.8
    rate = {"technique": "rate_distortion_quantization", "slope": 1e-9, "kinds": kinds}
    assert it.compress(rate).report.stages[-1].fidelity.cosine > 0.8


@pytest.mark.parametrize("technique", ["magnitude_pruning", "neuron_pruning"])
def test_heads_of_training_alone_survive(case: MakeCase, technique: str) -> None:
    it = case(
        net(
            "h = torch.relu(self.h(torch.relu(self.a(x))))\n"
            "return (self.o(h), self.aux(h)) if self.training else self.o(h)",
            "self.h = nn.Linear(64, 48)\nself.o = nn.Linear(48, 16)\n"
            "self.aux = nn.Sequential(nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 16))",
        )
    )
    stage = {**DISTILLED, "technique": technique, "sparsity": 0.25}
    result = it.compress(stage)
    trained = it.load(result).train()
    assert [t.shape for t in trained(it.module.inputs()[:4])] == [(4, 16), (4, 16)]


@pytest.mark.parametrize(
    "stage",
    [
        FISHER,
        {"technique": "rate_distortion_quantization", "target": {"bits_per_weight": 5}},
    ],
)
def test_what_a_model_keeps_of_a_call_has_no_part_in_the_next_ones_gradients(
    case: MakeCase, stage: dict[str, object]
) -> None:
    forward = """
if self.training:
    self.kept = {}
elif "bias" not in self.kept:
    self.kept["bias"] = torch.tanh(self.table[:, self.index])
kept = self.kept.get("bias", torch.tanh(self.table[:, self.index]))
return self.b(torch.relu(self.a(x)) + kept.sum(0))
"""
    made = """
self.table = nn.Parameter(torch.randn(3, 8))
self.index = torch.arange(64) % 8
self.kept = {}
"""
    it = case(net(forward, made))
    result = it.compress(stage)
    assert result.report.stages[-1].fidelity.cosine > 0.9
    x = it.module.inputs()[:4]
    assert error(it.model(x).detach(), it.load(result)(x).detach()) < 0.5


@pytest.mark.parametrize(
    "stage",
    [
        FISHER,
        {"technique": "rate_distortion_quantization", "target": {"bits_per_weight": 5}},
        DISTILLED,
    ],
)
def test_a_forward_that_overwrites_what_gradients_need_is_named_as_the_cause(
    case: MakeCase, stage: dict[str, object]
) -> None:
    forward = "h = torch.exp(self.a(x))\nh.add_(1)\nreturn self.b(h)"
    with pytest.raises(ZoopressError, match=r"No gradients can be taken.*changes them in place"):
        case(net(forward)).compress(stage)


def test_a_backward_pass_of_its_own_that_fails_is_named(case: MakeCase) -> None:
    made = """
class Asks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        assert False, "train me in training mode"
"""
    it = case(made + net("return self.b(Asks.apply(torch.relu(self.a(x))))"))
    for stage in (FISHER, {"technique": "rate_distortion_quantization", "target": {"ratio": 4}}):
        with pytest.raises(ZoopressError, match=r"own code fails when gradients.*train me"):
            it.compress(stage)
