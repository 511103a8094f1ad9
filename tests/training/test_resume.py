"""A killed training goes on to the same weights bit for bit; nothing else is gone on from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from synthetic_task import Classification, Weights, perceptron, run, same
from zoopress.training import checkpoint

PROGRAM = Path(__file__).parent / "resumable.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX")
@pytest.mark.parametrize(
    "config",
    [
        "sgd",
        pytest.param("adamw", marks=pytest.mark.slow),
        pytest.param("lora", marks=pytest.mark.slow),
        pytest.param("tuned", marks=pytest.mark.slow),
    ],
)
def test_a_training_killed_again_and_again_gives_the_same_bits(tmp_path: Path, config: str) -> None:
    if config == "lora":
        pytest.importorskip("peft")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    jobs = [f"{whole}:0:0", f"{parts}:16:0", f"{parts}:0:3", f"{parts}:5:0", f"{parts}:0:0"]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), config, *jobs], capture_output=True, text=True, check=False
    )
    killed = str(int(signal.SIGKILL))
    assert done.stdout.split() == ["0", killed, killed, killed, "0"], done.stderr
    one, other = (folder / "done.safetensors" for folder in (whole, parts))
    assert one.read_bytes() == other.read_bytes()


class KilledError(Exception):
    pass


def interrupted(folder: Path, at: int, monkeypatch: pytest.MonkeyPatch, **config: Any) -> None:
    """Train, write after each step, and stop in one of them."""
    module = config.pop("module", None) or perceptron(dropout=0.3)

    def stop(item: str, fraction: float | None = None) -> None:
        if item.startswith(f"step {at} "):
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "SECONDS", 0.0)
        patch.setattr(checkpoint, "SHARE", 1e9)
        patch.setattr("zoopress.training.walk._SECONDS_BETWEEN_NEWS", -1.0)
        with pytest.raises(KilledError):
            run(module, folder, progress=stop, **config)


def first_step(folder: Path, **config: Any) -> int:
    """Train, and return the first step that was taken."""
    told: list[str] = []
    module = config.pop("module", None) or perceptron(dropout=0.3)
    run(module, folder, progress=lambda item, fraction=None: told.append(item), **config)
    return int(told[0].split()[1])


def test_a_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, 4, monkeypatch)
    assert first_step(tmp_path) == 5


CHANGES: dict[str, Callable[[], dict[str, Any]]] = {
    "another config": lambda: {"learning_rate": 0.02},
    "another seed": lambda: {"seed": 1},
    "other initial weights": lambda: {"module": perceptron(seed=1, dropout=0.3)},
    "other data": lambda: {"task": Classification(noise=0.2)},
    "another weight of the task": lambda: {"task_weight": 0.5},
    "another term": lambda: {"terms": [Weights()]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_another_run_left_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    interrupted(tmp_path, 4, monkeypatch)
    fresh = tmp_path / "fresh"
    assert first_step(tmp_path, **CHANGES[change]()) == 1
    assert first_step(fresh, **CHANGES[change]()) == 1


def test_a_term_of_another_weight_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, 4, monkeypatch, terms=[Weights(1.0)])
    assert first_step(tmp_path, terms=[Weights(0.5)]) == 1


def damage_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def replaced(file: Path) -> None:
    save_file({"x": torch.ones(2)}, file)


def without_tensors(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({}, file, metadata)


def with_foreign_plain_data(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, {**metadata, "plain": json.dumps("no")})


@pytest.mark.parametrize(
    "damage", [damage_byte, cut, empty, replaced, without_tensors, with_foreign_plain_data]
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    interrupted(tmp_path, 4, monkeypatch)
    damage(tmp_path / "training-0" / "state.safetensors")
    module, fresh = perceptron(dropout=0.3), perceptron(dropout=0.3)
    assert first_step(tmp_path, module=module) == 1
    run(fresh, tmp_path / "fresh")
    assert same(module, fresh)


def test_a_finished_training_is_found_again(tmp_path: Path) -> None:
    module, again = perceptron(dropout=0.3), perceptron(dropout=0.3)
    result = run(module, tmp_path, epochs=3)
    task = Classification()
    found = run(again, tmp_path, task, epochs=3)
    assert task.calls == 0
    assert same(module, again)
    assert {**vars(found), "seconds": 0} == {**vars(result), "seconds": 0}
    assert again[0].weight.requires_grad


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX")
def test_a_checkpoint_that_cannot_be_written_is_a_warning_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "training-0").write_text("a file is in the way")
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    module, fresh = perceptron(), perceptron()
    with pytest.warns(RuntimeWarning, match="cannot be written .* goes on") as warned:
        run(module, tmp_path)
    assert len(warned) == 1
    run(fresh, tmp_path / "fresh")
    assert same(module, fresh)


def test_a_full_disk_leaves_the_last_checkpoint_and_no_part_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, 4, monkeypatch)

    def full(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        assert first_step(tmp_path) == 5
    assert [file.name for file in (tmp_path / "training-0").iterdir()] == ["state.safetensors"]


def test_little_time_is_spent_on_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    file = checkpoint.Checkpoint(tmp_path, "identity")
    assert not file.due
    now[0] = checkpoint.SECONDS
    assert file.due

    def slow(*_: object) -> None:
        now[0] += 60

    monkeypatch.setattr(checkpoint, "sync", slow)
    file.save({}, {})
    now[0] += 60 / checkpoint.SHARE - 1
    assert not file.due
    now[0] += 1
    assert file.due
