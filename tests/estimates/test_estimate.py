"""Estimates: what they grow with, what they leave out, and that they hold for real runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save, save_file
from torch import nn

import hub_models
import zoopress.estimates.memory as estimate_memory
import zoopress.evaluation.fidelity as evaluation
from hub_server.fixtures import HubFixture
from small_zoo import write_zoo
from warm import WarmProcess
from zoopress.cards import Card, load_card
from zoopress.cells.cell import open_cell
from zoopress.cells.selection import select_cells
from zoopress.commands.arguments import loaded_plugins
from zoopress.commands.plan import duration
from zoopress.estimates.estimate import Estimate, estimate, latency_seconds, memory_bytes
from zoopress.estimates.measurements import (
    LARGE_WEIGHT,
    Calibration,
    MachineSpeed,
    ModelProfile,
    StageSpeed,
    WeightShape,
    selected,
)
from zoopress.estimates.memory import TensorSizes, memory_of, tensor_sizes
from zoopress.estimates.probe import measure_stage
from zoopress.estimates.zoo_plan import ZooPlan
from zoopress.estimates.zoo_planner import ZooPlanner
from zoopress.evaluation.latency import measure_latency
from zoopress.models.weights import find_weights
from zoopress.orchestration.publishing import PublishSection
from zoopress.plugins import Plugins
from zoopress.progress import Reporter
from zoopress.publishing.published import PublishedRecord, add_published
from zoopress.recipes import Recipe, Stage, load_recipe
from zoopress.store import Store
from zoopress.techniques import Context, Effects, Outcome, Technique, WeightSelection

Zoopress: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]
MACHINE = MachineSpeed(1.0, 200_000_000, 3e-9, 1e-9, 3e-8, 1e-8, 1e-11)
SPEED = StageSpeed(0.01, 1e-4, 2e-8, 2e-7, 0, 1, bits=8.1, coded=False)
CODED = replace(SPEED, bits=6.0, coded=True)
RECIPES = """
recipes:
  a:
    stages:
      - {technique: magnitude_pruning, sparsity: 0.5}
      - {technique: weight_quantization, bits: 4, group_size: 16}
  b:
    stages:
      - {technique: magnitude_pruning, sparsity: 0.5}
      - {technique: weight_quantization, bits: 8}
