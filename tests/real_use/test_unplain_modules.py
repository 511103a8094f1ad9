"""Modules that are not plain: kept as they are, or refused with the cause and the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from real_use_case import MakeCase, call, error
from zoopress.errors import SourceError, ZoopressError

PLAIN = "return self.b(torch.relu(self.a(x)))"
CODING = {"technique": "entropy_coding"}


def net(made: str = "", forward: str = PLAIN, more: str = "", build: str = "Net()") -> str:
    """The source of a small net: what its constructor adds, and what its forward pass does."""

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

{more}


def build():
    return {build}


def inputs():
    return torch.randn(96, 32, generator=g())
"""


CELLS = "h = torch.relu(self.a(x))\nfor each in self.cells:\n    h = each(h)\nreturn self.b(h)"
REFUSED = {
    "scripted": (
        net("self.b = torch.jit.script(self.b)"),
        r"module 'b' \(Linear\) is compiled to TorchScript.*without torch.jit.script",
    ),
    "traced": (
        net(build="torch.jit.trace(Net(), torch.zeros(1, 32))"),
        r"The model \(Net\) is compiled to TorchScript",
    ),
    "sparse buffer": (
        net("self.register_buffer('s', torch.eye(4).to_sparse())"),
        r"tensor 's' is sparse \(sparse_coo\).*indices and\s+its values as two buffers",
    ),
    "sparse, not saved": (
        net("self.register_buffer('s', torch.eye(4).to_sparse(), persistent=False)"),
        "tensor 's' is sparse",
    ),
    "compressed rows": (
        net("self.register_buffer('s', torch.eye(4).to_sparse_csr())"),
        r"tensor 's' is sparse \(sparse_csr\)",
    ),
    "sparse parameter": (
        net("self.s = nn.Parameter(torch.eye(4).to_sparse())"),
        "tensor 's' is sparse",
    ),
    "nested": (
        net("self.register_buffer('s', torch.nested.nested_tensor([torch.ones(2)]))"),
        "tensor 's' is a nested tensor",
    ),
    "quantized": (
        net(build="torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear}, dtype=torch.qint8)"),
        "is quantized by torch.ao already.*Start from the float model",
    ),
    "quantized tensor": (
        net(
            "self.register_buffer('q', torch.quantize_per_tensor(torch.ones(4), 1, 0, torch.qint8))"
        ),
        "tensor 'q' is quantized by torch already",
    ),
    "plain list": (
        net("self.cells = [nn.Linear(64, 64), nn.Linear(64, 64)]", CELLS),
        r"'cells\[0\]', of Net, has weights that are not registered.*nn.ModuleList",
    ),
    "plain dict of lists": (
        net("self.by = {'x': [nn.Linear(64, 64)]}\nself.cells = self.by['x']", CELLS),
        "has weights that are not registered",
    ),
    "parameter in a list": (
        net("self.w = [nn.Parameter(torch.ones(64))]"),
        r"'w\[0\]', of Net, has weights that are not registered.*nn.ParameterList",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_rebuilt_is_refused_with_the_way_out(case: MakeCase, kind: str) -> None:
    source, words = REFUSED[kind]
    it = case(source, lambda m: {"a": torch.ones(1)})
    for stage in (CODING, {"technique": "neuron_pruning", "sparsity": 0.25}):
        with pytest.raises(SourceError, match=f"(?s){words}"):
            it.compress(stage)


def test_lazy_modules_are_refused_until_they_know_their_sizes(case: MakeCase) -> None:
    source = net("self.a = nn.LazyLinear(64)") + "\n\ndef prepare(m):\n    m(torch.zeros(1, 32))\n"
    with pytest.raises(SourceError, match=r"'a.weight' has no shape yet.*Run the model once in"):
        case(source).compress(CODING)
    it = case(net("self.a = nn.LazyLinear(64)\nself(torch.zeros(1, 32))"))
    x = it.module.inputs()[:4]
    assert error(call(it.model, x), call(it.load(it.compress(CODING)), x)) == 0.0


KEPT = {
    "old weight norm": net("self.a = torch.nn.utils.weight_norm(self.a)"),
    "weight norm": net("self.a = torch.nn.utils.parametrizations.weight_norm(self.a)"),
    "old spectral norm": net("self.a = torch.nn.utils.spectral_norm(self.a)"),
    "spectral norm": net("self.a = torch.nn.utils.parametrizations.spectral_norm(self.a)"),
    "orthogonal": net("self.a = torch.nn.utils.parametrizations.orthogonal(self.a)"),
    "compiled block": net("self.b = torch.compile(self.b)"),
    "compiled": net(build="torch.compile(Net())"),
    "compiled in place": net("self.b.compile()"),
    "data parallel": net(build="nn.DataParallel(Net())"),
    "complex": net(
        "self.w = nn.Parameter(torch.randn(64, dtype=torch.complex64))",
        "return self.b((torch.relu(self.a(x)) * self.w).abs())",
    ),
    "float64": net(forward="return self.b(torch.relu(self.a(x.double())))", build="Net().double()"),
    "tensors in a list": net(
        "self.t = [torch.linspace(0, 1, 64)]", "return self.b(torch.relu(self.a(x)) * self.t[0])"
    ),
    "tensors in an object": net(
        "import types\nself.t = types.SimpleNamespace(t=torch.linspace(0, 1, 64))",
        "return self.b(torch.relu(self.a(x)) * self.t.t)",
    ),
    "a table that a function keeps": """
import functools


@functools.lru_cache
def table(n):
    return torch.linspace(0, 1, n)
"""
    + net("self.n = table(64).numel()", "return self.b(torch.relu(self.a(x)) * table(self.n))"),
    "a cache": net(
        "self.w = None",
        "if self.w is None:\n    self.w = self.a.weight.detach() * 2\n"
        "return self.b(torch.relu(F.linear(x, self.w)))",
    ),
    "not to be copied": net(
        more="    def __deepcopy__(self, memo):\n        raise RuntimeError('no copies')"
    ),
    "a lock": net("import threading\nself.lock = threading.Lock()"),
    "own attributes": net(
        more="    def __setattr__(self, name, value):\n"
        "        if name not in ('training', 'a', 'b') and name[0] != '_':\n"
        "            raise AttributeError(name)\n        super().__setattr__(name, value)"
    ),
    "own look-up": net(
        more="    def __getattr__(self, name):\n        try:\n"
        "            return super().__getattr__(name)\n        except AttributeError:\n"
        "            return getattr(super().__getattr__('a'), name)"
    ),
    "own call": net(more="    def __call__(self, x):\n        return super().__call__(x.float())"),
    "sets its mode": net(
        "self.n = nn.BatchNorm1d(64)", "self.eval()\nreturn self.b(torch.relu(self.n(self.a(x))))"
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KEPT)
def test_what_is_unusual_comes_back_equal(case: MakeCase, kind: str) -> None:
    it = case(KEPT[kind])
    x = it.module.inputs()[:4]
    assert error(call(it.model, x), call(it.load(it.compress(CODING)), x)) == 0.0
    trained = it.compress(
        {
            "technique": "magnitude_pruning",
            "sparsity": 0.3,
            "recovery": {"technique": "distillation", "steps": 2, "evaluations": 1},
        }
    )
    assert trained.report.stages[-1].reload_difference <= 1e-5
    lowered = it.compress({"technique": "float_precision"})
    assert error(call(it.model, x).float(), call(it.load(lowered), x).float()) < 0.02


@pytest.mark.parametrize("held", ["[self.a, self.c]", "{'x': (self.a, self.c)}['x']"])
def test_layers_that_a_plain_list_holds_as_well_are_replaced_there(
    case: MakeCase, held: str
) -> None:
    it = case(
        net(
            f"self.c = nn.Linear(64, 64)\nself.order = {held}",
            "for each in self.order:\n    x = torch.relu(each(x))\nreturn self.b(x)",
        )
    )
    result = it.compress({"technique": "truncated_svd", "parameters": 0.5})
    found: Any = it.load(result)
    assert found.order[1] is found.c
    assert type(found.c).__name__ != "Linear"
    assert result.report.stages[-1].fidelity.cosine < 0.999  # it is what computes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_block_under_two_names_keeps_its_weights(case: MakeCase, dtype: str) -> None:
    it = case("""
class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(32, 32, bias=False) for _ in range(6)])

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = Tower()
        self.right = self.left
        self.again = nn.ModuleDict({"x": self.left.layers[0]})
        self.out = nn.Linear(32, 8, bias=False)

    def forward(self, x):
        return self.out(self.left(x) * self.right(self.again["x"](x)))


def build():
    return Net()


def prepare(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.5)


def inputs():
    return torch.randn(64, 32, generator=g())
""")
    x = it.module.inputs()[:8]
    found: Any = it.load(it.compress({"technique": "float_precision", "dtype": dtype}))
    assert found.left.layers[3].weight is found.right.layers[3].weight
    assert error(call(it.model, x), call(found, x).float()) < 0.1


def test_a_models_own_errors_name_the_line(case: MakeCase) -> None:
    it = case(net(forward="if len(x) > 8:\n    raise LookupError('too many')\n" + PLAIN))
    with pytest.raises(
        ZoopressError, match=r"LookupError: too many \(.*\.py, line \d+, in forward"
    ):
        it.compress(CODING)


def test_tables_that_grow_with_the_inputs_are_forgotten(case: MakeCase) -> None:
    it = case("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(16, 64)
        self.b = nn.Linear(64, 16)
        self.register_buffer("table", torch.arange(4.0)[:, None].repeat(1, 16), persistent=False)

    def forward(self, x):
        if x.shape[1] > len(self.table):
            self.table = torch.arange(float(x.shape[1]))[:, None].repeat(1, 16)
        return self.b(torch.relu(self.a(x + self.table[: x.shape[1]] / 10)))


def build():
    return Net()


def inputs():
    return torch.randn(64, 9, 16, generator=g())
""")
    for stage in (
        {"technique": "weight_quantization"},
        {"technique": "neuron_pruning", "sparsity": 0.25},
        {"technique": "rate_distortion_quantization", "target": {"bits_per_weight": 5}},
    ):
        result = it.compress(stage)
        model = it.load(result)
        assert model.table.shape == (4, 16)
        assert model(it.module.inputs()).isfinite().all()
