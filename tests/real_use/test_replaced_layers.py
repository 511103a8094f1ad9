"""Layers that took the place of others, where the model or its user knew the others well."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import zoopress
from real_use_case import Case, MakeCase, call, error
from zoopress.errors import ComputedWeightError
from zoopress.pipeline.compress import Result

# The weights of b, of c and of d are products of rank 6, so that rank 8 loses nothing.
EXACT = """
def prepare(model):
    with torch.no_grad():
        for layer in (model.b, model.c):
            shape = layer.weight.shape
            rows = torch.randn(shape[0], 6, generator=g(5))
            columns = torch.randn(6, layer.weight[0].numel(), generator=g(6))
            layer.weight.copy_((rows @ columns).view(shape) * 0.05)
"""
NET = (
    EXACT
    + """
import functools
import types


def inner(layer, x):
    return F.linear(x, layer.weight * 2, layer.bias) + layer.weight.mean()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(24, 3 * 8 * 8)
        self.c = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.b = nn.Linear(32, 32)
        self.o = nn.Linear(32, 4)
        WAY

    def forward(self, x):
        y = F.relu(self.c(self.a(x).view(-1, 3, 8, 8))).mean((2, 3))
        return self.o(F.relu(self.b(y)))


def build():
    return Net()


def inputs():
    return torch.randn(64, 24, generator=g())
"""
)
SVD = {"technique": "truncated_svd", "rank": 8, "include": ["b.weight", "c.weight"]}
WAYS = {
    "a forward hook": "self.b.register_forward_hook(lambda module, given, output: 3 * output)",
    "a forward hook on a convolution": "self.c.register_forward_hook(lambda m, i, o: o.abs())",
    "a hook that reads the weight": "self.b.register_forward_hook(lambda m, i, o: o * m.weight[0])",
    "a pre-hook": "self.b.register_forward_pre_hook(lambda module, given: (given[0] + 1,))",
    "a pre-hook of names": "self.b.register_forward_pre_hook("
    "lambda module, given, named: ((given[0] + 1,), named), with_kwargs=True)",
    "a hook that is always called": "self.c.register_forward_hook("
    "lambda module, given, named, output: output + 1, with_kwargs=True, always_call=True)",
    "a closure": "plain = self.b.forward; self.b.forward = lambda x: 3 * plain(x)",
    "a closure on a convolution": "plain = self.c.forward; self.c.forward = lambda x: 3 * plain(x)",
    "a method": "self.b.forward = types.MethodType(inner, self.b)",
    "a partial": "self.b.forward = functools.partial(inner, self.b)",
    "a forward of the class": "self.b.forward = lambda x: nn.Linear.forward(self.b, x) + 1",
    "another list": "self.other = [self.b]; self.b.register_forward_hook("
    "lambda m, i, o: o + F.linear(i[0], self.other[0].weight, self.other[0].bias))",
}


def compressed(it: Case, *stages: dict[str, Any]) -> tuple[Result, nn.Module]:
    result = it.compress(*stages)
    return result, it.load(result)


def kinds(model: nn.Module) -> dict[str, str]:
    return {path: type(module).__name__ for path, module in model.named_modules()}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_factory_puts_on_a_layer_stays_on_the_one_in_its_place(
    case: MakeCase, way: str
) -> None:
    it = case(NET.replace("WAY", WAYS[way]))
    _, loaded = compressed(it, SVD)
    assert (kinds(loaded)["b"], kinds(loaded)["c"]) == ("FactoredLinear", "FactoredConv")
    x = it.module.inputs()
    assert error(call(it.model, x), call(loaded, x)) < 1e-4
    assert error(call(it.model, x), call(zoopress.unpack(loaded), x)) < 1e-4
    assert kinds(loaded) == kinds(it.module.build())


READS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(24, 3 * 8 * 8)
        self.c = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.b = nn.Linear(32, 32)
        self.o = nn.Linear(32, 4)
        self.c.scale, self.b.scale = 2.0, 3.0

    def forward(self, x):
        size = 8 // self.c.stride[0]
        c = self.c
        y = F.conv2d(self.a(x).view(-1, c.in_channels, 8, 8), c.weight, c.bias, c.stride, c.padding)
        y = c.scale * F.relu(y).view(len(x), c.out_channels, size, size).mean((2, 3))
        assert isinstance(c, nn.Conv2d) and c.kernel_size == (3, 3) and c.groups == 1
        assert isinstance(self.b, nn.Linear) and self.b.weight.dtype == x.dtype
        for layer in self.children():
            if isinstance(layer, nn.Linear) and layer.in_features == 32:
                y = F.linear(y.to(layer.weight.device), layer.weight, layer.bias)
                y = y * getattr(layer, "scale", 1.0)
        return y.view(-1, self.o.out_features)


def build():
    return Net()


def inputs():
    return torch.randn(64, 24, generator=g())
"""