"""
DATA = {"random": {"0": {"shape": [8]}}}
CARD = Card.model_validate({"name": "a", "source": "path:a", "factory": "a.py:b", "data": DATA})
CHAIN: list[dict[str, Any]] = [
    {"technique": "magnitude_pruning", "sparsity": 0.5},
    {"technique": "weight_quantization"},
    {"technique": "entropy_coding"},
]


def recipe(plugins: Plugins, *stages: dict[str, Any]) -> Recipe:
    made = []
    for options in stages:
        kind = plugins.technique(options["technique"])
        config = {key: value for key, value in options.items() if key != "technique"}
        made.append(Stage(kind(kind.config_type(**config))))
    return Recipe("r", tuple(made))


def profile(sizes: list[int], **others: Any) -> ModelProfile:
    weights = tuple(
        WeightShape((f"layers.{i}.weight",), "linear", size, size) for i, size in enumerate(sizes)
    )
    times = {"open": 3.0, "load": 0.1, "build": 0.1, "evaluation": 2.0, "batch": 0.2}
    rest = {"single": 0.02, "sensitivity": 0.5, "calibration_batches": 2, "run_bytes": 10**6}
    values: dict[str, Any] = {**times, **rest, "output_elements": 1000, **others}
    size = 4 * sum(weight.count for weight in weights) + 1000
    return ModelProfile(measured=True, weights=weights, tensor_bytes=size, **values)


def plan(folder: Path, plugins: Plugins, *recipes: str, **options: Any) -> ZooPlan:
    """Plan cards and recipes of a folder."""
    cards = [str(path) for path in sorted(folder.glob("*card.yaml"))]
    selection = select_cells(cards, [str(folder / name) for name in recipes], None, plugins)
    planner = ZooPlanner(Store(folder / "store"), plugins, **{"probe": False, **options})
    return planner.plan(selection)


@pytest.fixture
def zoopress(tmp_path: Path, warm: WarmProcess) -> Zoopress:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [warm.folder / "zoopress", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "ZOOPRESS_STORE": str(tmp_path / "store"), "COLUMNS": "200"},
        )

    return run


@given(
    sizes=st.lists(st.integers(1, 4000), min_size=1, max_size=5),
    position=st.integers(0, 4),
    more=st.integers(1, 4000),
)
def test_a_larger_weight_never_takes_less(
    sizes: list[int], position: int, more: int, plugins: Plugins
) -> None:
    chain = recipe(plugins, *CHAIN)
    larger = list(sizes)
    larger[position % len(sizes)] += more

    def figures(of: list[int]) -> list[float]:
        made = profile(of)
        found = estimate(chain, made.tensor_bytes, 32, made, MACHINE, [SPEED, SPEED, CODED])
        counts = [size * size for size in of]
        tensors = TensorSizes(4 * sum(counts), sum(counts), max(counts), max(of))
        known = [seconds for seconds in found.stages if seconds is not None]
        assert len(known) == 3
        memory = [memory_of(CARD, chain, tensors, MACHINE, p) for p in (None, made)]
        return [*known, *found.stage_bytes, *memory]

    for before, after in zip(figures(sizes), figures(larger), strict=True):
        assert after >= before


@given(batches=st.lists(st.floats(0, 100), min_size=2, max_size=2), calibration=st.integers(0, 3))
def test_a_slower_model_or_more_calibration_takes_longer(
    batches: list[float], calibration: int, plugins: Plugins
) -> None:
    chain = recipe(plugins, *CHAIN)

    def seconds(batch: float, count: int) -> Estimate:
        made = profile([64], batch=batch, evaluation=4 * batch, calibration_batches=count)
        return estimate(chain, made.tensor_bytes, 32, made, MACHINE, [SPEED, SPEED, CODED])

    low, high = sorted(batches)
    assert seconds(low, 1).finish <= seconds(high, 1).finish  # type: ignore[operator]
    less, more = seconds(high, calibration).stages, seconds(high, calibration + 1).stages
    assert all(b - a == pytest.approx(high) for a, b in zip(less, more, strict=True))  # type: ignore[operator]


@given(
    training=st.integers(1, 500),
    validation=st.integers(0, 50),
    rounds=st.integers(1, 4),
    batch=st.floats(0.01, 3),
)
def test_training_takes_its_samples_times_the_models_own_time(
    training: int, validation: int, rounds: int, batch: float, plugins: Plugins
) -> None:
    recovery = recipe(
        plugins, {"technique": "distillation", "epochs": 2, "batch_size": 7, "evaluations": 3}
    ).stages[0]
    pruning = recipe(
        plugins, {"technique": "magnitude_pruning", "sparsity": 0.5, "rounds": rounds}
    ).stages[0]
    with_recovery = replace(pruning, recovery=recovery.technique)
    known = {"training_samples": training, "validation_samples": validation}
    made = profile([64], **known, training_batch=batch)

    def seconds(stage: Stage) -> float:
        found = estimate(Recipe("r", (stage,)), made.tensor_bytes, 32, made, MACHINE, [SPEED])
        assert found.stages[0] is not None
        return found.stages[0]

    trained, run = 2 * training, 2 * training + 2 * 4 * validation
    once = (trained * batch + run * made.batch) / 32
    assert seconds(with_recovery) - seconds(pruning) == pytest.approx(rounds * once)
    assert seconds(recovery) >= once


def test_training_on_unknown_data_has_no_estimate(plugins: Plugins) -> None:
    tuned, made = recipe(plugins, {"technique": "fine_tuning", "epochs": 1}), profile([64])
    found = estimate(tuned, made.tensor_bytes, 32, made, MACHINE, [SPEED])
    assert found.stages == (None,)


def test_a_recovery_is_no_matter_of_a_techniques_own_speed(
    tmp_path: Path, plugins: Plugins
) -> None:
    pruning, tuning = recipe(
        plugins,
        {"technique": "magnitude_pruning", "sparsity": 0.5},
        {"technique": "fine_tuning", "epochs": 1},
    ).stages
    calibration = Calibration(tmp_path, plugins)
    both = replace(pruning, recovery=tuning.technique)
    assert calibration._stage_path(pruning, False) == calibration._stage_path(both, False)
    calibration.measure_stages([(both, False), (tuning, False)], Reporter())
    assert calibration.problems == {}
    assert calibration.stage(both, False) is not None
    assert calibration.stage(tuning, False) is not None


def test_training_claims_memory_for_what_it_keeps(plugins: Plugins) -> None:
    tuned = recipe(plugins, {"technique": "fine_tuning", "epochs": 1, "batch_size": 64})
    sizes = TensorSizes(4 * 64**2, 64**2, 64**2, 64)
    known = profile([64], training_samples=9, training_bytes=10**8)
    plain = recipe(plugins, {"technique": "float_precision"})
    claims = [memory_of(CARD, chosen, sizes, MACHINE, known) for chosen in (plain, tuned)]
    assert claims[1] - claims[0] >= 10**8
    assert memory_of(CARD, tuned, sizes) > memory_of(CARD, plain, sizes)


def test_what_is_stored_only_shrinks_along_a_chain(plugins: Plugins) -> None:
    made = profile([256, 512])
    dense, quantized, coded = estimate(
        recipe(plugins, *CHAIN), made.tensor_bytes, 32, made, MACHINE, [None, SPEED, CODED]
    ).stage_bytes
    assert dense == made.tensor_bytes + 16_000 + 2 * 500
    numbers = 256**2 + 512**2
    assert quantized == pytest.approx(numbers * 8.1 / 8 + 18_000, abs=2)
    assert coded == pytest.approx(numbers * 6.0 / 8 + 18_000, abs=2)


def test_weights_that_the_kernel_must_find_room_for_have_a_rate_of_their_own(
    plugins: Plugins,
) -> None:
    chain = recipe(plugins, {"technique": "weight_quantization"})
    side = int(LARGE_WEIGHT**0.5) + 1
    seconds = []
    for large_work in (SPEED.work, SPEED.large_work):
        made = profile([side, 100])
        speed = replace(SPEED, large_work=large_work)
        found = estimate(chain, made.tensor_bytes, 32, made, MACHINE, [speed]).stages[0]
        assert found is not None
        seconds.append(found)
    rates = SPEED.large_work - SPEED.work
    assert seconds[1] - seconds[0] == pytest.approx(rates * side * side)


PATTERNS = st.sampled_from(["*", "*weight", "*.in_proj*", "head*", "*linear?.*", "none", "conv*"])


@given(
    name=st.sampled_from(["cnn", "lstm", "transformer"]),
    kinds=st.sets(st.sampled_from(["linear", "conv", "embedding", "recurrent"]), min_size=1),
    include=st.lists(PATTERNS, min_size=1, max_size=2),
    exclude=st.lists(PATTERNS, max_size=1),
)
def test_what_a_technique_selects_is_known_without_the_model(
    name: str,
    kinds: set[str],
    include: list[str],
    exclude: list[str],
    tiny: Callable[..., nn.Module],
    plugins: Plugins,
) -> None:
    module = tiny(name)
    weights = [
        WeightShape(tuple(p.name for p in w.locations), w.kind, *w.matrix().shape)
        for w in find_weights(module)
    ]
    stage = {"technique": "weight_quantization", "kinds": tuple(sorted(kinds))}
    technique = (
        recipe(plugins, {**stage, "include": tuple(include), "exclude": tuple(exclude)})
        .stages[0]
        .technique
    )
    expected = [w.name for w in find_weights(module, kinds, include, exclude)]
    assert [weights[i].names[0] for i in selected(technique, weights)] == expected


@given(pair=st.floats(1e-4, 20))
def test_measuring_latency_takes_what_is_estimated(pair: float) -> None:
    seconds = latency_seconds(pair)
    assert seconds > 4.99 * pair  # two to warm up and three to measure
    assert seconds <= max(4 + 2 * pair, 5 * pair) + 1e-9
    assert seconds <= 202 * pair + 1e-9


def test_latency_of_a_quick_model_is_measured_as_often_as_is_estimated() -> None:
    class Once:
        calls = 0

        def batches(self, split: str) -> list[torch.Tensor]:
            return [torch.zeros(4, 1)]

        def call(self, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return batch

    task = Once()
    measure_latency(task, nn.Identity(), nn.Identity(), [1])  # type: ignore[arg-type]
    assert task.calls / 2 == latency_seconds(1e-9) / 1e-9


def test_tensor_sizes_are_those_of_the_file(tmp_path: Path) -> None:
    tensors = {
        "embedding": torch.zeros(100, 8, dtype=torch.bfloat16),
        "weight": torch.zeros(20, 8),
        "scalar": torch.zeros(()),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 20)
    sizes = tensor_sizes(tmp_path, ["model.safetensors", "broken.safetensors"])
    assert sizes == TensorSizes(100 * 8 * 2 + 20 * 8 * 4 + 4, 961, 800, 8)


def test_memory_is_claimed_without_torch(tmp_path: Path) -> None:
    write_zoo(tmp_path)
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from zoopress.cards import load_card; from zoopress.cells.cell import open_cell\n"
        "from zoopress.estimates.estimate import memory_bytes\n"
        "from zoopress.plugins import load_plugins\n"
        "from zoopress.recipes import load_recipe; from zoopress.store import Store\n"
        "p = load_plugins(); card = load_card('card.yaml', p); r = load_recipe('recipe.yaml', p)\n"
        "print(memory_bytes(open_cell(card, r, Store('store'), p)))\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "."], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10**8


def test_prefixes_that_recipes_share_are_counted_once(tmp_path: Path, plugins: Plugins) -> None:
    write_zoo(tmp_path)
    (tmp_path / "params.yaml").write_text(RECIPES)
    both = plan(tmp_path, plugins, "params.yaml#recipes")
    one, other = (
        plan(tmp_path, plugins, f"params.yaml#recipes.{name}").cells[0] for name in ("a", "b")
    )
    assert [[s.state for s in c.stages] for c in both.cells] == [
        ["compute", "compute"],
        ["shared", "compute"],
    ]
    total = both.total()
    assert total["stages_to_compute"] == 3
    assert total["stages_shared"] == 1
    shared = one.stages[0].store_bytes
    assert total["store_bytes"] == one.store_bytes + other.store_bytes - shared
    assert total["memory_bytes"] == max(one.memory_bytes, other.memory_bytes)


def test_a_cell_that_cannot_run_is_told_and_stops_no_other(
    tmp_path: Path, zoopress: Zoopress
) -> None:
    write_zoo(tmp_path)
    (tmp_path / "params.yaml").write_text(
        RECIPES + "  wrong:\n    stages:\n      - {technique: weight_quantization}\n"
        "      - {technique: truncated_svd, rank: 2}\n"
        "matrix: {cards: [card.yaml, gone.yaml, bare.yaml], recipes: [a, wrong]}\n"
    )
    (tmp_path / "bare.yaml").write_text("name: bare\nsource: path:nothing-here\n")
    done = zoopress("plan", "--matrix", "params.yaml", "--no-probe", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    problems = {(cell["card"], cell["recipe"]): cell["problem"] for cell in found["cells"]}
    assert problems["perceptron", "a"] is None
    assert "This order works: truncated_svd" in problems["perceptron", "wrong"]
    assert "There is no card 'gone.yaml'" in problems["gone", "a"]
    assert "there is nothing at" in problems["bare", "a"]
    assert found["total"]["problems"] == 5
    assert found["total"]["stages_to_compute"] == 2
    shown = zoopress("plan", "--matrix", "params.yaml", "--no-probe")
    assert shown.returncode == 1
    assert "✗ bare × a: Card 'bare': there is nothing at" in shown.stderr
    assert "perceptron" in shown.stdout
    assert "Traceback" not in shown.stderr


def test_a_plan_says_what_json_readers_rely_on(tmp_path: Path, plugins: Plugins) -> None:
    write_zoo(tmp_path)
    found = plan(tmp_path, plugins, "recipe.yaml").as_dict()
    assert set(found) == {"cells", "total", "measured_seconds", "notes"}
    cell = json.loads(json.dumps(found))["cells"][0]
    assert cell["stages"][0] == {
        "technique": "neuron_pruning",
        "config": {"sparsity": 0.25},
        "state": "compute",
        "seconds": None,
        "store_bytes": cell["stages"][0]["store_bytes"],
    }
    assert cell["seconds"] is None
    assert cell["fetch_bytes"] == 0
    assert cell["memory_bytes"] > 200_000_000


def test_without_a_recipe_the_command_says_how_to_name_one(zoopress: Zoopress) -> None:
    done = zoopress("plan", "minilm")
    assert done.returncode == 1
    assert "zoopress plan minilm hybrid" in done.stderr


def test_times_are_said_in_few_words() -> None:
    assert [duration(x) for x in (None, 0.04, 9.96, 61, 3599.7, 7384)] == [
        "?",
        "0.0 s",
        "10 s",
        "1 min 1 s",
        "1 h 0 min",
        "2 h 3 min",
    ]


# the probe


class Listening(Technique[WeightSelection]):
    """Runs the model twice on each calibration batch, and waits a while for each number."""

    name = "listening"
    family = "pruning"
    config_type = WeightSelection
    seconds_a_number = 2e-6

    def effects(self) -> Effects:
        return Effects()

    def apply(self, model: Any, context: Context) -> Outcome:
        for batch in [*context.batches(), *context.batches()]:
            context.call(model.module, batch)
        weights = self.config.select(model)
        time.sleep(self.seconds_a_number * sum(w.parameter.numel() for w in weights))
        return Outcome([w.name for w in weights])


def test_a_technique_nobody_knows_is_timed_by_running_it(plugins: Plugins) -> None:
    config = WeightSelection(kinds=("embedding",), include=("a.name.of.another.model",))
    speed = measure_stage(Listening(config), False, time.perf_counter, plugins)
    assert (speed.calls, speed.batch_calls) == (0, 2)
    assert speed.work > 0.7 * Listening.seconds_a_number  # how much more is the machine's concern
    assert speed.bits == pytest.approx(32, abs=0.01)
    assert not speed.coded


# A process of its own: the peak of a child counts that of the process which it was forked from.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
"""


