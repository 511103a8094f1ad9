"""From an artifact to an ONNX file: captured by `torch.export`, for any batch size and length."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoopress.artifacts.opened import Call, Opened
from zoopress.errors import DeploymentError
from zoopress.exporters.integer_weights import use_integers
from zoopress.models.outputs import largest_difference
from zoopress_plugins.deployment.named_call import Flat, NamedCall, output_names
from zoopress_plugins.deployment.onnx_inputs import use_quantizers
from zoopress_plugins.deployment.onnx_layers import fold_normalizations, split_products
from zoopress_plugins.deployment.onnx_readers import open_onnx
from zoopress_plugins.deployment.onnx_weights import (
    OPSET,
    DequantizedWeight,
    move_into_integers,
    remove_unused,
)

MODEL = "model.onnx"
FIXED = "fixed.txt"
"""Beside a program that is for one number of samples alone: why."""
_EXTERNAL_BYTES = 1 << 30
"""A file of ONNX may have 2 GB; what is larger keeps its weights in one beside it."""


_LOUD = (
    *("torch.onnx", "torch.export", "torch.fx.experimental.symbolic_shapes"),
    *("onnxscript", "onnx_ir"),
)
"""Loggers of what is said about models' code while a program is made of it."""


@dataclass(frozen=True)
class Lengths:
    """Which axes of inputs may vary.

    Attributes:
        samples: whether that which counts samples may.
        others: whether others may, where the program allows.
    """

    samples: bool
    others: bool


_TRIES = (Lengths(True, True), Lengths(True, False), Lengths(False, False))


def write_onnx(artifact: Opened, folder: Path) -> None:
    """Write a model into `model.onnx`, for as many numbers of samples and lengths as it allows.

    What it cannot leave open is fixed to the example's, and a warning says so.

    Raises:
        DeploymentError: if no program can be made of it, naming the operator and the layer.
    """
    example = artifact.call("A program follows a call")
    few = _small(example)
    module = copy.deepcopy(artifact.module)
    use_integers(module, DequantizedWeight)
    use_quantizers(module)
    _gather_experts(module)
    output = few(artifact.module)
    names = output_names(output)
    if not names:
        raise DeploymentError(
            f"The model returns a {type(output).__name__}, in which no tensors are found. Let it "
            "return a tensor, or tensors in tuples, lists or dicts."
        )
    _check_names(NamedCall(module, few).names, names)
    failures: list[str] = []
    for lengths in _TRIES:
        # What holds for one number of samples is to hold for that of the example.
        named = NamedCall(module, few if lengths.samples else example)
        try:
            model = _model(module, named, names, lengths)
            _save(model, folder / MODEL)
            if lengths.samples:
                _check_samples(artifact, few, folder / MODEL)
            _check_lengths(artifact, named, folder / MODEL)
        except Exception as error:  # of many kinds, few of them public
            failures.append(_why(error))
            continue
        if not lengths.others:
            fixed = "length" if lengths.samples else "number of samples"
            warnings.warn(
                f"This model's program is for inputs of the example's {fixed} alone: "
                f"{failures[0]}.",
                stacklevel=2,
            )
        if not lengths.samples:
            (folder / FIXED).write_text(failures[0], encoding="utf-8")
        return
    raise DeploymentError(f"No program can be made of this model: {failures[-1]}.")


def _gather_experts(root: nn.Module) -> None:
    """Let transformers' mixtures of experts gather the weights that each token needs, in place.

    What they do else depends on how many tokens go to which expert, which no program can follow.
    """
    for part in root.modules():
        choose = getattr(part, "set_experts_implementation", None)
        if callable(choose):
            choose("batched_mm")


def _small(call: Call) -> Call:
    """Return a call with few samples, of another number than any other axis has.

    A program that has seen one sample alone holds for one sample alone.
    """
    taken: set[int] = set()
    call.map(lambda tensor: taken.update(tensor.shape[1:]))
    return call.repeated(next(n for n in range(2, 100) if n not in taken))


def _check_names(inputs: list[str], outputs: list[str]) -> None:
    if same := set(inputs) & set(outputs):
        raise DeploymentError(
            f"Inputs and outputs have names in common, which ONNX does not know: {sorted(same)}."
        )


def _model(module: nn.Module, call: NamedCall, outputs: list[str], lengths: Lengths) -> ir.Model:
    flat = Flat(module, call)
    tensors = tuple(call.tensors.values())
    samples = tensors[0].shape[0] if tensors[0].ndim else 0
    axes = tuple(_axes(tensor, samples, lengths) for tensor in tensors)
    with torch.no_grad(), _quiet(), _no_fused_layers(), _lengths_vary(module), _FourAxes():
        program = torch.export.export(flat, tensors, dynamic_shapes={"tensors": axes})
        made = torch.onnx.export(
            program,
            input_names=call.names,
            output_names=outputs,
            opset_version=OPSET,
            verbose=False,
            dynamo=True,
        )
    assert made is not None
    split_products(made.model)
    move_into_integers(made.model)
    fold_normalizations(made.model)
    remove_unused(made.model)
    return made.model