def test_attributes_weights_and_classes_that_a_model_reads_are_there(case: MakeCase) -> None:
    it = case(EXACT + READS)
    _, loaded = compressed(it, SVD)
    assert kinds(loaded)["c"] == "FactoredConv"
    x = it.module.inputs()
    assert error(call(it.model, x), call(loaded, x)) < 1e-4


def test_sizes_follow_where_a_replaced_layer_is_pruned(case: MakeCase) -> None:
    it = case(NET.replace("WAY", ""))
    neurons = {"technique": "neuron_pruning", "sparsity": 0.25}
    _, loaded = compressed(it, SVD, neurons)
    for layer, size in ((loaded.c, "out_channels"), (loaded.b, "out_features")):
        assert len(layer.weight) == len(layer.bias) == getattr(layer, size) < 32
    x = it.module.inputs()
    before = call(loaded, x)
    assert error(before, call(zoopress.unpack(loaded), x)) < 1e-4
    assert type(loaded.c) is nn.Conv2d
    assert loaded.c.out_channels == len(loaded.c.weight)


NORMED = {
    "parametrized weight norm": "torch.nn.utils.parametrizations.weight_norm",
    "parametrized spectral norm": "torch.nn.utils.parametrizations.spectral_norm",
    "weight norm": "torch.nn.utils.weight_norm",
    "spectral norm": "torch.nn.utils.spectral_norm",
    "a parametrized bias": "parametrized_bias",
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("norm", NORMED)
def test_layers_that_compute_their_weight_are_made_ordinary_and_factored(
    case: MakeCase, norm: str
) -> None:
    it = case(f"""
class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def parametrized_bias(layer):
    torch.nn.utils.parametrize.register_parametrization(layer, "bias", Double())
    return layer


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = {NORMED[norm]}(nn.Linear(32, 64))
        self.b = nn.Linear(64, 32)

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


def build():
    return Net()


def inputs():
    return torch.randn(64, 32, generator=g())
""")
    half = {"technique": "truncated_svd", "parameters": 0.5, "include": ["a.*"]}
    _, loaded = compressed(it, half)
    assert kinds(loaded) == {**kinds(loaded), "a": "FactoredLinear", "b": "Linear"}
    found = loaded.a.weight.detach()
    call(it.model, it.module.inputs())  # the old spectral norm computes it then
    left, values, right = torch.linalg.svd(it.model.a.weight.detach(), full_matrices=False)
    rank = int(torch.linalg.matrix_rank(found, rtol=1e-4))
    assert 0 < rank < 32
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-5)
    assert not [name for name in loaded.state_dict() if "parametrizations" in name]


SUBCLASSES = """
class Own(nn.Conv2d):
    MORE


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = Own(16, 16, 3, padding=1)
        self.o = nn.Linear(16, 16)

    def forward(self, x):
        return self.o(self.c(x).mean((2, 3)))


def build():
    return Net()


def inputs():
    return torch.randn(64, 16, 8, 8, generator=g())
"""


@pytest.mark.parametrize(
    ("more", "is_factored"),
    [
        ("pass", True),
        ("extra = 3\n    def twice(self): return 2 * self.weight", True),
        (
            "def forward(self, x): return self._conv_forward(x, self.weight.tanh(), self.bias)",
            False,
        ),
        (
            "def _conv_forward(self, x, weight, bias):\n"
            "        return F.conv2d(F.pad(x, (2, 0, 2, 0)), weight, bias)",
            False,
        ),
    ],
)
def test_subclasses_are_factored_where_they_compute_the_same(
    case: MakeCase, more: str, is_factored: bool
) -> None:
    it = case(SUBCLASSES.replace("MORE", more))
    _, loaded = compressed(it, {"technique": "truncated_svd", "parameters": 0.5})
    assert (kinds(loaded)["c"] == "FactoredConv") == is_factored
    assert isinstance(loaded.c, it.module.Own)
    if "twice" in more:
        assert loaded.c.extra == 3
        assert torch.equal(loaded.c.twice(), 2 * loaded.c.weight)


FOLDS = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 8, 3, bias=False)
        self.n = nn.BatchNorm2d(8)
        self.d = nn.Conv2d(8, 8, 3, bias=False)
        self.m = nn.BatchNorm2d(8)
        WAY

    def forward(self, x):
        y = F.relu(self.n(self.c(x)))
        assert isinstance(self.n, nn.BatchNorm2d) and self.n.num_features == 8
        return self.m(self.d(y))


def build():
    return Net()


def prepare(model):
    for norm in (model.n, model.m):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data.add_(torch.rand(8, generator=g(3)))


def inputs():
    return torch.randn(64, 3, 8, 8, generator=g())
