"""The runtime `auto`: the fastest that is never slower than eager PyTorch, and remembered."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from zoopress.artifacts.opened import Opened
from zoopress.models.outputs import largest_difference
from zoopress.plugins import Plugins, hookimpl, load_plugins
from zoopress.runtimes import Runtime, start
from zoopress.runtimes.auto import LARGE, fastest
from zoopress.testing import tiny_artifact

STARTED: list[str] = []


class Timed(nn.Module):
    """Computes what a module does, and takes longer or less long for it."""

    def __init__(self, module: nn.Module, pause: dict[int, float]) -> None:
        super().__init__()
        self.module, self.pause = module, pause
        self.known: dict[int, Any] = {}

    def forward(self, x: torch.Tensor) -> Any:
        if len(x) in self.pause:  # to sleep for no time would let others run
            time.sleep(self.pause[len(x)])
        key = hash((len(x), float(x.sum())))
        if key not in self.known:
            self.known[key] = self.module(x)
        return self.known[key]


class Quick(Runtime):
    """Keeps outputs."""

    def refusal(self, artifact: Opened) -> str | None:
        return None

    def prepare(self, artifact: Opened) -> nn.Module:
        STARTED.append("quick")
        return Timed(artifact.module, {})


class Uneven(Quick):
    """Keeps outputs, and is slow for one sample."""

    def prepare(self, artifact: Opened) -> nn.Module:
        STARTED.append("uneven")
        return Timed(artifact.module, {1: 0.05})


class Refusing(Quick):
    """Runs nothing."""

    def refusal(self, artifact: Opened) -> str | None:
        return "it is made for other models. Use 'eager'."


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return tiny_artifact("cnn", tmp_path_factory.mktemp("artifact"))


def plugins(monkeypatch: pytest.MonkeyPatch, folder: Path, *kinds: type[Runtime]) -> Plugins:
    """Return plugins with runtimes of this file besides eager PyTorch and `auto` alone."""
    monkeypatch.setenv("ZOOPRESS_CACHE", str(folder))
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(**globals()))
    names = {kind.__name__.lower(): f"{__name__}:{kind.__name__}" for kind in kinds}
    hook = hookimpl(lambda: names, specname="zoopress_runtimes")
    loaded = load_plugins(extra={"mine": SimpleNamespace(hook=hook)})
    for name in set(loaded.references["runtimes"]) - {"auto", "eager", *names}:
        del loaded.references["runtimes"][name]
    STARTED.clear()
    return loaded


def test_the_fastest_is_taken_and_remembered(
    artifact: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = plugins(monkeypatch, tmp_path, Quick, Uneven, Refusing)
    started = start("auto", artifact, known)
    assert started.runtime == "quick"
    assert sorted(STARTED) == ["quick", "uneven"]
    call = artifact.call("")
    assert largest_difference(call(artifact.module), call(started.module)) == 0
    (file,) = tmp_path.glob("runtimes/auto/*/choice.json")
    told = json.loads(file.read_text())
    assert told["ratios"]["uneven"]["1"] > 1
    assert set(told["ratios"]["quick"]) == {"1", str(LARGE)}
    assert "made for other models" in told["refused"]["refusing"]
    STARTED.clear()
    assert start("auto", artifact, known).runtime == "quick"
    assert STARTED == ["quick"]  # the other one was not timed again


def test_what_is_slower_at_one_batch_size_is_not_taken(
    artifact: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = start("auto", artifact, plugins(monkeypatch, tmp_path, Uneven))
    assert started.runtime == "eager"
    assert started.module is artifact.module


def test_another_number_of_threads_is_timed_anew(
    artifact: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = plugins(monkeypatch, tmp_path, Quick)
    start("auto", artifact, known)
    monkeypatch.setenv("ZOOPRESS_THREADS", "2")
    start("auto", artifact, known)
    assert len(list(tmp_path.glob("runtimes/auto/*/choice.json"))) == 2


def test_the_rule_needs_both_halves_of_the_rounds() -> None:
    noisy, changing = [0.5, 0.5, 9.0, 0.5, 0.5, 9.0], [0.1, 0.1, 0.1, 1.1, 1.1, 0.2]
    ratios = {"eager": {1: [1.0] * 6}, "noisy": {1: noisy}, "changing": {1: changing}}
    assert fastest(ratios) == "noisy"
    del ratios["noisy"]
    assert fastest(ratios) == "eager"
    assert fastest({"eager": {1: [1.0] * 6}, "even": {1: [0.99] * 6}, "failed": {1: []}}) == "eager"
