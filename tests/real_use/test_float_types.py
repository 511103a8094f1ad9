"""Models whose own code needs float32 amid 16 bits, and those that come in 16 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from real_use_case import MakeCase, call, error
from zoopress.errors import ZoopressError

LOWERED = {"technique": "float_precision"}
VECTORS = """

def build():
    return Net()


def inputs():
    return torch.randn(96, 32, generator=g())
"""
SEQUENCES = VECTORS.replace("96, 32", "96, 5, 32")
TOKENS = VECTORS.replace("torch.randn(96, 32,", "torch.randint(0, 40, (96, 10),")


def net(made: str, forward: str, data: str = VECTORS, before: str = "") -> str:
    def indented(text: str) -> str:
        return "\n".join(f"        {line}" for line in text.strip().splitlines())

    return f"""{before}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
{indented(made)}

    def forward(self, x):
{indented(forward)}
{data}"""


PAIR = "self.a = nn.Linear(32, 64)\nself.b = nn.Linear(64, 16)"
FILTER = """
class Filter(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(64) / 4)

    def forward(self, x):
        return torch.fft.ifft(torch.fft.fft(x) * torch.fft.fft(self.w)).real


"""
RMS = """
class RMS(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(64))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.w


"""
MODELS: dict[str, tuple[str, list[str]]] = {
    "a table": (
        net(
            "self.e = nn.Embedding(40, 32)\n" + PAIR + "\n"
            "pe = torch.linspace(-1, 1, 320).reshape(10, 32)\n"
            "self.register_buffer('pe', pe, persistent=False)",
            "return self.b(torch.relu(self.a(self.e(x) + self.pe)))",
            TOKENS,
        ),
        [],
    ),
    "a Fourier transform": (
        net(PAIR, "return self.b(torch.fft.fft(torch.relu(self.a(x))).real)"),
        [],
    ),
    "a layer of Fourier transforms": (
        net(PAIR + "\nself.f = Filter()", "return self.b(self.f(self.a(x)))", before=FILTER),
        ["f.w"],
    ),
    "zeros made on the way": (net(PAIR, "return self.b(self.a(x) + torch.zeros(64))"), []),
    "a bare weight": (
        net(
            PAIR + "\nself.w = nn.Parameter(torch.randn(64, 64) / 8)",
            "return self.b((self.a(x) + torch.ones(64)) @ self.w)",
        ),
        ["w"],
    ),
    "a table of words as the last layer": (
        net(
            "self.e = nn.Embedding(40, 32)\nself.a = nn.Linear(32, 32)",
            "h = self.a(self.e(x) + torch.ones(32))\nreturn F.linear(h, self.e.weight)",
            TOKENS,
        ),
        ["e.weight"],
    ),
    "a state made on the way": (
        net(
            "self.r = nn.LSTM(32, 24, batch_first=True)\nself.b = nn.Linear(24, 16)",
            "h = torch.zeros(1, len(x), 24)\nreturn self.b(self.r(x, (h, h.clone()))[0][:, -1])",
            SEQUENCES,
        ),
        [],
    ),
    "attention with a mask": (
        net(
            "self.m = nn.MultiheadAttention(32, 4, batch_first=True)\nself.b = nn.Linear(32, 16)",
            "mask = torch.full((5, 5), float('-inf')).triu(1)\n"
            "return self.b(x + self.m(x, x, x, attn_mask=mask)[0])",
            SEQUENCES,
        ),
        [],
    ),
    "a transformer of torch's": (
        net(
            "self.m = nn.TransformerEncoder("
            "nn.TransformerEncoderLayer(32, 4, 48, batch_first=True), 2)\n"
            "self.b = nn.Linear(32, 16)",
            "mask = torch.full((5, 5), float('-inf')).triu(1)\n"
            "return self.b(self.m(x + torch.linspace(0, 1, 32), mask=mask))",
            SEQUENCES,
        ),
        [],
    ),
    "spectra": (
        net(
            "self.register_buffer('w', torch.hann_window(32))\nself.c = nn.Conv1d(17, 32, 3)\n"
            "self.b = nn.Linear(32, 16)",
            "s = torch.stft(x, 32, 16, window=self.w, return_complex=True).abs()\n"
            "return self.b(torch.relu(self.c(s)).mean(-1))",
            VECTORS.replace("96, 32", "96, 256"),
        ),
        ["w"],
    ),
    "one layer of float64": (
        net(
            PAIR + "\nself.c = nn.Linear(64, 64).double()",
            "return self.b(self.c(self.a(x).double()).float())",
        ),
        [],
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", MODELS)
def test_layers_compute_in_16_bits_where_the_code_between_makes_float32(
    case: MakeCase, kind: str, dtype: str
) -> None:
    source, kept = MODELS[kind]
    it = case(source)
    result = it.compress({**LOWERED, "dtype": dtype})
    notes, x = result.report.stages[-1].notes, it.module.inputs()[:8]
    found = it.load(result)
    assert error(call(it.model, x), call(found, x)) < 0.02
    assert notes["also_kept"] == kept
    assert notes["layers_in_16_bits"] >= 1
    assert notes["float32_between_layers_because"]
    low = {n for n, p in found.named_parameters() if p.dtype == getattr(torch, dtype)}
    assert low == {n for n, _ in found.named_parameters()} - set(kept)


def test_what_leaves_the_range_of_float16_stays_in_float32(case: MakeCase) -> None:
    it = case(
        net(
            PAIR + "\nself.n = RMS()",
            "return self.b(self.n(30000 * torch.relu(self.a(x))))",
            before=RMS,
        )
    )
    x = it.module.inputs()[:8]
    result = it.compress({**LOWERED, "dtype": "float16"})
    assert error(call(it.model, x), call(it.load(result), x)) < 0.02
    assert result.report.stages[-1].notes["also_kept"] == ["n.w"]
    assert "leaves the range" in result.report.stages[-1].notes["float32_between_layers_because"]


def test_masks_beyond_the_range_of_float16_do_no_harm(case: MakeCase) -> None:
    it = case(net(PAIR, "h = self.a(x)\nreturn self.b(h.masked_fill(h < 0, -1e9).softmax(-1))"))
    x = it.module.inputs()[:8]
    found = it.load(it.compress({**LOWERED, "dtype": "float16"}))
    assert error(call(it.model, x), call(found, x)) < 0.01


def test_a_whole_model_still_computes_in_16_bits_where_it_can(case: MakeCase) -> None:
    it = case(net(PAIR, "return self.b(torch.relu(self.a(x)))"))
    result = it.compress(LOWERED)
    assert result.report.stages[-1].notes == {"kept_in_float32": 0}
    assert call(it.load(result), it.module.inputs()[:2]).dtype == torch.bfloat16


def test_a_model_of_which_no_layer_can_is_refused_with_the_cause(case: MakeCase) -> None:
    it = case(net("self.f = Filter()", "return self.f(torch.cat([x, x], 1))", before=FILTER))
    with pytest.raises(
        ZoopressError,
        match=r"No layer of this model runs in bfloat16.*Unsupported dtype.*"
        r"the model's own code that needs float32.*weight_quantization",
    ):
        it.compress(LOWERED)


def test_layers_that_convert_are_trained_quantized_and_replaced_afterwards(
    case: MakeCase,
) -> None:
    it = case(MODELS["a table"][0])
    result = it.compress(
        LOWERED,
        {"technique": "distillation", "steps": 3, "evaluations": 1},
        {"technique": "truncated_svd", "parameters": 0.9, "include": ["a.weight"]},
        {"technique": "weight_quantization", "include": ["b.weight"]},
        {"technique": "entropy_coding"},
    )
    x = it.module.inputs()[:8]
    found = it.load(result)
    assert error(call(it.model, x), call(found, x).float()) < 0.5
    assert [stage.reload_difference <= 1e-5 for stage in result.report.stages] == [True] * 5


IN_16_BITS = {
    "inputs and weights": (
        net(PAIR, "return self.b(torch.relu(self.a(x)))")
        .replace("return Net()", "return Net().bfloat16()")
        .replace("generator=g())", "generator=g()).bfloat16()")
    ),
    "half inputs and weights": (
        net(PAIR, "return self.b(torch.relu(self.a(x)))")
        .replace("return Net()", "return Net().half()")
        .replace("generator=g())", "generator=g()).half()")
    ),
    "a cast in forward": net(
        PAIR, "return self.b(torch.relu(self.a(x.to(torch.bfloat16))))"
    ).replace("return Net()", "return Net().bfloat16()"),
    "one layer beside float32": net(
        PAIR + "\nself.a.bfloat16()",
        "return self.b(torch.relu(self.a(x.to(torch.bfloat16))).float())",
    ),
    "recurrent": (
        net(
            "self.r = nn.GRU(32, 24, batch_first=True).bfloat16()\nself.b = nn.Linear(24, 16)",
            "return self.b(self.r(x.bfloat16())[0][:, -1].float())",
            SEQUENCES,
        )
    ),
}


@pytest.mark.parametrize("kind", IN_16_BITS)
def test_models_of_16_bits_are_trained_on_16_bit_inputs(case: MakeCase, kind: str) -> None:
    it = case(IN_16_BITS[kind])
    result = it.compress(
        {
            "technique": "magnitude_pruning",
            "sparsity": 0.3,
            "recovery": {"technique": "distillation", "steps": 3, "evaluations": 1},
        }
    )
    found: Any = it.load(result)
    types = {n: p.dtype for n, p in it.model.named_parameters()}
    assert {n: p.dtype for n, p in found.named_parameters()} == types
    x = it.module.inputs()[:4]
    assert call(found, x).dtype == call(it.model, x).dtype
    assert result.report.stages[-1].fidelity.cosine > 0.9
