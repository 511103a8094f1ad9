"""The splits of the task `fidelity`: none has what another has."""

from __future__ import annotations

import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st

from text_models import make_task, save_model
from zoopress.errors import CardError
from zoopress.tasks import Split, Task
from zoopress_zoo.tasks import fidelity

SPLITS: tuple[Split, ...] = get_args(Split)


def contents(task: Task, split: Split) -> list[tuple[bytes, ...]]:
    """Return each sample of a split as bytes."""
    samples = task.samples(split)
    rows = [samples.batch([row]).inputs for row in range(len(samples))]
    return [tuple(value.numpy().tobytes() for value in inputs.values()) for inputs in rows]


def fidelity_task(path: Path, values: Any, **data: Any) -> Task:
    np.save(path / "inputs.npy", np.asarray(values))
    return make_task(path, "fidelity", file=str(path / "inputs.npy"), **data)


@given(st.lists(st.integers(0, 30), min_size=8, max_size=60))
@settings(deadline=None, max_examples=60)
def test_no_two_splits_share_an_input(values: list[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        task = fidelity_task(Path(name), [[v, v * v] for v in values], validation_samples=4)
        try:
            found = {split: set(contents(task, split)) for split in SPLITS}
        except CardError:  # nearly all are copies of the first ones
            assume(False)
    for one, other in combinations(SPLITS, 2):
        assert not found[one] & found[other], (one, other)


def test_without_copies_the_splits_are_the_next_rows(tmp_path: Path) -> None:
    task = fidelity_task(tmp_path, np.arange(40), validation_samples=5, training_samples=7)
    order = [task.batches(split) for split in ("test", "calibration", "validation", "training")]
    joined = torch.cat([batch["0"] for batches in order for batch in batches])
    assert joined.tolist() == list(range(4 + 2 + 5 + 7))
    assert [sum(len(b["0"]) for b in batches) for batches in order] == [4, 2, 5, 7]


def test_a_copy_of_a_test_sample_is_left_out_of_what_is_learned_from(tmp_path: Path) -> None:
    task = fidelity_task(tmp_path, [0, 1, 2, 3, 1, 4, 5, 0, 6, 4, 7], validation_samples=1)
    found = {s: [int(v) for b in task.batches(s) for v in b["0"]] for s in SPLITS}
    assert found == {
        "test": [0, 1, 2, 3],
        "calibration": [4, 5],
        "validation": [6],
        "training": [7],
    }


def test_samples_that_are_all_the_same_are_too_few(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"10 samples, copies included, are too few"):
        fidelity_task(tmp_path, np.zeros((10, 3))).samples("calibration")


def test_inputs_of_other_names_than_the_arguments_are_explained(tmp_path: Path) -> None:
    task = fidelity_task(tmp_path, np.random.default_rng(0).normal(size=(20, 3)).astype("f4"))
    (batch,) = task.batches("calibration")
    with pytest.raises(CardError, match=r"gives 'images'; the model's forward takes input: .*'0'"):
        task.forward(torch.nn.Linear(3, 2), {"images": batch["0"]})
    with pytest.raises(TypeError, match="unsupported operand"):
        task.forward(FailingModule(), batch)


class FailingModule(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + "1"  # type: ignore[operator]


def test_inputs_of_types_that_numpy_lacks_are_compared(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    values = torch.tensor([1, 2, 3, 4, 1, 5, 6], dtype=torch.bfloat16)
    save_file({"x": values}, tmp_path / "inputs.safetensors")
    task = make_task(tmp_path, "fidelity", file=str(tmp_path / "inputs.safetensors"))
    assert task.batches("calibration")[0]["x"].tolist() == [5, 6]


def test_random_inputs_to_learn_from_are_as_many_as_wanted_and_always_the_same(
    tmp_path: Path,
) -> None:
    spec = {"0": {"shape": [5]}, "x": {"shape": [], "dtype": "int64", "high": 100}}
    first, second = (make_task(tmp_path, "fidelity", random=spec) for _ in range(2))
    assert len(first.samples("training")) == fidelity.RANDOM_TRAINING == 1024
    assert len(first.samples("validation")) == 113
    rows = [700, 3, 5]
    one, other = (task.samples("training").batch(rows).inputs for task in (first, second))
    assert all(torch.equal(one[name], other[name]) for name in spec)
    assert one["0"].shape == (3, 5)
    assert torch.equal(first.samples("training").batch([3]).inputs["0"][0], one["0"][1])
    assert len({tuple(row.tolist()) for row in one["0"]}) == 3
    few = make_task(tmp_path, "fidelity", random=spec, training_samples=7, validation_samples=2)
    assert [len(few.samples(s)) for s in ("training", "validation")] == [7, 2]


def test_random_inputs_with_few_values_share_none_either(tmp_path: Path) -> None:
    task = make_task(
        tmp_path, "fidelity", random={"0": {"shape": [4], "dtype": "int64", "high": 3}}
    )
    found = {split: set(contents(task, split)) for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not found[one] & found[other], (one, other)
    assert len(found["calibration"]) == 2


def test_text_is_tokenized_only_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zoopress_zoo.sentence_encoder as encoder

    save_model(tmp_path, "BertModel")
    (tmp_path / "lines.txt").write_text("\n".join("a " * n for n in range(1, 60)))
    seen: list[int] = []
    original = encoder.tokenize

    def counting(tokenizer: Any, sentences: Any, most: int) -> Any:
        seen.append(len(sentences))
        return original(tokenizer, sentences, most)

    monkeypatch.setattr(encoder, "tokenize", counting)
    task = make_task(tmp_path, "fidelity", text=str(tmp_path / "lines.txt"))
    assert [b["input_ids"].shape[1] for b in task.batches("test")] == [8, 8]  # 6 words, together
    assert seen == [6]
    assert len(task.samples("training")) == 59 - 6 - 5
    assert task.samples("training").batch([0, 1]).inputs["input_ids"].shape == (2, 15)
    assert seen == [6, 2]
