"""What training does to a module, and what it leaves alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthetic_task import CLASSES, FEATURES, Classification, Weights, perceptron, run, same
from zoopress.errors import CardError, StageError
from zoopress.tasks import Batch, Split
from zoopress.training.config import TrainingConfig
from zoopress.training.sampling import Sampler
from zoopress.training.term import Term

PLAIN: dict[str, Any] = {
    "weight_decay": 0.0,
    "max_gradient_norm": None,
    "schedule": "constant",
    "warm_up": 0.0,
    "evaluations": 0,
}


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, CLASSES)


def test_training_learns_the_task(tmp_path: Path) -> None:
    module = perceptron()
    result = run(module, tmp_path, epochs=20)
    assert result.evaluations[0].metrics["accuracy"] < 0.5
    best = max(evaluation.metrics["accuracy"] for evaluation in result.evaluations)
    assert best > 0.8
    samples = Classification().samples("validation")
    batch = samples.batch(range(len(samples)))
    with torch.no_grad():
        right = module(batch.inputs["x"]).argmax(1) == batch.targets
    assert float(right.double().mean()) == best


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_is_the_textbooks(tmp_path: Path, optimizer: str) -> None:
    module, task = linear(), Classification(sizes={"training": 20})
    expected = copy.deepcopy(module)
    run(
        module,
        tmp_path,
        task,
        epochs=None,
        steps=3,
        batch_size=8,
        optimizer=optimizer,
        momentum=0.5,
        learning_rate=0.1,
        learning_rates={"bias": 0.5},
        schedule="linear",
        warm_up=0.0,
        weight_decay=0.2,
        max_gradient_norm=0.05,
        evaluations=0,
    )
    groups = [
        {"params": [expected.weight], "weight_decay": 0.2},
        {"params": [expected.bias], "weight_decay": 0.0},
    ]
    peaks = (0.1, 0.05)
    ours: torch.optim.Optimizer = (
        torch.optim.AdamW(groups) if optimizer == "adamw" else torch.optim.SGD(groups, momentum=0.5)
    )
    sampler = Sampler(20, TrainingConfig(epochs=1, batch_size=8), seed=0)
    samples = task.samples("training")
    for step in range(3):
        [rows] = sampler.passes(step)
        batch = samples.batch(rows)
        ours.zero_grad()
        F.cross_entropy(expected(batch.inputs["x"]), batch.targets).backward()
        grads = [expected.weight.grad, expected.bias.grad]
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads))
        for grad in grads:
            grad *= min(1.0, 0.05 / norm)
        for group, peak in zip(ours.param_groups, peaks, strict=True):
            group["lr"] = peak * (1 - step / 3)
        ours.step()
    torch.testing.assert_close(module.weight, expected.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module.bias, expected.bias, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("samples", [24, 29, 95])
def test_accumulated_passes_equal_one_large_batch(tmp_path: Path, samples: int) -> None:
    one, several = linear().double(), linear().double()
    task = Classification(
        lambda n, g: torch.randn(n, FEATURES, generator=g, dtype=torch.float64),
        sizes={"training": samples},
    )
    plain = {**PLAIN, "optimizer": "sgd", "epochs": 3, "learning_rate": 0.5}
    run(one, tmp_path / "one", task, [Weights(0.1)], batch_size=24, **plain)
    run(several, tmp_path / "several", task, [Weights(0.1)], batch_size=5, accumulate=5, **plain)
    same_steps = math.ceil(samples / 24) == math.ceil(samples / 25)
    assert same_steps
    # The loss itself is taken in float32.
    torch.testing.assert_close(one.weight, several.weight, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_weighted_sum_of_the_tasks_and_the_terms(tmp_path: Path) -> None:
    module, task = linear(), Classification(sizes={"training": 16})

    def expected(module: nn.Module, split: Split) -> float:
        samples = task.samples(split)
        batch = samples.batch(range(len(samples)))
        with torch.no_grad():
            output = module(batch.inputs["x"])
        loss = 0.5 * F.cross_entropy(output, batch.targets) + 3 * output.square().mean()
        return float(loss)

    before = copy.deepcopy(module)
    result = run(
        module,
        tmp_path,
        task,
        [Weights(1.0), Weights(2.0)],
        0.5,
        epochs=None,
        steps=1,
        evaluations=1,
    )
    assert result.losses == ((1, pytest.approx(expected(before, "training"), rel=1e-6)),)
    assert result.evaluations[0].loss == pytest.approx(expected(before, "validation"), rel=1e-6)


def test_without_weight_the_tasks_loss_is_never_asked_for(tmp_path: Path) -> None:
    task = Classification(target=None, metric=None)
    result = run(perceptron(), tmp_path, task, [Weights()], 0.0)
    assert task.calls == 0
    assert result.evaluations[-1].loss < result.evaluations[0].loss
    assert result.evaluations[0].metrics == {}


def test_the_same_seed_gives_the_same_bits_and_leaves_the_callers_randomness(
    tmp_path: Path,
) -> None:
    task = Classification(noise=0.1)
    modules = []
    for i, seed in enumerate((1, 1, 2)):
        modules.append(perceptron(dropout=0.3))
        torch.manual_seed(i)
        before = torch.get_rng_state()
        run(modules[i], tmp_path / str(i), task, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
    assert same(modules[0], modules[1])
    assert not same(modules[0], modules[2])


def test_looking_at_the_validation_split_does_not_change_the_training(tmp_path: Path) -> None:
    often, never = perceptron(dropout=0.3), perceptron(dropout=0.3)
    task = Classification(noise=0.1)
    result = run(often, tmp_path / "often", task, epochs=3, evaluations=18)
    unseen = run(never, tmp_path / "never", task, epochs=3, evaluations=0)
    assert result.losses == unseen.losses
    assert unseen.best_step == unseen.steps == 18
    assert same(often, never) == (result.best_step == 18)


def test_frozen_layers_stay_and_all_flags_come_back(tmp_path: Path) -> None:
    module = perceptron()
    module[4].weight.requires_grad_(False)
    before = copy.deepcopy(module)
    result = run(module, tmp_path, learning_rates={"0.*": 0.0, "6.bias": 0.0}, evaluations=0)
    assert result.trained == ("1.weight", "1.bias", "4.weight", "4.bias", "6.weight")
    for name, tensor in module.named_parameters():
        assert torch.equal(tensor, before.state_dict()[name]) == (name not in result.trained)
        assert tensor.requires_grad == (name != "4.weight")
        assert tensor.grad is None
    assert not any(part.training for part in module.modules())


def test_everything_frozen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"nothing to train.*'\*': 0.0.*freezes"):
        run(linear(), tmp_path, learning_rates={"*": 0.0})


def test_the_best_weights_are_kept_with_their_buffers(tmp_path: Path) -> None:
    module = perceptron()
    result = run(module, tmp_path, epochs=30, learning_rate=0.05, evaluations=30)
    assert 0 < result.best_step < result.steps
    [best] = [e for e in result.evaluations if e.step == result.best_step]
    ranked = sorted(result.evaluations, key=lambda e: (e.metrics["accuracy"], -e.loss))
    assert ranked[-1] == best
    short = perceptron()
    again = run(short, tmp_path / "short", epochs=30, learning_rate=0.05, evaluations=30)
    assert again.evaluations == result.evaluations
    batch = Classification().samples("validation").batch(range(40))
    with torch.no_grad():
        loss = F.cross_entropy(module(batch.inputs["x"]), batch.targets)
    assert float(loss) == pytest.approx(best.loss, rel=1e-5)


def test_a_model_that_training_makes_worse_is_left_as_it_was(tmp_path: Path) -> None:
    module = perceptron()
    run(module, tmp_path / "good", epochs=20)
    before = copy.deepcopy(module)
    worse = Classification(target=lambda x: x[:, :CLASSES].argmax(1))
    result = run(module, tmp_path / "bad", worse, epochs=2, learning_rate=3.0, optimizer="sgd")
    assert result.best_step == 0
    assert same(module, before)


@pytest.mark.parametrize("patience", [1, 3])
def test_patience_counts_evaluations_without_a_better_one(tmp_path: Path, patience: int) -> None:
    # Labels do not depend on the inputs, so nothing that is learned helps.
    task = Classification(target=lambda x: torch.arange(len(x)) * 7 % 5 % CLASSES, metric=None)
    result = run(
        perceptron(),
        tmp_path,
        task,
        epochs=100,
        evaluations=200,
        patience=patience,
        learning_rate=0.05,
    )
    assert result.stopped_early
    assert result.steps < 600
    losses = [evaluation.loss for evaluation in result.evaluations]
    assert len(losses) - 1 - losses.index(min(losses)) == patience
    assert result.evaluations[losses.index(min(losses))].step == result.best_step


def test_a_metric_of_which_less_is_better_is_lowered(tmp_path: Path) -> None:
    class Errors(Classification):
        def metrics(self, statistics: Any) -> dict[str, float]:
            return {"errors": 1 - super().metrics(statistics)["accuracy"]}

    task = Errors(metric="errors", higher_is_better=False)
    result = run(perceptron(), tmp_path, task, epochs=10)
    best = min(result.evaluations, key=lambda e: (e.metrics["errors"], e.loss))
    assert result.best_step == best.step > 0


def test_evaluations_are_spread_evenly_and_the_last_is_at_the_end(tmp_path: Path) -> None:
    result = run(perceptron(), tmp_path / "a", epochs=2, evaluations=4)
    assert [e.step for e in result.evaluations] == [0, 3, 6, 9, 12]
    result = run(perceptron(), tmp_path / "b", epochs=None, steps=3, evaluations=10)
    assert [e.step for e in result.evaluations] == [0, 1, 2, 3]


def test_losses_are_means_since_the_one_before_and_not_many(tmp_path: Path) -> None:
    fine = run(linear(), tmp_path / "fine", epochs=10, evaluations=0)
    assert [step for step, _ in fine.losses] == list(range(1, 61))
    coarse = run(linear(), tmp_path / "coarse", epochs=None, steps=250, evaluations=0)
    assert [step for step, _ in coarse.losses][:2] == [3, 6]
    assert coarse.losses[-1][0] == 250
    assert len(coarse.losses) <= 100


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"training": 0}, "no samples are left to train on"),
        ({"validation": 0}, "no samples are left for validation.*'evaluations: 0'"),
    ],
)
def test_an_empty_split_is_refused(tmp_path: Path, sizes: Any, message: str) -> None:
    with pytest.raises(CardError, match=message):
        run(linear(), tmp_path, Classification(sizes=sizes))


def test_labels_that_are_missing_are_refused_before_anything_runs(tmp_path: Path) -> None:
    module = linear()
    module.register_forward_hook(lambda *_: pytest.fail("it ran"))
    with pytest.raises(CardError, match="no labels to learn from"):
        run(module, tmp_path, Classification(target=None), [Weights()])
    with pytest.raises(StageError, match="nothing to learn"):
        run(module, tmp_path, Classification(target=None), [], 0.0)


def test_fewer_samples_than_a_batch_and_a_single_one_work(tmp_path: Path) -> None:
    for count in (1, 5):
        result = run(
            linear(), tmp_path / str(count), Classification(sizes={"training": count}), epochs=2
        )
        assert result.steps == 2


def test_batch_norm_of_a_single_value_is_explained(tmp_path: Path) -> None:
    task = Classification(sizes={"training": 1})
    with pytest.raises(StageError, match=r"Raise 'batch_size', or set 'batch_norm: freeze'"):
        run(perceptron(), tmp_path / "train", task)
    assert run(perceptron(), tmp_path / "freeze", task, batch_norm="freeze").steps == 1


def test_a_loss_that_explodes_is_stopped_with_step_rate_and_remedy(tmp_path: Path) -> None:
    class Exploding(Classification):
        def loss(self, output: Tensor, targets: Any) -> Tensor:
            return super().loss(output, targets) * (math.nan if self.calls == 5 else 1.0)

    module = perceptron()
    before = copy.deepcopy(module)
    with pytest.raises(StageError) as caught:
        run(module, tmp_path, Exploding(), evaluations=0, schedule="constant", warm_up=0)
    message = str(caught.value)
    assert "In step 5 of 6 the loss became nan, at learning rate 0.01" in message
    assert "the last finite loss was 1." in message
    assert "Lower 'learning_rate'" in message
    assert not module.training
    assert not same(module, before)


def test_gradients_that_are_not_finite_never_reach_the_weights(tmp_path: Path) -> None:
    class Root(Classification):
        def loss(self, output: Tensor, targets: Any) -> Tensor:
            return (output * 0).sqrt().sum()  # 0, its derivative infinity · 0

    module = linear()
    before = copy.deepcopy(module)
    with pytest.raises(StageError, match=r"In step 1 .* norm of the gradients became nan"):
        run(module, tmp_path, Root(), evaluations=0, max_gradient_norm=None)
    assert same(module, before)


def test_a_loss_that_nothing_trained_enters_is_refused(tmp_path: Path) -> None:
    class Constant(Classification):
        def loss(self, output: Tensor, targets: Any) -> Tensor:
            return output.detach().mean()

    with pytest.raises(StageError, match="does not depend on anything that is trained"):
        run(linear(), tmp_path, Constant(), evaluations=0)


class Hinting(Term):
    """Compares a hidden layer with fixed targets through a learned adapter."""

    def __init__(self) -> None:
        super().__init__("hint")
        self.seen: list[Tensor] = []
        self.inside = False

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        self.adapter = nn.Linear(16, 2)
        handle = module[4].register_forward_hook(lambda _, __, output: self.seen.append(output))
        self.inside = True
        try:
            yield
        finally:
            handle.remove()
            self.inside = False

    def forward(self, batch: Batch, output: Tensor) -> Tensor:
        assert self.inside
        assert len(self.seen) == 1
        return (self.adapter(self.seen.pop()) - batch.inputs["x"][:, :2]).square().mean()


def test_a_term_watches_the_module_and_learns_its_own_parameters(tmp_path: Path) -> None:
    term = Hinting()
    result = run(perceptron(), tmp_path, terms=[term], task_weight=0.0, epochs=20)
    assert result.evaluations[-1].loss < 0.5 * result.evaluations[0].loss
    assert not term.inside
    assert not any("adapter" in name for name in result.trained)


def test_16_bit_weights_learn_from_steps_below_their_resolution(tmp_path: Path) -> None:
    module = perceptron().bfloat16()
    types = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    before = copy.deepcopy(module)
    result = run(module, tmp_path, epochs=20, learning_rate=3e-4, evaluations=0, weight_decay=0)
    assert {name: tensor.dtype for name, tensor in module.state_dict().items()} == types
    assert not same(module, before)
    assert result.losses[-1][1] < result.losses[0][1] - 0.05
    full = before.float()
    run(full, tmp_path / "full", epochs=20, learning_rate=3e-4, evaluations=0, weight_decay=0)
    assert same(module.float(), full.bfloat16().float())


def test_bfloat16_passes_train_float32_weights(tmp_path: Path) -> None:
    module = perceptron()
    result = run(module, tmp_path, epochs=10, precision="bfloat16")
    assert module[0].weight.dtype == torch.float32
    assert result.losses[-1][1] < result.losses[0][1]
    exact = run(perceptron(), tmp_path / "exact", epochs=10, precision="float32")
    assert exact.losses != result.losses


def test_channels_last_is_a_layout_while_training_and_nothing_else(tmp_path: Path) -> None:
    class Network(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            last = torch.channels_last
            layouts.append(
                all(
                    p.is_contiguous(memory_format=last)
                    for p in self[::2].parameters()
                    if p.ndim == 4
                )
            )
            found: Tensor = super().forward(x)
            return found.mean((2, 3))

    layouts: list[bool] = []
    task = Classification(
        lambda n, g: torch.randn(n, 4, 5, 5, generator=g), lambda x: x.mean((2, 3)).argmax(1) % 3
    )
    modules = []
    for name, last in (("first", False), ("last", True)):
        torch.manual_seed(0)
        modules.append(Network(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, CLASSES, 3)))
        layouts.clear()
        run(modules[-1], tmp_path / name, task, epochs=4, channels_last=last)
        assert all(layout == last for layout in layouts)
        assert all(tensor.is_contiguous() for tensor in modules[-1].parameters())
    for one, other in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_progress_tells_step_loss_and_share(tmp_path: Path) -> None:
    told: list[tuple[str, float | None]] = []
    run(perceptron(), tmp_path, progress=lambda item, fraction=None: told.append((item, fraction)))
    assert told[0][0].startswith("step 1 of 6, loss 1.")
    assert told[-1][0].startswith("step 6 of 6, loss ")
    assert told[-1][1] == 1
    assert len(told) < 6


def test_notes_are_plain_json_even_of_losses_that_are_not_finite(tmp_path: Path) -> None:
    import json

    class Infinite(Classification):
        def loss(self, output: Tensor, targets: Any) -> Tensor:
            plain = super().loss(output, targets)
            return plain if torch.is_grad_enabled() else plain * math.inf

    notes = run(perceptron(), tmp_path, Infinite()).notes()
    assert json.loads(json.dumps(notes, allow_nan=False)) == notes
    assert notes["evaluations"][0]["loss"] is None


def test_a_trained_module_is_ready_for_what_follows(tmp_path: Path) -> None:
    module = perceptron()
    run(module, tmp_path)
    copy.deepcopy(module)
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.is_grad_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_to_about_the_same_and_ties_stay(tmp_path: Path) -> None:
    from zoopress.models.model import Model
    from zoopress.techniques import Context

    results = []
    for device in ("cpu", "cuda", "cuda"):
        module = perceptron()
        module[4].weight = nn.Parameter(torch.eye(16))
        module.add_module("tied", nn.Linear(16, 16))
        module[7].weight = module[4].weight
        del module[7]
        context = Context(
            seed=0,
            device=torch.device(device),
            batches=lambda: [],
            call=lambda module, batch: batch,
            progress=lambda item, fraction=None: None,
            checkpoint=tmp_path / f"{device}{len(results)}",
            task=Classification(),
        )
        context.train(Model(module), TrainingConfig(epochs=3, precision="float32"))
        assert all(p.device.type == "cpu" for p in module.parameters())
        results.append(module)
    assert same(results[1], results[2])
    torch.testing.assert_close(
        results[0].state_dict(), results[1].state_dict(), rtol=1e-2, atol=1e-3
    )
