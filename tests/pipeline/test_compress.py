"""The main path: results kept, taken up again, identical, never trusted when broken."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import zoopress
from small_zoo import CHAIN, FACTORY, read_zoo, write_zoo
from warm import WarmProcess
from zoopress.cells.cell import open_cell
from zoopress.errors import GateError, SourceError, StageError
from zoopress.pipeline.compress import Result, compress
from zoopress.plugins import load_plugins
from zoopress.recipes import load_recipe
from zoopress.store import Store

pytestmark = pytest.mark.usefixtures("brief_latency")


def run(folder: Path, out: str = "out", store: str = "store") -> Result:
    return compress(*read_zoo(folder), folder / out, Store(folder / store))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    write_zoo(tmp_path)
    return tmp_path


def test_a_chain_shrinks_the_model_and_reports_what_it_measured(zoo: Path) -> None:
    result = run(zoo)
    report = json.loads((zoo / "out" / "report.json").read_text())
    metrics = json.loads((zoo / "out" / "metrics.json").read_text())
    size = sum(p.stat().st_size for p in result.artifact.rglob("*") if p.name != "README.md")
    assert metrics["size_bytes"] == size
    assert metrics["compression_ratio"] == pytest.approx(
        (zoo / "weights.safetensors").stat().st_size / size, rel=1e-3
    )
    assert [stage["technique"] for stage in report["stages"]] == list(result.computed)
    before = [stage["weight_bytes_before"] for stage in report["stages"]]
    after = [stage["weight_bytes"] for stage in report["stages"]]
    assert after == sorted(after, reverse=True)
    assert before[1:] == after[:-1]


def test_the_saved_model_computes_what_the_report_says(zoo: Path) -> None:
    result = run(zoo)
    card, _ = read_zoo(zoo)
    plugins = load_plugins()
    task = plugins.resolve("tasks", card.task)(card, zoo)
    model = zoopress.load(result.artifact, factory=str(zoo / "networks.py") + ":build")
    original = nn.Sequential(
        *(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU()), nn.Linear(96, 10)
    )
    original.load_state_dict(load_file(zoo / "weights.safetensors"))
    cosines = [
        nn.functional.cosine_similarity(task.call(original, b), task.call(model, b), dim=1)
        for b in task.batches("test")
    ]
    measured = float(torch.cat(cosines).mean())
    assert measured == pytest.approx(result.report.last.fidelity.cosine, abs=1e-5)
    assert 0.3 < measured < 0.9999


def test_a_second_run_computes_nothing_and_rewrites_a_missing_output(zoo: Path) -> None:
    first = run(zoo)
    before = digests(first.artifact)
    (first.artifact / "model.zpz").unlink()
    second = run(zoo)
    assert second.computed == ()
    assert digests(second.artifact) == before


def test_a_second_run_does_not_import_torch(zoo: Path) -> None:
    run(zoo)
    code = (
        "import sys; from pathlib import Path; sys.argv=['zoopress','run','card.yaml',"
        "'recipe.yaml','--out','out','--store','store','--quiet']\n"
        "from zoopress.commands.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=zoo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_two_stores_give_identical_artifacts(zoo: Path) -> None:
    first, second = run(zoo), run(zoo, "other", "other-store")
    assert second.computed == first.computed != ()
    assert digests(first.artifact) == digests(second.artifact)


def test_a_longer_recipe_starts_from_the_stages_it_shares(zoo: Path) -> None:
    run(zoo)
    text = CHAIN.replace("bits: 4", "bits: 3")
    (zoo / "recipe.yaml").write_text(text)
    assert run(zoo).computed == ("weight_quantization", "entropy_coding")


@pytest.mark.parametrize("change", ["weights", "factory", "data", "seed"])
def test_a_change_of_anything_a_result_depends_on_computes_anew(zoo: Path, change: str) -> None:
    run(zoo)
    if change == "weights":
        tensors = load_file(zoo / "weights.safetensors")
        tensors["0.bias"] = tensors["0.bias"] + 1
        save_file(tensors, zoo / "weights.safetensors")
    elif change == "factory":
        (zoo / "networks.py").write_text(FACTORY.replace("nn.ReLU()", "nn.GELU()"))
    elif change == "data":
        card = (zoo / "card.yaml").read_text()
        (zoo / "card.yaml").write_text(card + "  evaluation_samples: 40\n")
    else:
        (zoo / "recipe.yaml").write_text("seed: 7\n" + CHAIN)
    assert len(run(zoo).computed) == 4


def test_a_damaged_store_entry_is_set_aside_and_computed_again(zoo: Path) -> None:
    first = run(zoo)
    before = digests(first.artifact)
    stored = (zoo / "store" / "entries").glob("*/*/artifact/*.*")
    for entry in (path for path in stored if path.suffix in (".safetensors", ".zpz")):
        data = bytearray(entry.read_bytes())
        data[len(data) // 2] ^= 1
        entry.write_bytes(data)
    second = run(zoo)
    assert len(second.computed) == 4
    assert digests(second.artifact) == before
    assert list((zoo / "store" / "quarantine").iterdir())


def test_a_stage_that_matches_nothing_is_an_error_and_leaves_nothing(zoo: Path) -> None:
    (zoo / "recipe.yaml").write_text(
        "stages: [{technique: magnitude_pruning, sparsity: 0.5, kinds: [conv]}]"
    )
    with pytest.raises(StageError, match=r"No float weight matches kinds \['conv'\].*'linear'"):
        run(zoo)
    assert not list((zoo / "store" / "entries").glob("*/*"))
    assert not list((zoo / "store" / "staging").glob("*"))
    assert not (zoo / "out").exists()


def test_a_stage_whose_side_information_costs_more_than_it_saves_fails_its_gate(zoo: Path) -> None:
    (zoo / "recipe.yaml").write_text("stages: [{technique: magnitude_pruning, sparsity: 0.01}]")
    with pytest.raises(GateError, match=r"Stage 1 \(magnitude_pruning\).*did not shrink"):
        run(zoo)
    assert not list((zoo / "store" / "entries").glob("*/*"))


def test_a_missed_target_names_it_and_a_looser_one_computes_nothing_again(zoo: Path) -> None:
    (zoo / "recipe.yaml").write_text(CHAIN + "targets: {min_cosine: 0.99999}\n")
    with pytest.raises(GateError, match=r"cosine is .* below the target of 1\.0000"):
        run(zoo)
    (zoo / "recipe.yaml").write_text(CHAIN + "targets: {min_cosine: 0.1}\n")
    assert run(zoo).computed == ("magnitude_pruning", "weight_quantization", "entropy_coding")


def test_a_size_target_is_asked_of_the_whole_chain_alone(zoo: Path) -> None:
    (zoo / "recipe.yaml").write_text(CHAIN + "targets: {max_size_bytes: 5000}\n")
    with pytest.raises(GateError, match=r"Stage 4 \(entropy_coding\).*above the target of 5,000"):
        run(zoo)
    (zoo / "recipe.yaml").write_text(CHAIN + "targets: {max_size_bytes: 30000}\n")
    assert run(zoo).report.last.size_bytes <= 30000


def test_weights_with_nan_are_refused_by_name(zoo: Path) -> None:
    tensors = load_file(zoo / "weights.safetensors")
    tensors["2.weight"][3, 4] = float("nan")
    save_file(tensors, zoo / "weights.safetensors")
    with pytest.raises(SourceError, match=r"'2\.weight' holds 1 values that are NaN"):
        run(zoo)


@pytest.mark.parametrize("attempt", range(4))
def test_a_run_killed_at_any_moment_continues_to_the_same_bytes(
    tmp_path: Path, warm: WarmProcess, attempt: int
) -> None:
    # Wide enough that stages take a while, so that the kill often falls inside one.
    write_zoo(tmp_path, width=700)
    expected = digests(run(tmp_path, "expected", "other-store").artifact)
    command = [
        *(str(warm.folder / "zoopress"), "run", "card.yaml"),
        *("recipe.yaml", "--out", "out", "--store", "store", "--quiet"),
    ]
    entries = tmp_path / "store" / "entries"
    child = subprocess.Popen(command, cwd=tmp_path)
    stop_at = attempt  # results that may be finished before the kill
    while child.poll() is None and len(list(entries.glob("*/*/record.json"))) < stop_at:
        time.sleep(0.005)
    time.sleep(random.Random(attempt).uniform(0.0, 0.4) if attempt else 2.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    finished = {path.parent.name for path in entries.glob("*/*/record.json")}
    assert len(finished) >= stop_at

    result = run(tmp_path)
    assert digests(result.artifact) == expected
    assert len(result.computed) <= 4 - min(stop_at, 4)
    assert not list((tmp_path / "store" / "staging").iterdir())


def test_two_runs_at_once_share_the_work(tmp_path: Path, warm: WarmProcess) -> None:
    write_zoo(tmp_path, width=400)
    command = [str(warm.folder / "zoopress"), "run", "card.yaml"]
    command += ["recipe.yaml", "--store", "store", "--quiet", "--out"]
    children = [subprocess.Popen([*command, name], cwd=tmp_path) for name in ("a", "b", "a")]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert digests(tmp_path / "a" / "artifact") == digests(tmp_path / "b" / "artifact")
    records = list((tmp_path / "store" / "entries").glob("*/*/record.json"))
    assert len(records) == 5  # four stages and a report, each once


def test_a_store_that_cannot_be_written_says_what_to_do(zoo: Path) -> None:
    (zoo / "store").write_text("a file where the store should be")
    with pytest.raises(zoopress.ZoopressError, match=r"store at .*--store"):
        run(zoo)


def test_recipes_with_the_same_stages_share_results_under_their_own_names(zoo: Path) -> None:
    run(zoo)
    (zoo / "other.yaml").write_text((zoo / "recipe.yaml").read_text())
    card, _ = read_zoo(zoo)
    other = load_recipe(str(zoo / "other.yaml"), load_plugins())
    result = compress(card, other, zoo / "other-out", Store(zoo / "store"))
    assert result.computed == ()
    assert result.report.recipe["name"] == "other"
    assert "name: other" in (result.artifact / "README.md").read_text()


def test_a_folder_that_is_no_artifact_is_not_overwritten(zoo: Path) -> None:
    precious = zoo / "out" / "artifact" / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    with pytest.raises(zoopress.ZoopressError, match=r"no artifact of zoopress.*--out"):
        run(zoo)
    assert precious.read_text() == "mine"
    assert run(zoo, "elsewhere").computed == ()


def test_a_changed_module_that_the_card_names_by_its_dotted_name_computes_anew(zoo: Path) -> None:
    package = zoo / "dotted_networks"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "made.py").write_text(FACTORY)
    card = (zoo / "card.yaml").read_text().replace("networks.py:", "dotted_networks.made:")
    (zoo / "card.yaml").write_text(card)
    before = open_cell(*read_zoo(zoo), Store(zoo / "store"), load_plugins()).keys
    again = open_cell(*read_zoo(zoo), Store(zoo / "store"), load_plugins()).keys
    (package / "made.py").write_text(FACTORY.replace("nn.ReLU()", "nn.GELU()"))
    after = open_cell(*read_zoo(zoo), Store(zoo / "store"), load_plugins()).keys
    assert before == again
    assert not set(before) & set(after)


def test_a_factory_edited_between_two_runs_of_one_process_gives_the_edited_models_results(
    zoo: Path, tmp_path: Path, brief_evaluation: None
) -> None:
    (zoo / "recipe.yaml").write_text("stages: [{technique: weight_quantization, bits: 4}]")
    first = run(zoo).report.stages[-1].fidelity
    (zoo / "networks.py").write_text(FACTORY.replace("nn.ReLU()", "nn.Tanh()"))
    second = run(zoo, "second")
    # Another folder has modules of its own, so what is computed there is from the file as it is.
    shutil.copytree(zoo, tmp_path / "copy", ignore=shutil.ignore_patterns("store", "out*", "copy"))
    clean = run(tmp_path / "copy")
    assert second.computed == clean.computed == ("weight_quantization",)
    assert second.report.stages[-1].fidelity == clean.report.stages[-1].fidelity != first
    (zoo / "networks.py").write_text(FACTORY)
    assert run(zoo, "third").computed == ()