"""


@pytest.mark.parametrize(
    ("way", "is_folded"),
    [
        ("self.n.register_forward_hook(lambda m, i, o: 2 * o)", True),
        ("self.c.register_forward_pre_hook(lambda m, i: (2 * i[0],))", True),
        ("self.n.register_forward_pre_hook(lambda m, i: (2 * i[0],))", False),
        ("self.c.register_forward_hook(lambda m, i, o: 2 * o)", False),
        ("plain = self.n.forward; self.n.forward = lambda x: 2 * plain(x)", False),
        ("self.n.forward = lambda x: x", False),
        ("plain = self.c.forward; self.c.forward = lambda x: 2 * plain(x)", False),
    ],
)
def test_a_normalization_is_folded_unless_a_hook_is_between(
    case: MakeCase, way: str, is_folded: bool
) -> None:
    it = case(FOLDS.replace("WAY", way))
    _, loaded = compressed(it, {"technique": "batch_norm_folding"})
    assert (kinds(loaded)["n"] == "FoldedNorm") == is_folded
    assert kinds(loaded)["m"] == "FoldedNorm"
    x = it.module.inputs()
    assert error(call(it.model, x), call(loaded, x)) < 1e-4
    assert error(call(it.model, x), call(zoopress.unpack(loaded), x)) < 1e-4
    assert type(loaded.m) is nn.BatchNorm2d


def test_a_separable_convolution_keeps_what_the_one_before_had(case: MakeCase) -> None:
    way = "self.c.register_forward_hook(lambda m, i, o: o * m.out_channels / m.stride[0])"
    it = case(NET.replace("WAY", way))
    block = {"technique": "block_replacement", "block": "depthwise_separable", "include": ["c"]}
    _, loaded = compressed(it, block)
    assert kinds(loaded)["c"] == "DepthwiseSeparableConv2d"
    assert isinstance(loaded.c, nn.Conv2d)
    x = it.module.inputs()
    before = call(loaded, x)
    assert error(before, call(zoopress.unpack(loaded), x)) < 1e-4
    assert type(loaded.c) is nn.Conv2d


def test_what_is_frozen_stays_so_and_a_bias_that_is_none_none(case: MakeCase) -> None:
    it = case(NET.replace("WAY", "self.c.weight.requires_grad_(False); self.c.bias = None"))
    _, loaded = compressed(it, SVD)
    assert {n: p.requires_grad for n, p in loaded.c.named_parameters()} == {
        "down.weight": False,
        "up.weight": False,
    }
    assert loaded.c.bias is None
    assert all(parameter.requires_grad for parameter in loaded.b.parameters())
    assert not any(module.training for module in loaded.modules())


@pytest.fixture
def factored(case: MakeCase) -> tuple[Case, nn.Module]:
    it = case(NET.replace("WAY", "self.b.note = 'mine'"))
    return it, compressed(it, SVD)[1]


def test_a_model_with_replaced_layers_is_copied_pickled_and_moved_in_parts(
    factored: tuple[Case, nn.Module],
) -> None:
    it, loaded = factored
    x = it.module.inputs()[:4]
    before = call(loaded, x)
    file = io.BytesIO()
    torch.save(loaded, file)
    file.seek(0)
    others = [
        copy.deepcopy(loaded),
        pickle.loads(pickle.dumps(loaded)),
        torch.load(file, weights_only=False),
    ]
    for other in others:
        assert torch.equal(call(other, x), before)
        assert type(other.b) is type(loaded.b)
        assert other.b.note == "mine"
        other.b.up.bias.data.add_(1)
        assert not torch.equal(call(other, x), before)
    assert torch.equal(call(loaded, x), before)
    loaded.b.double()
    assert loaded.b.weight.dtype == torch.float64
    loaded.b.float()
    assert torch.equal(call(loaded, x), before)
    loaded.c.to("meta")
    assert loaded.c.weight.is_meta
    assert not loaded.b.weight.is_meta


def test_a_model_with_replaced_layers_is_trained(factored: tuple[Case, nn.Module]) -> None:
    it, loaded = factored
    given = it.module.inputs()[:4].requires_grad_(True)
    before = call(loaded, given.detach())
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded.train()(given).square().sum().backward()
    assert given.grad is not None
    optimizer.step()
    assert not torch.equal(call(loaded.eval(), given.detach()), before)


def test_the_state_of_a_model_with_replaced_layers_does_not_go_into_the_original(
    factored: tuple[Case, nn.Module],
) -> None:
    it, loaded = factored
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*b\.weight"):
        it.model.load_state_dict(loaded.state_dict())
    it.model.load_state_dict(zoopress.unpack(loaded).state_dict())
    x = it.module.inputs()
    assert torch.equal(call(it.model, x), call(loaded, x))


def _fill(tensor: torch.Tensor) -> None:
    tensor.fill_(1)


EDITS = {
    "copy": lambda m: m.b.weight.data.copy_(m.b.weight * 2),
    "data": lambda m: setattr(m.b.weight, "data", torch.zeros(32, 32)),
    "rows": lambda m: _fill(m.c.weight.data[0]),
    "item": lambda m: m.b.weight.__setitem__((0, 0), 1.0),
    "init": lambda m: nn.init.xavier_uniform_(m.c.weight),
    "apply": lambda m: m.apply(
        lambda part: nn.init.normal_(part.weight.data) if isinstance(part, nn.Linear) else None
    ),
    "out": lambda m: torch.neg(m.b.weight, out=m.b.weight),
    "clamp": lambda m: m.c.weight.data.clamp_(-1, 1),
    "parameter": lambda m: setattr(m.b, "weight", nn.Parameter(torch.zeros(32, 32))),
    "weight.requires_grad_": lambda m: m.c.weight.requires_grad_(True),
    "prune": lambda m: prune.l1_unstructured(m.b, "weight", 0.5),
    "requires_grad": lambda m: setattr(m.b.weight, "requires_grad", True),
    "copy without gradients": lambda m: torch.no_grad()(m.b.weight.copy_)(torch.zeros(32, 32)),
}
PACKED = {
    "technique": "weight_quantization",
    "kinds": ["linear", "conv"],
    "include": ["b.*", "c.*"],
}


@pytest.mark.parametrize("stage", [SVD, PACKED], ids=["factored", "packed"])
def test_an_edit_of_a_computed_weight_is_refused_and_works_once_it_is_dense(
    case: MakeCase, stage: dict[str, Any]
) -> None:
    it = case(NET.replace("WAY", ""))
    result = it.compress(stage)
    x = it.module.inputs()
    for name, edit in EDITS.items():
        loaded = it.load(result, unpacking="none")
        before = call(loaded, x)
        with pytest.raises(ComputedWeightError, match=r"zoopress\.unpack\(model\)"):
            edit(loaded)
        if name != "apply":  # which has changed other layers before
            assert torch.equal(call(loaded, x), before)
        before = call(zoopress.unpack(loaded), x)
        with torch.no_grad():
            edit(loaded)
        if "requires_grad" not in name and name != "clamp":
            assert not torch.equal(call(loaded, x), before), name


def test_what_is_made_of_a_computed_weight_is_the_readers_own(
    factored: tuple[Case, nn.Module],
) -> None:
    _, loaded = factored
    weight = loaded.b.weight
    for own in (weight.clone(), weight * 1, weight.to(torch.float64), copy.deepcopy(weight)):
        assert type(own) is torch.Tensor
        own.zero_()
    own = nn.Parameter(loaded.b.weight)
    own.data.zero_()
    assert not own.any()
    assert loaded.b.weight.any()
    file = io.BytesIO()
    torch.save(loaded.b.weight, file)
    file.seek(0)
    assert type(torch.load(file)) is torch.Tensor


def test_a_model_that_sets_its_weight_in_each_call_is_refused_with_the_way_out(
    case: MakeCase,
) -> None:
    source = NET.replace("WAY", "").replace(
        "y = F.relu", "self.b.weight.data = self.b.weight.data.clamp(-1, 1)\n        y = F.relu"
    )
    it = case(source)
    with pytest.raises(ComputedWeightError, match="leave the layer out with 'exclude'"):
        it.compress(SVD)
    _, loaded = compressed(it, SVD | {"exclude": ["b.*"]})
    assert kinds(loaded)["c"] == "FactoredConv"


def test_of_gpt2s_layers_that_store_inputs_first_the_weight_is_read_so(case: MakeCase) -> None:
    it = case("""
from transformers.pytorch_utils import Conv1D


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = Conv1D(48, 32)
        self.o = nn.Linear(48, 4)

    def forward(self, x):
        y = torch.addmm(self.a.bias, x, self.a.weight) + self.a(x)
        return self.o(y.view(-1, self.a.nf))


def build():
    return Net()


def prepare(model):
    a, b = torch.randn(32, 6, generator=g(5)), torch.randn(6, 48, generator=g(6))
    model.a.weight.data.copy_(a @ b)


def inputs():
    return torch.randn(64, 32, generator=g())
""")
    result, loaded = compressed(it, SVD | {"include": ["a.*"]})
    x = it.module.inputs()
    assert error(call(it.model, x), call(loaded, x)) < 1e-4
    layer = next(layer for layer in result.report.stages[-1].layers if layer.name == "a.weight")
    assert layer.relative_error < 1e-4
    assert error(call(it.model, x), call(zoopress.unpack(loaded), x)) < 1e-4
