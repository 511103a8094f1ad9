"""What people do with a loaded model: a test for each line of the table in the user tutorial."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from real_use_case import Case, MakeCase, call, error
from zoopress.errors import DeploymentError
from zoopress.models.packing import packed_weights, unpack

SOURCE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(50, 32)
        self.n = nn.LayerNorm(32)
        self.c = nn.Conv1d(32, 32, 3, padding=1)
        self.r = nn.GRU(32, 32, batch_first=True)
        self.t = nn.MultiheadAttention(32, 4, batch_first=True)
        self.a = nn.Linear(32, 64)
        self.b = nn.Linear(64, 32)
        self.h = nn.Linear(32, 50, bias=False)
        self.h.weight = self.e.weight

    def forward(self, x):
        if not x.is_floating_point():
            x = self.e(x)
        x = self.n(x)
        x = x + self.c(x.transpose(1, 2)).transpose(1, 2) + self.r(x)[0]
        x = x + self.t(x, x, x)[0]
        return self.h(self.b(torch.relu(self.a(x))))


def build():
    return Net()


def inputs():
    return torch.randint(0, 50, (64, 6), generator=g())
"""

RECIPES: dict[str, dict[str, Any]] = {
    "8 bits": {"technique": "weight_quantization"},
    "4 bits": {"technique": "weight_quantization", "bits": 4, "group_size": 16},
    "3 bits": {"technique": "weight_quantization", "bits": 3, "symmetric": False},
    "codebook": {"technique": "codebook_quantization"},
    "lattice": {"technique": "lattice_quantization", "step": 0.1},
}
Opened = tuple[Case, nn.Module, nn.Module]


@pytest.fixture(params=[(name, way) for name in RECIPES for way in ("auto", "none")], ids=str)
def opened(request: pytest.FixtureRequest, case: MakeCase) -> Opened:
    """Return a case, its loaded model, and the same with dense weights."""
    recipe, unpacking = request.param
    it = case(SOURCE)
    result = it.compress(RECIPES[recipe])
    return it, it.load(result, unpacking=unpacking), it.load(result, unpacking="all")


@pytest.fixture
def packed(case: MakeCase) -> Opened:
    """Return the same for 8 bits alone."""
    it = case(SOURCE)
    result = it.compress(RECIPES["8 bits"])
    return it, it.load(result, unpacking="none"), it.load(result, unpacking="all")


def floats(batch: int = 3) -> Tensor:
    return torch.randn(batch, 6, 32, generator=torch.Generator().manual_seed(3))


def test_loaded_models_are_used_like_others(opened: Opened) -> None:
    it, model, dense = opened
    x = it.module.inputs()[:3]
    expected = call(dense, x)
    assert error(expected, call(model, x)) < 1e-5

    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), saved(model)):
        assert error(expected, call(again, x)) < 1e-5
        assert type(again.a) is type(model.a)
        assert tied(again)
        assert tied(model)
    assert isinstance(model.a, nn.Linear)
    assert isinstance(model.r, nn.GRU)

    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        bound = 1e-5 if dtype == torch.float64 else 0.05
        cast, wanted = (copy.deepcopy(each).to(dtype) for each in (model, dense))
        assert call(cast, x).dtype == dtype
        assert error(call(wanted, x), call(cast, x)) < bound
        assert error(expected, call(cast.float(), x)) < 0.01  # nothing that is stored was rounded

    with torch.autocast("cpu", torch.bfloat16):
        assert call(model, x).dtype == call(dense, x).dtype
        assert error(call(dense, x), call(model, x)) < 0.05
    assert copy.deepcopy(model).to("meta")(x.to("meta")).shape == expected.shape

    found, wanted = floats().requires_grad_(), floats().requires_grad_()
    model(found).square().sum().backward()
    dense(wanted).square().sum().backward()
    assert found.grad is not None
    assert wanted.grad is not None
    assert error(wanted.grad, found.grad) < 1e-4

    assert not model.load_state_dict(model.state_dict()).missing_keys
    assert error(expected, call(model, x)) < 1e-5


def test_float_parameters_of_a_loaded_model_are_trained(opened: Opened) -> None:
    it, model, _ = opened
    model.train()
    codes = {n: b.clone() for n, b in model.named_buffers()}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    assert {"n.weight", "n.bias", "a.bias"} <= trained.keys()
    optimizer = torch.optim.AdamW(trained.values(), 0.01)
    model(it.module.inputs()[:4]).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(before[name], p) for name, p in trained.items())
    assert all(torch.equal(codes[n], b) for n, b in model.named_buffers())


def test_packed_weights_are_trained_once_unpacked(packed: Opened) -> None:
    it, model, dense = packed
    unpack(model)
    x = it.module.inputs()[:3]
    assert error(call(dense, x), call(model, x)) < 1e-5
    model(x).square().mean().backward()
    assert all(p.grad is not None for p in (model.a.weight, model.e.weight, model.c.weight))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again: nn.Module = torch.load(file, weights_only=False)
    return again


