"""A third party's technique that trains, in chains with the real ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from synthetic_task import same
from zoopress.cards import Card
from zoopress.errors import CardError
from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.pipeline.compress import Result, compress
from zoopress.plugins import Plugins, hookimpl, load_plugins
from zoopress.recipes import Recipe, Stage
from zoopress.store import Store
from zoopress.tasks import Batch
from zoopress.techniques import Config, Context, Effects, Need, Outcome, Technique
from zoopress.testing import reload_artifact, tiny_card
from zoopress.training.config import TrainingConfig
from zoopress.training.term import Term


class LikeTeacher(Term):
    """Mean squared distance from the teacher's output."""

    def __init__(self, teacher: torch.nn.Module, context: Context) -> None:
        super().__init__("like the teacher")
        self._held = (teacher,)  # in a tuple, so that it is not trained
        self._context = context

    def forward(self, batch: Batch, output: Tensor) -> Tensor:
        assert self._context.task is not None
        with torch.no_grad():
            expected = self._context.task.forward(self._held[0], batch.inputs)
        return F.mse_loss(output, expected)


class RoundsConfig(Config):
    rounds: int = Field(default=1, description="how often to train")
    labels: bool = Field(default=False, description="whether to learn from labels")
    training: TrainingConfig = Field(
        default=TrainingConfig(epochs=4, batch_size=16, learning_rate=3e-3), description="how"
    )


class Rounds(Technique[RoundsConfig]):
    """Learn from the original's outputs, in rounds."""

    name = "rounds"
    family = "distillation"
    config_type = RoundsConfig
    needs: ClassVar[frozenset[Need]] = frozenset({"training", "teacher"})

    def effects(self) -> Effects:
        """Change nothing that others rely on."""
        return Effects()

    def apply(self, model: Model, context: Context) -> Outcome:
        """Train."""
        assert context.teacher is not None
        term = LikeTeacher(context.teacher(None), context)
        for _ in range(self.config.rounds):
            result = context.train(model, self.config.training, [term], float(self.config.labels))
        return Outcome(result.trained, shrinks=False, notes=result.notes())


@hookimpl
def zoopress_techniques() -> list[type[Rounds]]:
    return [Rounds]


@pytest.fixture(scope="module")
def with_rounds() -> Plugins:
    return load_plugins(extra={"rounds": SimpleNamespace(zoopress_techniques=zoopress_techniques)})


def card(name: str, folder: Path) -> Card:
    """Return a tiny model's card with inputs to train and validate on."""
    tiny = tiny_card(name, folder)
    assert tiny.data is not None
    data = tiny.data.model_copy(update={"training_samples": 160, "validation_samples": 32})
    changed = tiny.model_copy(update={"data": data})
    changed._root = tiny.root
    return changed


def chain(
    folder: Path, plugins: Plugins, model: str, *stages: tuple[str, dict[str, object]]
) -> tuple[Result, Card]:
    used = card(model, folder)
    techniques = [plugins.technique(name) for name, _ in stages]
    recipe = Recipe(
        "test",
        tuple(
            Stage(kind(kind.config_type.model_validate(config)))
            for kind, (_, config) in zip(techniques, stages, strict=True)
        ),
    )
    return compress(used, recipe, folder / "out", Store(folder / "store"), plugins), used


PRUNE = ("magnitude_pruning", {"sparsity": 0.5})
QUANTIZE = ("weight_quantization", {"bits": 4, "group_size": 16})


@pytest.mark.parametrize("model", ["cnn", pytest.param("transformer", marks=pytest.mark.slow)])
def test_training_after_pruning_recovers_and_keeps_the_zeros(
    tmp_path: Path, with_rounds: Plugins, model: str
) -> None:
    result, used = chain(tmp_path, with_rounds, model, PRUNE, ("rounds", {}), QUANTIZE)
    pruned, trained, _ = (stage.fidelity.cosine for stage in result.report.stages)
    assert trained > pruned + 0.25 * (1 - pruned)
    losses = [e["loss"] for e in result.report.stages[1].notes["evaluations"]]
    assert min(losses) < 0.7 * losses[0]
    last = reload_artifact(result.artifact, used, with_rounds)
    codes = sum(int((~mask).sum()) for mask in last.masks.values())
    # Weights that quantization rounds to zero count as pruned, too.
    assert codes >= result.report.stages[1].pruned > 0


def test_training_after_quantization_moves_only_what_is_not_packed(
    tmp_path: Path, with_rounds: Plugins
) -> None:
    quantize = ("weight_quantization", {"bits": 3, "kinds": ["linear", "conv"]})
    result, used = chain(tmp_path, with_rounds, "transformer", PRUNE, quantize, ("rounds", {}))
    before, after = result.report.stages[1], result.report.stages[2]
    assert after.fidelity.cosine > before.fidelity.cosine
    packed = packed_weights(reload_artifact(result.artifact, used, with_rounds).module)
    assert packed
    assert not packed.keys() & set(after.touched)


def test_rounds_that_were_finished_are_found_by_a_killed_stage(
    tmp_path: Path, with_rounds: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    folder = tmp_path / "killed"
    rounds = ("rounds", {"rounds": 3, "training": {"steps": 2}})
    real, calls = Context.train, []

    def dying(self: Context, *arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KilledError
        return real(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Context, "train", dying)
        with pytest.raises(KilledError):
            chain(folder, with_rounds, "cnn", PRUNE, rounds)
    assert len(list(folder.glob("store/checkpoints/*/training-*/state.safetensors"))) == 2
    result, used = chain(folder, with_rounds, "cnn", PRUNE, rounds)
    assert not list(folder.glob("store/checkpoints/*"))
    whole, _ = chain(tmp_path / "whole", with_rounds, "cnn", PRUNE, rounds)
    one, other = (reload_artifact(r.artifact, used, with_rounds).module for r in (result, whole))
    assert same(one, other)


def test_labels_that_the_card_lacks_are_refused_by_name(
    tmp_path: Path, with_rounds: Plugins
) -> None:
    with pytest.raises(CardError, match="'tiny-cnn': the task 'fidelity' has no labels"):
        chain(tmp_path, with_rounds, "cnn", ("rounds", {"labels": True}))
