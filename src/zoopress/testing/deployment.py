"""What every runtime and every exporter must do, built-in or a third party's.

from zoopress.testing import check_runtime

def test_it_conforms():
    check_runtime("my_runtime")
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from zoopress.artifacts.opened import Call, Opened, open_artifact
from zoopress.errors import DeploymentError, InputError
from zoopress.exporters import Exporter, export
from zoopress.models.outputs import largest_difference
from zoopress.models.packing import unpack
from zoopress.plugins import Plugins, load_plugins
from zoopress.runtimes import Runtime, start
from zoopress.testing import models as testing_models
from zoopress.testing.conformance import ConformanceError, require
from zoopress.testing.tiny import TINY_MODELS, run_chain, tiny_card

_SAMPLES = 3


def check_runtime(
    name: str, plugins: Plugins | None = None, models: Sequence[str] = tuple(TINY_MODELS)
) -> None:
    """Check that a registered runtime keeps every rule.

    It is given a CNN, an LSTM and a transformer encoder, each with weights packed in 8 bits. Those
    that it refuses must be refused in words, and one at least must run.

    Args:
        name: what it is registered as.
        plugins: what is registered; everything installed by default.
        models: which of the tiny models to check it on.

    Raises:
        ConformanceError: naming the first rule it breaks.
    """
    plugins = plugins or load_plugins()
    runtime: Runtime = plugins.resolve("runtimes", name)()
    _check_words(runtime)
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, _own_cache(Path(folder) / "cache"):
        for model in models:
            artifact = tiny_artifact(model, Path(folder) / model, plugins)
            if not runtime.takes_packed:
                unpack(artifact.module, artifact.unpacking)  # as it gets it
            reason = _reason(runtime, artifact)
            if reason is not None:
                refused[model] = reason
                continue
            _check_example(name, runtime, artifact, plugins)
            _check_runs(name, artifact, plugins)
    require(
        len(refused) < len(models),
        f"the runtime {name!r} runs none of the tiny models: {refused}",
    )


def check_exporter(
    name: str, plugins: Plugins | None = None, models: Sequence[str] = tuple(TINY_MODELS)
) -> None:
    """Check that a registered exporter keeps every rule.

    It is given a CNN, an LSTM and a transformer encoder, each with weights packed in 8 bits. Those
    that it refuses must be refused in words.

    Args:
        name: what it is registered as.
        plugins: what is registered; everything installed by default.
        models: which of the tiny models to check it on.

    Raises:
        ConformanceError: naming the first rule it breaks.
        InputError: if it refuses all of them: it is for others, on which it was not checked.
    """
    plugins = plugins or load_plugins()
    exporter: Exporter = plugins.resolve("exporters", name)()
    _check_words(exporter)
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            artifact = tiny_artifact(model, Path(folder) / model, plugins)
            reason = _reason(exporter, artifact)
            if reason is not None:
                refused[model] = reason
                continue
            _check_example(name, exporter, artifact, plugins, Path(folder) / f"{model}-bare")
            _check_writes(name, exporter, artifact, Path(folder) / f"{model}-out", plugins)
    if len(refused) == len(models):
        raise InputError(
            f"The exporter {name!r} is for none of the tiny models, so what it writes was not "
            f"checked: {refused}. Export an artifact that it is for in a test of its own "
            "(zoopress.exporters.export)."
        )


def tiny_artifact(model: str, folder: Path, plugins: Plugins | None = None) -> Opened:
    """Compress one of `TINY_MODELS` to 8 bits and open the artifact, with example inputs."""
    plugins = plugins or load_plugins()
    quantization = plugins.technique("weight_quantization")
    chain = [quantization(quantization.config_type.model_validate({"bits": 8}))]
    made = run_chain(chain, tiny_card(model, folder), folder / "run", plugins)
    description = TINY_MODELS[model]["0"]
    generator = torch.Generator().manual_seed(0)
    shape = (_SAMPLES, *description["shape"])
    if "high" in description:
        inputs = torch.randint(0, description["high"], shape, generator=generator)
    else:
        inputs = torch.randn(shape, generator=generator)
    factory = getattr(testing_models, model)
    return open_artifact(made.artifact, plugins, factory, example=Call.of(inputs))


def _check_words(each: Runtime | Exporter) -> None:
    require(
        bool((vars(type(each)).get("__doc__") or "").strip()),
        f"{type(each).__name__} has no docstring",
    )


def _reason(each: Runtime | Exporter, artifact: Opened) -> str | None:
    reason = each.refusal(artifact)
    require(
        reason is None or (isinstance(reason, str) and len(reason.split()) > 3),
        f"refusal() must return None, or a sentence that says what would help, not {reason!r}",
    )
    return reason


def _check_example(
    name: str,
    each: Runtime | Exporter,
    artifact: Opened,
    plugins: Plugins,
    folder: Path | None = None,
) -> None:
    """Check that it does without example inputs, or says that it cannot."""
    bare = replace(artifact, example=None)
    try:
        if folder is None:
            start(name, bare, plugins)
        else:
            export(name, bare, folder, plugins)
    except DeploymentError as error:
        require(
            each.needs_example,
            f"without example inputs it fails: {error} Say so with needs_example = True",
        )
        return
    require(not each.needs_example, "it says needs_example, but was made without")


def _check_runs(name: str, artifact: Opened, plugins: Plugins) -> None:
    call = artifact.call("a runtime is compared")
    tensors = {key: tensor.clone() for key, tensor in artifact.model.tensors().items()}
    inputs = call.map(Tensor.clone)
    started = _started(name, artifact, plugins)
    for samples in (1, _SAMPLES, _SAMPLES + 2):
        given = call.repeated(samples)
        try:
            got = given(started)
        except Exception as error:
            raise ConformanceError(
                f"prepared on {_SAMPLES} samples, it fails on {samples}: {error}"
            ) from error
        _require_near(name, artifact, given, got, artifact.module)
    _require_same(tensors, artifact)
    require(
        _equal(inputs.arguments, call.arguments), "it changes the example inputs; copy them first"
    )
    # What it keeps in a cache must be as good as what it makes.
    again = _started(name, artifact, plugins)
    _require_near(name, artifact, call, call(again), artifact.module)


def _started(name: str, artifact: Opened, plugins: Plugins) -> nn.Module:
    try:
        return start(name, artifact, plugins).module
    except DeploymentError as error:
        raise ConformanceError(f"refusal() let a model pass that does not run: {error}") from error


def _check_writes(
    name: str, exporter: Exporter, artifact: Opened, folder: Path, plugins: Plugins
) -> None:
    call = artifact.call("an exporter is compared")
    tensors = {key: tensor.clone() for key, tensor in artifact.model.tensors().items()}
    try:
        done = export(name, artifact, folder, plugins)
    except DeploymentError as error:
        raise ConformanceError(
            f"refusal() let a model pass that cannot be written: {error}"
        ) from error
    require(done.difference is not None, "its outputs were not compared")
    _require_same(tensors, artifact)
    module = exporter.read(_emptied(artifact), folder)
    _require_near(name, artifact, call, call(module), artifact.dense)
    try:
        export(name, artifact, folder, plugins)
    except InputError:
        return
    raise ConformanceError("a folder that holds files is written over")


def _emptied(artifact: Opened) -> Opened:
    """Return the artifact with all weights zero, so that only files can tell them."""
    model = copy.copy(artifact.model)
    model.module = copy.deepcopy(artifact.module)
    with torch.no_grad():
        for tensor in model.tensors().values():
            tensor.zero_()
    return replace(artifact, model=model)


def _require_near(name: str, artifact: Opened, call: Call, got: object, module: nn.Module) -> None:
    difference, bound = largest_difference(call(module), got), artifact.bound(module)
    require(
        difference <= bound,
        f"what {name!r} made differs by {difference:.2g} of the largest output on {call.samples} "
        f"samples, more than {bound:.2g}. What it makes must hold for any number of samples and "
        "come from the files alone",
    )


def _require_same(tensors: dict[str, Tensor], artifact: Opened) -> None:
    after = artifact.model.tensors()
    require(
        tensors.keys() == after.keys()
        and all(torch.equal(tensor, after[key]) for key, tensor in tensors.items()),
        "it changes the artifact's module; work on a copy, such as artifact.dense",
    )


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return True


@contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("ZOOPRESS_CACHE")
    os.environ["ZOOPRESS_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["ZOOPRESS_CACHE"]
        else:
            os.environ["ZOOPRESS_CACHE"] = before
