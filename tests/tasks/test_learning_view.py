"""A technique's task is the task itself, but for its test split."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from synthetic_task import Classification, perceptron
from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.plugins import hookimpl, load_plugins
from zoopress.tasks import DatasetTask, Split, Task, without_test
from zoopress.tasks.learning_view import OF_A_SPLIT
from zoopress.techniques import Config, Context, Effects, Outcome, Technique
from zoopress.testing import run_chain, tiny_card


def test_every_method_that_takes_a_split_is_guarded() -> None:
    found = {
        name
        for kind in (Task, DatasetTask)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if "split" in inspect.signature(method).parameters
    }
    assert found == OF_A_SPLIT


def test_it_is_the_task_in_all_else() -> None:
    task = Classification()
    view = without_test(task)
    assert isinstance(view, Classification)
    assert view.samples("training") is task.samples("training")
    assert view.card is task.card
    assert view.metric == "accuracy"
    module, batch = perceptron(), task.examples("validation")[0]
    assert torch.equal(view.call(module, batch.inputs), task.call(module, batch.inputs))
    assert len(task.samples("test")) == 40


@pytest.mark.parametrize("name", ["samples", "examples", "batches", "make_samples", "groups"])
def test_the_test_split_is_refused_with_the_remedy(name: str) -> None:
    view = without_test(Classification())
    with pytest.raises(StageError, match=rf"{name}\('test'\).*'validation'"):
        getattr(view, name)("test")
    with pytest.raises(StageError, match="test split"):
        getattr(view, name)(split="test")


class Peeking(Technique[Config]):
    """Looks at what it will be judged by."""

    name = "peeking"
    family = "pruning"
    config_type = Config
    split: Split = "test"

    def effects(self) -> Effects:
        return Effects()

    def apply(self, model: Model, context: Context) -> Outcome:
        assert context.task is not None
        context.task.batches(self.split)
        raise AssertionError("the test split was given")


def test_a_technique_that_looks_at_it_fails_in_a_run(tmp_path: Path) -> None:
    announced: Any = hookimpl(lambda: [Peeking], specname="zoopress_techniques")
    plugins = load_plugins(extra={"peeking": SimpleNamespace(zoopress_techniques=announced)})
    with pytest.raises(StageError, match=r"Stage 1 \(peeking\).*asked for the test split"):
        run_chain([Peeking(Config())], tiny_card("cnn", tmp_path), tmp_path / "run", plugins)
