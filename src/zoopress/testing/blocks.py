"""The conformance test of blocks.

from zoopress.testing import check_block

def test_it_conforms():
    check_block(MyBlock(MyOptions(rank=4)))
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.errors import PluginError, StageError
from zoopress.models.model import Model
from zoopress.plugins import Plugins, load_plugins
from zoopress.techniques import Block
from zoopress.testing import models as testing_models
from zoopress.testing.conformance import ConformanceError, check_on_models, require
from zoopress.testing.declared import check_declared, named
from zoopress.testing.replaced import wrong_stand_ins
from zoopress.testing.tiny import TINY_MODELS, seeded

OTHERS: dict[str, Callable[[], nn.Module]] = {
    "a convolution with stride, dilation and circular padding": lambda: nn.Conv2d(
        6, 10, (3, 5), stride=2, padding=2, dilation=2, padding_mode="circular", bias=False
    ),
    "a convolution with groups": lambda: nn.Conv2d(6, 12, 3, padding="same", groups=3),
    "a convolution of 1×1": lambda: nn.Conv2d(6, 12, 1),
    "a convolution of one axis": lambda: nn.Conv1d(6, 12, 3),
    "a transposed convolution": lambda: nn.ConvTranspose2d(6, 12, 3),
    "a linear layer without bias": lambda: nn.Linear(24, 30, bias=False),
    "a linear layer in 64 bits": lambda: nn.Linear(24, 30, dtype=torch.float64),
}
"""Modules that a block has to take as they are, or to refuse."""


def check_block(block: Block[Any], plugins: Plugins | None = None) -> None:
    """Check that a block keeps every rule.

    Args:
        block: with options under which it should replace a module of at least one tiny model.
        plugins: what is registered, block and layer included; everything installed by default.

    Raises:
        ConformanceError: naming the first rule it breaks.
    """
    plugins = plugins or load_plugins()
    with named(block):
        check_declared(block, "blocks", Block, plugins)
        try:
            layer: Any = plugins.resolve("layers", block.layer)
        except PluginError as error:
            raise ConformanceError(f"{error} Register it with a hook zoopress_layers") from error
        _check_refuses_strangers(block, layer)
        modules = {what: seeded(build) for what, build in OTHERS.items()}
        for name in TINY_MODELS:
            model = seeded(getattr(testing_models, name))
            modules |= {f"the {name}'s {p}": m for p, m in model.named_modules() if p}
        taken = [what for what, module in modules.items() if _takes(block, what, module)]
        require(bool(taken), "it refuses every module of the tiny models, and every other one")
        for what in taken:
            _check_module(block, what, modules[what], plugins)
        _check_chain(block, plugins)


def _check_refuses_strangers(block: Block[Any], layer: Any) -> None:
    require(
        hasattr(layer, "from_module"),
        f"its layer {block.layer!r} has no class method from_module(module, **arguments)",
    )
    for stranger in (nn.Identity(), nn.Sequential()):
        require(
            isinstance(block.refusal(stranger), str),
            f"refusal({type(stranger).__name__}) is not a sentence that says why",
        )
        try:
            layer.from_module(stranger, **_some_arguments(block))
        except ValueError:
            continue
        except Exception as error:
            raise ConformanceError(
                f"{block.layer!r}.from_module({type(stranger).__name__}) raises "
                f"{type(error).__name__} instead of ValueError; an artifact may be a stranger's"
            ) from error
        raise ConformanceError(f"{block.layer!r}.from_module takes a {type(stranger).__name__}")


def _some_arguments(block: Block[Any]) -> dict[str, Any]:
    for name in TINY_MODELS:
        for module in seeded(getattr(testing_models, name)).modules():
            if block.refusal(module) is None:
                return dict(block.arguments(module))
    return {}


def _takes(block: Block[Any], what: str, module: nn.Module) -> bool:
    reason = block.refusal(module)
    require(
        reason is None or (isinstance(reason, str) and bool(reason.strip())),
        f"refusal of {what} is {reason!r}, neither None nor a sentence",
    )
    return reason is None


def _check_module(block: Block[Any], what: str, module: nn.Module, plugins: Plugins) -> None:
    """Check what it puts in the place of one module."""
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tensors, again = block.tensors(module), block.tensors(module)
    require(
        tensors.keys() == again.keys()
        and all(torch.equal(t, again[n]) for n, t in tensors.items()),
        f"two calls of tensors() give different ones for {what}",
    )
    require(
        all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items()),
        f"tensors() changes {what}, which it should only look at",
    )
    inputs = _inputs(module)
    with torch.no_grad():
        expected = module(inputs)
    model = Model(nn.Sequential(copy.deepcopy(module)), plugins.layers)
    cost = block.cost(module)
    try:
        model.replace("0", block.layer, block.arguments(module), tensors)
    except StageError as error:
        raise ConformanceError(f"what it makes for {what} does not fit: {error}") from error
    with torch.no_grad():
        got = model.module(inputs)
    require(
        got.shape == expected.shape and got.dtype == expected.dtype,
        f"in the place of {what} it puts out {got.dtype} {list(got.shape)}, which was "
        f"{expected.dtype} {list(expected.shape)}",
    )
    wrong = wrong_stand_ins(model.module, lambda: model.module(inputs))
    require(wrong is None, f"in the place of {what}, {wrong}")
    error_share = float((got - expected).norm() / expected.norm())
    require(
        error_share < 1,
        f"in the place of {what} its outputs are off by {error_share:.2f} times the outputs' norm: "
        "farther than zeros would be. Compute its tensors from the module's weights",
    )
    count = sum(parameter.numel() for parameter in model.module.parameters())
    require(
        cost.parameters == count,
        f"cost() tells {cost.parameters} parameters for {what}; the layer has {count}",
    )
    require(cost.macs > 0, f"cost() tells {cost.macs} multiply-accumulates for {what}")


def _inputs(module: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    first = next(p for p in module.parameters() if p.ndim > 1)
    if isinstance(module, nn.modules.conv._ConvNd):
        sizes = [module.in_channels, *(12 for _ in module.kernel_size)]
    else:
        sizes = [getattr(module, "in_features", first.shape[-1])]
    return torch.randn(16, *sizes, generator=generator).to(first.dtype)


def _check_chain(block: Block[Any], plugins: Plugins) -> None:
    """Check that `block_replacement` with it keeps the rules of techniques on a tiny model."""
    kind = plugins.technique("block_replacement")
    chosen = {"name": block.name, **block.config.model_dump(mode="json")}
    technique = kind(kind.config_type.model_validate({"block": chosen}))
    with tempfile.TemporaryDirectory() as folder:
        check_on_models(technique, Path(folder), plugins)