def peak_of_a_run(folder: Path, **variables: str) -> int:
    """Run a folder's cell in a process of its own, and return the most memory that it took."""
    command = [sys.executable, "-m", "zoopress", "run", "card.yaml", "recipe.yaml", "--quiet"]
    command += ["--store", "store", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *command],
        cwd=folder,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )
    return int(done.stdout)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], int]:
    """A cell that was planned, and then run; the peak of its memory."""
    folder = tmp_path_factory.mktemp("measured")
    write_zoo(folder, width=768)
    plugins = loaded_plugins()
    expected = plan(folder, plugins, "recipe.yaml", probe=True, clock="cpu")
    peak = peak_of_a_run(folder)
    assert not expected.notes
    return folder, expected.as_dict(), peak


@pytest.mark.slow
def test_a_real_run_takes_at_most_the_disk_that_was_estimated(
    measured: tuple[Path, dict[str, Any], int],
) -> None:
    folder, expected, _ = measured
    (cell,) = expected["cells"]
    assert cell["seconds"] > 0

    def size(part: str) -> int:
        return sum(f.stat().st_size for f in (folder / part).rglob("*") if f.is_file())

    # Of pruning and quantizing the same weights, a plan counts what gives more, and neurons of
    # which it cannot know whether they can be removed it takes to stay.
    assert 0.3 * cell["store_bytes"] < size("store/entries") <= cell["store_bytes"]
    assert 0.15 * cell["result_bytes"] < size("out/artifact") <= cell["result_bytes"]


