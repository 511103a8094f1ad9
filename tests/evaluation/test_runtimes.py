"""The measure that times both models in every runtime: what it tells, not how long it takes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zoopress.artifacts.opened import Opened
from zoopress.cells.cell import open_original
from zoopress.evaluation import runtimes
from zoopress.evaluation.comparison import Comparison
from zoopress.evaluation.fidelity import run_all
from zoopress.evaluation.runtimes import fastest, measure
from zoopress.plugins import Plugins
from zoopress.runtimes import Runtime
from zoopress.testing import run_chain, tiny_card
from zoopress.testing.tiny import reload_artifact


class Brittle(Runtime):
    """Runs one sample, and not the original."""

    needs_example = True
    fixes_batch = False

    def refusal(self, artifact: Opened) -> str | None:
        return None if artifact.manifest.lineage else "it is not compressed"

    def prepare(self, artifact: Opened) -> nn.Module:
        class Alone(nn.Module):
            def forward(self, x: torch.Tensor) -> Any:
                if len(x) > 8:
                    raise RuntimeError("too many samples")
                return artifact.module(x)

        return Alone()


@pytest.fixture
def comparison(tmp_path: Path, plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> Comparison:
    monkeypatch.setenv("ZOOPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runtimes, "_SECONDS", 0.01)
    names = {"eager": plugins.references["runtimes"]["eager"], "brittle": "x:Brittle"}
    for name in ("openvino", "auto"):
        names[name] = plugins.references["runtimes"][name]
    resolve = type(plugins).resolve
    monkeypatch.setitem(plugins.references, "runtimes", names)
    monkeypatch.setattr(
        type(plugins),
        "resolve",
        lambda self, hook, name: Brittle if name == "brittle" else resolve(self, hook, name),
    )
    monkeypatch.setattr(runtimes, "measure_in_process", lambda *given: {"batch": 1000})
    kinds = [plugins.technique(n) for n in ("weight_quantization", "activation_quantization")]
    chain = [kind(kind.config_type()) for kind in kinds]
    card = tiny_card("cnn", tmp_path)
    made = run_chain(chain, card, tmp_path / "run", plugins)
    opened = open_original(card, plugins)
    model = reload_artifact(made.artifact, card)
    original = opened.model.load()
    runs = run_all(opened.task, original), run_all(opened.task, model.module)
    return Comparison(opened.task, original, model, *runs, made.artifact, plugins)


def ours() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("ZOOPRESS")}


def test_both_models_are_timed_in_every_runtime(
    comparison: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    before = ours()
    found = measure(comparison, lambda item, fraction=None: None)
    json.dumps(found, allow_nan=False)
    assert ours() == before
    sizes = sorted({row["batch_size"] for row in found["rows"]})
    assert sizes[0] == 1
    both = {(r["runtime"], r["threads"], r["batch_size"]) for r in found["rows"] if len(r) == 10}
    assert both == {(n, t, s) for n in ("eager", "openvino") for t in (1, 2) for s in sizes}
    for row in found["rows"]:
        for which in ("original", "compressed"):
            if f"{which}_ms_p50" in row:
                assert row[f"{which}_ms_p95"] >= row[f"{which}_ms_p50"] > 0
    assert "not compressed" in found["refused"]["brittle"]["original"]
    assert [m["runtime"] for m in found["memory"]][:1] == ["openvino"]
    assert [(f["threads"], f["batch_size"]) for f in found["fastest"]] == [
        (threads, size) for threads in (2, 1) for size in sizes
    ]
    # What is made of the original is not kept: it may be large, and nobody asked for it.
    assert len(list((tmp_path / "cache" / "runtimes" / "onnx").glob("*/model.onnx"))) == 1


def test_what_fails_on_a_batch_is_left_out_there_and_said(comparison: Comparison) -> None:
    running = {
        ("original", "eager"): comparison.original,
        ("compressed", "eager"): comparison.compressed,
        ("compressed", "brittle"): Brittle().prepare(
            Opened(comparison.model, None, None, Path())  # type: ignore[arg-type]
        ),
    }
    bench = runtimes._Bench(comparison.task, comparison.plugins, [])
    rows = bench._rows(running, {"0": torch.randn(9, 3, 16, 16)}, 1)
    assert [row["runtime"] for row in rows] == ["eager"]
    assert bench.refused == {"brittle": {"compressed": "too many samples"}}


def test_a_task_that_never_calls_the_model_as_a_whole_is_skipped(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison.task, "call", lambda module, inputs: torch.zeros(1))
    found = measure(comparison, lambda item, fraction=None: None)
    assert list(found) == ["skipped"]
    assert "never calls the model as a whole" in found["skipped"]


def test_the_fastest_of_each_model_is_compared() -> None:
    def row(runtime: str, **times: float) -> dict[str, Any]:
        named = {f"{which}_ms_p50": ms for which, ms in times.items()}
        return {"runtime": runtime, "threads": 1, "batch_size": 4, **named}

    rows = [
        row("a", original=8.0, compressed=9.0),
        row("b", original=6.0),
        row("c", compressed=2.0, original=7.0),
        {**row("c", compressed=2.0), "threads": 2},  # nothing to compare it with
    ]
    assert fastest(rows) == [
        {
            "threads": 1,
            "batch_size": 4,
            "original_runtime": "b",
            "original_ms_p50": 6.0,
            "compressed_runtime": "c",
            "compressed_ms_p50": 2.0,
            "speed_up": 3.0,
        }
    ]