def tied(model: Any) -> bool:
    """Tell whether embedding and output layer share a weight, unless one of them is dense."""
    layers = (model.e, model.h)
    if all("weight" in layer._parameters for layer in layers):
        return model.h.weight is model.e.weight
    held = [
        layer._modules["weight"].codes.data_ptr() for layer in layers if "weight" in layer._modules
    ]
    return len(set(held)) == 1


def test_a_new_process_reads_a_saved_model(packed: Opened) -> None:
    it, model, dense = packed
    x = it.module.inputs()[:3]
    torch.save((model, x, call(dense, x)), it.folder / "whole.pt")
    code = (
        "import torch; m, x, y = torch.load('whole.pt', weights_only=False)\n"
        "with torch.no_grad(): print(float((m(x) - y).norm() / y.norm()))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=it.folder, capture_output=True, text=True, check=True
    )
    assert float(told.stdout) < 1e-5


def test_worker_processes_get_the_model(packed: Opened) -> None:
    it, model, dense = packed
    x = it.module.inputs()[:4]
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(call, (model, x))
    assert error(call(dense, x), found) < 1e-5


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of what torch imports
@pytest.mark.parametrize("recipe", ["8 bits", "lattice"])
def test_torch_compile(case: MakeCase, recipe: str) -> None:
    it = case(SOURCE)
    result = it.compress(RECIPES[recipe])
    model, x = it.load(result), floats()
    torch._dynamo.reset()
    assert error(call(model, x), call(torch.compile(model), x)) < 1e-5


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of what torch imports
@pytest.mark.parametrize("unpacking", ["auto", "all"])
def test_torch_export_is_refused_with_the_way_out(case: MakeCase, unpacking: str) -> None:
    it = case(SOURCE.replace("x = x + self.c", "x = x + self.a(x).sum() + self.c"))
    model = it.load(it.compress(RECIPES["8 bits"]), unpacking=unpacking)
    x = it.module.inputs()[:3]
    warnings.simplefilter("ignore")  # of attributes that a recurrent layer sets
    if unpacking == "auto":
        with pytest.raises(DeploymentError, match="unpacking='all'"):
            torch.export.export(model, (x,))
        with pytest.raises(DeploymentError, match="zoopress export"):
            torch.jit.trace(model, (x,))
    else:
        program = torch.export.export(model, (x,)).module()
        assert error(call(model, x), call(program, x)) < 1e-5


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of what torch imports
def test_functional_call_needs_dense_weights(packed: Opened) -> None:
    it, model, dense = packed
    x = it.module.inputs()[:3]
    with pytest.raises(TypeError, match="is not an instance"):
        torch.func.functional_call(model, model.state_dict(), (x,), tie_weights=False)
    unpack(model)
    found = torch.func.functional_call(model, model.state_dict(), (x,), tie_weights=False)
    assert error(call(dense, x), found.detach()) < 1e-5


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of what torch imports
def test_layers_are_transformed_by_torch_func(packed: Opened) -> None:
    _, model, dense = packed
    x = floats()
    for use in (
        lambda layer: torch.vmap(layer)(x),
        lambda layer: torch.func.jvp(layer, (x,), (x,))[1],
        lambda layer: torch.func.grad(lambda y: layer(y).sum())(x),
    ):
        assert error(use(dense.a).detach(), use(model.a).detach()) < 1e-5


def test_hooks_and_forwards_of_an_instance_stay(case: MakeCase) -> None:
    it = case(
        SOURCE.replace(
            "def build():\n    return Net()",
            """def double(module, arguments, output):
    return 2 * output


def build():
    net = Net()
    net.a.register_forward_hook(double)
    plain = net.b.forward
    net.b.forward = lambda x: plain(x) + 1
    return net""",
        )
    )
    result = it.compress(RECIPES["8 bits"])
    model, dense = it.load(result, unpacking="none"), it.load(result, unpacking="all")
    assert {"a.weight", "b.weight"} <= packed_weights(model).keys()
    x = it.module.inputs()[:3]
    assert error(call(it.model, x), call(model, x)) < 0.05
    assert error(call(dense, x), call(model, x)) < 1e-5


INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "columns first": lambda x: x.T.contiguous().T,
    "one row, columns first": lambda x: x[:1].T.contiguous().T,
    "expanded": lambda x: x[:1].expand(7, -1),
    "one vector": lambda x: x[0],
    "no rows": lambda x: x[:0],
    "no rows of many": lambda x: x[:0][None].expand(2, 0, -1),
    "at an odd address": lambda x: x.reshape(-1)[1 : 1 + 2 * x.shape[1]].view(2, -1),
    "every other row": lambda x: x[::2],
    "more axes": lambda x: x.view(2, 5, 1, -1),
    "channels last": lambda x: x.view(2, 5, -1).transpose(0, 1),
    "a parameter": nn.Parameter,
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("recipe", ["8 bits", "4 bits"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_packed_layer_takes_what_the_float_one_takes(
    kind: str, recipe: str, dtype: torch.dtype
) -> None:
    layer = packed_layer(64, 48, RECIPES[recipe].get("bits", 8)).to(dtype)
    dense = copy.deepcopy(layer)
    unpack(dense)
    x = INPUTS[kind](torch.randn(10, 64, generator=torch.Generator().manual_seed(0)).to(dtype))
    found, expected = call(layer, x), call(dense, x)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert not found.numel() or error(expected, found) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_any_number_of_rows_gives_the_same(bits: int, dtype: torch.dtype, bias: bool) -> None:
    layer = packed_layer(64, 48, bits, bias).to(dtype)
    # Kernels take weights as they are before they are rounded to bfloat16.
    weight = packed_weights(layer)["weight"].dense()
    x = (1000 + torch.randn(256, 64, generator=torch.Generator().manual_seed(0))).to(dtype)
    if bias:  # what is left of large sums
        with torch.no_grad():
            layer.bias.copy_(-(x[:1].double() @ weight.double().T)[0])
    exact = nn.functional.linear(x.double(), weight.double(), layer.bias.double() if bias else None)
    absolute = x.double().abs() @ weight.double().abs().T
    for rows in (1, 4, 31, 32, 33, 63, 64, 65, 256):
        off = (call(layer, x[:rows]).double() - exact[:rows]).abs()
        step = torch.finfo(dtype).eps * exact[:rows].abs()
        assert bool((off <= step + 2e-6 * absolute[:rows]).all())


@pytest.mark.parametrize("wrong", ["width", "integers", "mixed", "negative", "beyond", "bools"])
def test_what_the_float_layer_refuses_is_refused(wrong: str) -> None:
    layer, table = packed_layer(64, 48, 8), packed_layer(64, 48, 8, kind="embedding")
    uses: dict[str, Callable[[], object]] = {
        "width": lambda: layer(torch.randn(2, 63)),
        "integers": lambda: layer(torch.ones(2, 64, dtype=torch.int64)),
        "mixed": lambda: layer(torch.randn(2, 64).double()),
        "negative": lambda: table(torch.tensor([-1])),
        "beyond": lambda: table(torch.tensor([48])),
        "bools": lambda: table(torch.tensor([True] * 48)),
    }
    with torch.no_grad(), pytest.raises((RuntimeError, IndexError)):
        uses[wrong]()


def packed_layer(
    columns: int, rows: int, bits: int, bias: bool = True, kind: str = "linear"
) -> Any:
    """Return a layer whose weight is packed, its scales exact in bfloat16."""
    from zoopress.coding.bits import pack_codes
    from zoopress.models.model import Model
    from zoopress.plugins import load_plugins
    from zoopress_plugins.quantization.weight_quantization import quantize

    torch.manual_seed(0)
    layer = nn.Linear(columns, rows, bias) if kind == "linear" else nn.Embedding(rows, columns)
    model = Model(nn.Sequential(layer).requires_grad_(False), load_plugins().layers)
    weight = next(model.weights((kind,)))  # type: ignore[arg-type]
    codes, scale, _ = quantize(weight.matrix(), bits, 32 if bits < 8 else None, True, False)
    group = 32 if bits < 8 else columns
    arguments = {"bits": bits, "group_size": group, "symmetric": True}
    model.pack(weight, "quantized", arguments, {"codes": pack_codes(codes, bits), "scale": scale})
    return layer


def test_a_model_of_packed_weights_alone_tells_its_type_and_device(case: MakeCase) -> None:
    it = case("""
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 64, bias=False), nn.Linear(64, 32, bias=False))

    def forward(self, x):
        dtype = next(p.dtype for p in self.body.parameters() if p.is_floating_point())
        return self.body(x.to(dtype))


def build():
    return Net()


def inputs():
    return torch.randn(64, 32, generator=g())
""")
    model = it.load(it.compress(RECIPES["8 bits"]), unpacking="none")
    (stand_in,) = model.parameters()
    assert (stand_in.dtype, stand_in.device.type, stand_in.numel()) == (torch.float32, "cpu", 0)
    assert not stand_in.requires_grad
    assert not list(model.named_parameters())
    x = it.module.inputs()[:3]
    assert next(saved(model).half().parameters()).dtype == torch.float16
    assert call(copy.deepcopy(model).half(), x).dtype == torch.float16
    unpack(model)
    assert len(list(model.parameters())) == 2
    assert error(call(it.model, x), call(model, x)) < 0.05