class _FourAxes(TorchFunctionMode):
    """Gives attention four axes where it has three: ONNX's exporter knows no other."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention and args and args[0].ndim == 3:
            q, k, v, *others = args
            masks = [m.unsqueeze(-3) if m is not None and m.ndim == 3 else m for m in others[:1]]
            if (mask := kwargs.get("attn_mask")) is not None and mask.ndim == 3:
                kwargs = {**kwargs, "attn_mask": mask.unsqueeze(-3)}
            four = (x.unsqueeze(-3) for x in (q, k, v))
            return func(*four, *masks, *others[1:], **kwargs).squeeze(-3)
        return func(*args, **kwargs)


@contextmanager
def _lengths_vary(root: nn.Module) -> Iterator[None]:
    """Let `len(x)` of a tensor in the code of a model be what `x.shape[0]` is, a size that varies.

    Python's own `len` makes a number of it, and so a constant of the program.
    """
    files = {kind.__module__ for part in root.modules() for kind in type(part).__mro__}
    scopes = [
        vars(sys.modules[name])
        for name in files
        if name in sys.modules and name.partition(".")[0] not in ("torch", "builtins")
    ]
    changed = [scope for scope in scopes if "len" not in scope]
    for scope in changed:
        scope["len"] = _length
    try:
        yield
    finally:
        for scope in changed:
            del scope["len"]


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.ndim else len(value)


@contextmanager
def _no_fused_layers() -> Iterator[None]:
    """Let transformer layers call their parts, as they do in training: ONNX knows no whole ones."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _check_samples(artifact: Opened, few: Call, file: Path) -> None:
    """Refuse a program that holds for one number of samples: code may take it for a constant.

    Raises:
        DeploymentError: saying so.
    """
    more = few.repeated(few.samples + 1)
    try:
        found = open_onnx(file)(NamedCall(artifact.module, more).tensors)
        same = largest_difference(more(artifact.dense), found) <= artifact.bound(artifact.dense)
    except Exception:  # whatever the library says of shapes that do not fit
        same = False
    if not same:
        raise DeploymentError("its code takes the number of samples for a constant")


def _axes(tensor: Tensor, samples: int, lengths: Lengths) -> dict[int, Any]:
    """Return which axes of an input may vary.

    Sizes of images and volumes are left alone: programs for one size are faster, and few models
    take others.
    """
    auto = torch.export.Dim.AUTO
    axes: dict[int, Any] = {}
    if lengths.samples and tensor.ndim and tensor.shape[0] == samples:
        axes[0] = auto
    if lengths.others and 2 <= tensor.ndim <= 3:
        axes |= dict.fromkeys(range(1, tensor.ndim), auto)
    return axes


def _save(model: ir.Model, file: Path) -> None:
    size = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    beside = file.with_name(f"{file.name}.data")
    beside.unlink(missing_ok=True)
    ir.save(model, file, external_data=beside.name if size > _EXTERNAL_BYTES else None)


def _check_lengths(artifact: Opened, call: NamedCall, file: Path) -> None:
    """Refuse a program that says it takes other lengths, and computes something else for one."""
    model = ir.load(file)
    free: dict[str, set[int]] = {
        str(value.name): {a for a, size in enumerate(value.shape) if not isinstance(size, int)}
        for value in model.graph.inputs
        if value.shape is not None
    }
    varied = {
        tensor.shape[axis] for name, tensor in call.tensors.items() for axis in free[name] - {0}
    }
    for size in sorted(varied):
        shorter = {
            name: _cut(tensor, [a for a in free[name] - {0} if tensor.shape[a] == size])
            for name, tensor in call.tensors.items()
        }
        other = call.call(shorter)
        try:
            expected = other(artifact.dense)
        except Exception:  # the model's own business
            continue
        run = open_onnx(file)
        if not largest_difference(expected, run(shorter)) <= artifact.bound(artifact.dense):
            raise DeploymentError(f"for {size} places cut to fewer it computes something else")


def _cut(tensor: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        tensor = tensor.narrow(axis, 0, max(1, tensor.shape[axis] * 2 // 3))
    return tensor


def _why(error: Exception) -> str:
    """Say in a line why a model could not be captured."""
    deepest: BaseException = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    return " ".join(f"{type(deepest).__name__}: {deepest}".split())[:400].rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch says while it exports: what it makes is compared."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # Of code that it cannot follow, torch.export prints whole programs.
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