@pytest.mark.slow
def test_a_real_run_stays_within_the_memory_that_was_claimed(
    measured: tuple[Path, dict[str, Any], int], plugins: Plugins
) -> None:
    folder, expected, peak = measured
    assert peak > 10**8
    assert peak <= expected["cells"][0]["memory_bytes"]
    card = load_card(str(folder / "card.yaml"), plugins)
    chain = load_recipe(str(folder / "recipe.yaml"), plugins)
    unknown = open_cell(card, chain, Store(folder / "another-store"), plugins)
    assert peak <= memory_bytes(unknown)


@pytest.mark.slow
def test_a_first_run_compiles_within_the_memory_that_was_claimed(
    tmp_path: Path, plugins: Plugins
) -> None:
    write_zoo(tmp_path, width=768)
    card = load_card(str(tmp_path / "card.yaml"), plugins)
    chain = load_recipe(str(tmp_path / "recipe.yaml"), plugins)
    claimed = memory_bytes(open_cell(card, chain, Store(tmp_path / "another-store"), plugins))
    assert peak_of_a_run(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "kernels")) <= claimed
    assert any((tmp_path / "kernels").iterdir())


def test_what_is_in_the_store_takes_no_time_no_probe_and_no_torch(
    measured: tuple[Path, dict[str, Any], Any],
) -> None:
    folder, _, _ = measured
    code = (
        "import sys; from zoopress.commands.cli import main\n"
        "def no_probe(event, arguments):\n"
        "    assert event != 'subprocess.Popen', arguments\n"
        "sys.addaudithook(no_probe); sys.argv[0] = 'zoopress'\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", "card.yaml", "recipe.yaml", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "ZOOPRESS_STORE": str(folder / "store")},
    )
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads(done.stdout)["cells"]
    assert [stage["state"] for stage in cell["stages"]] == ["stored"] * 4
    assert (cell["seconds"], cell["memory_bytes"], cell["store_bytes"]) == (0.0, 0, 0)
    real = sum(f.stat().st_size for f in (folder / "out/artifact").rglob("*") if f.is_file())
    readme = (folder / "out/artifact/README.md").stat().st_size
    assert cell["result_bytes"] == pytest.approx(real - readme, rel=0.2)


