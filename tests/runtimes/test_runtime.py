"""Runtimes: what runs, what is refused, and that outputs are held to the artifact's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

import zoopress
from zoopress.cards import Card
from zoopress.errors import DeploymentError, InputError, PluginError
from zoopress.models.packing import packed_weights
from zoopress.plugins import Plugins, hookimpl, load_plugins
from zoopress.runtimes import Call, Opened, Runtime, cached, start
from zoopress.runtimes.compile import why_not
from zoopress.testing import (
    ConformanceError,
    check_runtime,
    models as testing_models,
    run_chain,
    seeded,
    tiny_artifact,
)


class Same(Runtime):
    """Runs the module."""

    def refusal(self, artifact: Opened) -> str | None:
        return None

    def prepare(self, artifact: Opened) -> nn.Module:
        return artifact.module


class Wrong(Same):
    """Is off by a tenth."""

    def prepare(self, artifact: Opened) -> nn.Module:
        return changed(artifact.module, lambda output: 1.1 * output)


class Fixed(Same):
    """Takes the number of samples that it was shown, and no other."""

    needs_example = True

    def prepare(self, artifact: Opened) -> nn.Module:
        samples = artifact.call("").samples
        return changed(artifact.module, lambda output: output.view(samples, -1))


class Attentive(Same):
    """Wants to be shown a call."""

    needs_example = True


class Undefined(Same):
    """Gives NaN."""

    def prepare(self, artifact: Opened) -> nn.Module:
        return changed(artifact.module, lambda output: output * torch.nan)


class Picky(Same):
    """Refuses everything."""

    def refusal(self, artifact: Opened) -> str | None:
        return "it is too large. Use a smaller one."


class Failing(Same):
    """Cannot do what it said it could."""

    def prepare(self, artifact: Opened) -> nn.Module:
        raise RuntimeError("out of luck")


class Editing(Same):
    """Changes what it was given."""

    def prepare(self, artifact: Opened) -> nn.Module:
        for tensor in artifact.model.tensors().values():
            if tensor.dtype == torch.float32:
                tensor.mul_(1 + 1e-6)
        return artifact.module


def changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    class Changed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return change(module(x))

    return Changed()


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(**globals()))
    kinds = (Same, Attentive, Wrong, Fixed, Undefined, Picky, Failing, Editing)
    names = {kind.__name__.lower(): f"{__name__}:{kind.__name__}" for kind in kinds}
    hook = hookimpl(lambda: names, specname="zoopress_runtimes")
    return load_plugins(extra={"mine": SimpleNamespace(hook=hook)})


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return tiny_artifact("cnn", tmp_path_factory.mktemp("artifact"))


def test_eager_conforms() -> None:
    check_runtime("eager")


def test_one_that_needs_an_example_conforms(plugins: Plugins) -> None:
    check_runtime("attentive", plugins, models=("cnn",))


def test_outputs_are_measured_against_the_artifacts_own(artifact: Opened, plugins: Plugins) -> None:
    started = start("same", artifact, plugins)
    assert started.difference == 0
    assert 0 < started.bound < 0.1


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("wrong", r"'wrong' computes something else.*differ by 0\.1 of the largest"),
        ("undefined", r"computes something else.*differ by inf"),
        ("fixed", "'fixed' cannot run this model on 4 samples: RuntimeError: shape"),
        ("picky", r"'picky' cannot run this model: it is too large\. Use a smaller one"),
        ("failing", "'failing' cannot prepare this model: RuntimeError: out of luck"),
    ],
)
def test_what_does_not_run_as_the_artifact_does_is_refused(
    name: str, problem: str, artifact: Opened, plugins: Plugins
) -> None:
    with pytest.raises(DeploymentError, match=problem):
        start(name, artifact, plugins)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("wrong", "refusal.. let a model pass"),
        ("fixed", "refusal.. let a model pass.*4 samples"),
        ("picky", "runs none of the tiny models"),
        ("editing", "changes the artifact's module"),
    ],
)
def test_conformance_finds_what_is_wrong(name: str, rule: str, plugins: Plugins) -> None:
    with pytest.raises(ConformanceError, match=rule):
        check_runtime(name, plugins, models=("cnn",))


def test_an_unknown_runtime_is_refused_with_those_there_are(artifact: Opened) -> None:
    with pytest.raises(PluginError, match=r"no runtime 'compil'. Did you mean 'compile'"):
        start("compil", artifact, load_plugins())


def test_without_a_compiler_compile_is_refused_in_words(
    artifact: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(function: object) -> Callable[[Tensor], Tensor]:
        raise RuntimeError("no C++ compiler found")

    why_not.cache_clear()
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(DeploymentError, match=r"no C\+\+ compiler found.*Install a C\+\+ compiler"):
        start("compile", artifact, load_plugins())
    why_not.cache_clear()


def test_load_compares_on_the_inputs_that_it_is_given(artifact: Opened) -> None:
    inputs = torch.randn(3, 3, 16, 16)
    module = zoopress.load(artifact.folder, factory=testing_models.cnn, example_inputs=inputs)
    with torch.no_grad():
        torch.testing.assert_close(module(inputs), artifact.module(inputs))
    with pytest.raises(InputError, match=r"Example inputs are a tensor.*not int"):
        zoopress.load(artifact.folder, factory=testing_models.cnn, example_inputs=3)


@pytest.mark.slow
def test_load_compiles_a_model_and_leaves_its_low_bit_kernels_alone(tmp_path: Path) -> None:
    (tmp_path / "line.py").write_text(
        "from torch import nn\n"
        "def build():\n    return nn.Sequential(nn.Linear(64, 32), nn.GELU())\n"
    )
    module = seeded(lambda: nn.Sequential(nn.Linear(64, 32), nn.GELU()))
    save_file(module.state_dict(), tmp_path / "line.safetensors")
    card = Card.model_validate(
        {
            "name": "line",
            "source": f"path:{tmp_path / 'line.safetensors'}",
            "factory": f"{tmp_path / 'line.py'}:build",
            "task": "fidelity",
            "data": {"random": {"0": {"shape": [64]}}, "evaluation_samples": 8},
        }
    )
    kind = load_plugins().technique("weight_quantization")
    stages = [kind(kind.config_type.model_validate({"bits": 8, "symmetric": True}))]
    folder = run_chain(stages, card, tmp_path / "run").artifact
    factory = f"{tmp_path / 'line.py'}:build"
    eager = zoopress.load(folder, factory=factory)
    assert any(p.kernel("linear") for p in packed_weights(eager).values())
    inputs = torch.randn(5, 64)
    compiled = zoopress.load(folder, factory=factory, runtime="compile", example_inputs=inputs)
    counters.clear()
    with torch.no_grad():
        torch.testing.assert_close(compiled(inputs), eager(inputs), rtol=1e-3, atol=1e-3)
    assert not counters["frames"]  # it was compiled when it was compared
    assert type(compiled) is not type(eager)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "lstm", "transformer"])
def test_compile_conforms(model: str) -> None:
    check_runtime("compile", models=(model,))


def test_files_are_kept_by_content_and_made_again_when_damaged(
    artifact: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOPRESS_CACHE", str(tmp_path))
    written = []

    def write(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        written.append(folder)
        (folder / "program").write_text("content")

    def get(**versions: str) -> Path:
        return cached(artifact, "mine", versions, write)

    first = get(torch="1")
    assert (first / "program").read_text() == "content"
    assert get(torch="1") == first
    assert len(written) == 1
    assert get(torch="2") != first
    assert len(written) == 2
    (first / "program").write_text("damaged")
    assert (get(torch="1") / "program").read_text() == "content"
    assert len(written) == 3


def test_a_cache_that_could_not_be_filled_leaves_nothing(
    artifact: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOPRESS_CACHE", str(tmp_path))

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cached(artifact, "mine", {}, fail)
    assert not list(tmp_path.rglob("half"))


def test_a_call_is_caught_repeated_and_told_apart_by_its_samples() -> None:
    module = nn.Linear(4, 2)
    inputs = torch.arange(8.0).view(2, 4)
    call = Call.caught(module, lambda: module(inputs))
    assert call.samples == 2
    assert torch.equal(call.repeated(3).arguments[0], inputs[[0, 1, 0]])
    both = Call((inputs,), {"mask": torch.ones(2, 5), "scale": torch.ones(7), "other": None})
    assert both.sample_axes() == ((True,), {"mask": True, "scale": False, "other": None})
    assert both.repeated(1).named["scale"].shape == (7,)
    with pytest.raises(InputError, match="never calls the model"):
        Call.caught(module, lambda: None)
