"""`zoopress encode`, `decode` and `inspect` of checkpoints, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from zoopress.commands.cli import app, main
from zoopress.commands.coding import complete_file, complete_tensor


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tensors = {"weight": torch.randn(300, 50).bfloat16(), "bias": torch.zeros(300)}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_file_goes_there_and_back(model: Path) -> None:
    content = model.read_bytes()
    assert "2 tensors" in run("encode", "model.safetensors")
    model.unlink()
    run("decode", "model.zpz", "--quiet")
    assert model.read_bytes() == content


def test_json_tells_machines(model: Path, tmp_path: Path) -> None:
    encoded: dict[str, Any] = json.loads(run("encode", str(model), "-o", "m.zpz", "--json"))
    assert encoded["bytes"] == (tmp_path / "m.zpz").stat().st_size
    assert encoded["original_bytes"] == model.stat().st_size
    decoded = json.loads(run("decode", "m.zpz", "--tensor", "bias", "--json"))
    assert [Path(path).name for path in decoded["files"]] == ["m.safetensors"]
    assert list(load_file(tmp_path / "m.safetensors")) == ["bias"]
    assert json.loads(run("decode", "m.zpz", "--verify", "--json"))["files"] == []
    shown = json.loads(run("inspect", "m.zpz", "--json"))
    assert [tensor["name"] for tensor in shown["tensors"]] == ["bias", "weight"]
    weight = shown["tensors"][1]
    assert weight["bits"] == pytest.approx(8 * weight["stored_bytes"] / 15_000)
    assert (weight["dtype"], weight["shape"]) == ("bfloat16", [300, 50])


def test_inspecting_shows_every_tensor(model: Path) -> None:
    run("encode", str(model))
    shown = run("inspect", "model.zpz")
    assert "300 × 50" in shown
    assert "exponents apart" in shown.replace("\n", " ") or "planes of bytes" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "nothing"], "cannot be opened"),
        (["encode", "model.safetensors", "-o", "model.safetensors"], "give --force"),
        (["decode", "model.safetensors"], "not a .zpz file"),
        (["decode", "nothing.zpz"], "cannot be opened"),
        (["inspect", "nothing.zpz"], "cannot be opened"),
        (["decode", "m.zpz", "--tensor", "weigth"], "Did you mean 'weight'"),
        (["decode", "m.zpz", "--verify", "--out", "x"], "--verify writes nothing"),
    ],
)
@pytest.mark.usefixtures("model")
def test_mistakes_are_told_without_a_traceback(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("encode", "model.safetensors", "-o", "m.zpz")
    monkeypatch.setattr("sys.argv", ["zoopress", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_files_and_tensors_are_completed(model: Path) -> None:
    run("encode", str(model), "--out", "model.zpz")
    assert complete_file(".zpz")("mod") == ["model.zpz"]
    context = type("Context", (), {"params": {"file": "model.zpz"}})()
    assert complete_tensor(context, "we") == ["weight"]
    context.params = {"file": "nothing.zpz"}
    assert complete_tensor(context, "") == []