def test_measurements_are_kept_and_are_of_one_machine_and_code(
    measured: tuple[Path, dict[str, Any], Any],
    plugins: Plugins,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, expected, _ = measured
    assert expected["measured_seconds"] > 0
    stages = [(stage, False) for stage in load_recipe(str(folder / "recipe.yaml"), plugins).stages]

    def calibration() -> Calibration:
        return Calibration(folder / "store" / "calibration", plugins, "cpu")

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    known = calibration()
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", forbidden)
        known.measure_stages(stages, Reporter())
    assert known.machine() is not None
    assert all(known.stage(*stage) for stage in stages)
    assert known.seconds == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert calibration().machine() is None
    monkeypatch.undo()
    assert calibration().machine() == known.machine()
    monkeypatch.setattr("zoopress.estimates.measurements.core_code", lambda *_, **__: "other code")
    assert calibration().machine() is None


def test_what_cannot_be_measured_is_told_and_leaves_the_rest_estimated(
    measured: tuple[Path, dict[str, Any], Any], plugins: Plugins
) -> None:
    folder, _, _ = measured
    (folder / "svd.yaml").write_text(
        "stages:\n  - {technique: truncated_svd, energy: 0.9999999}\n"
        "  - {technique: weight_quantization, bits: 4, group_size: 16}\n"
    )
    made = plan(folder, plugins, "svd.yaml", probe=True, clock="cpu")
    first, second = made.cells[0].stages
    assert first.seconds is None
    assert second.seconds is not None
    assert made.cells[0].seconds is None
    assert any("truncated_svd could not be measured: StageError" in note for note in made.notes)


def test_what_is_published_already_is_told_apart(
    measured: tuple[Path, dict[str, Any], Any], plugins: Plugins, tmp_path: Path
) -> None:
    folder, _, _ = measured
    where = PublishSection(repo="zoo/{card}-{recipe}")
    report = json.loads((folder / "out" / "report.json").read_text())
    run = tmp_path / "perceptron" / "recipe"
    run.mkdir(parents=True)

    def state() -> Any:
        return (
            plan(folder, plugins, "recipe.yaml", publish=where, out=tmp_path).cells[0].publication
        )

    assert (state().repo_id, state().state) == ("zoo/perceptron-recipe", "publish")
    record = PublishedRecord(
        "zoo/perceptron-recipe",
        "https://hub/zoo/perceptron-recipe",
        "c" * 40,
        None,
        report["artifact_sha256"],
        None,
        None,
        report["revision"],
    )
    add_published(run, replace(record, artifact_sha256="0" * 64))
    assert state().state == "publish"
    add_published(run, record)
    assert (state().state, state().url) == ("unchanged", record.url)


@pytest.mark.parametrize("probe", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_plan_of_a_model_on_the_hub_fetches_no_weights(
    probe: bool, hub: HubFixture, tmp_path: Path, plugins: Plugins
) -> None:
    pytest.importorskip("transformers")
    weights = save({"embeddings.weight": torch.zeros(200, 32)})
    hub.create_repo("zoo/classifier", {**hub_models.CLASSIFIER, "model.safetensors": weights})
    (tmp_path / "card.yaml").write_text(
        "name: classifier\nsource: hub:zoo/classifier\n"
        "data: {random: {input_ids: {shape: [12], dtype: int64, high: 200}}}\n"
    )
    (tmp_path / "recipe.yaml").write_text("stages:\n  - {technique: weight_quantization}\n")
    made = plan(tmp_path, plugins, "recipe.yaml", probe=probe)
    (cell,) = made.cells
    assert cell.problem is None
    assert cell.fetch_bytes == len(weights)
    assert not list(hub.cache.rglob("*.safetensors"))
    assert (cell.seconds is not None) == probe
    assert cell.memory_bytes > 256 << 20


def test_the_bound_of_outputs_is_that_of_the_evaluation() -> None:
    assert estimate_memory._MOST_OUTPUTS == evaluation.MAX_OUTPUT_ELEMENTS
