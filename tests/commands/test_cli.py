"""The command line, as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from small_zoo import CHAIN, write_zoo
from warm import WarmProcess

Zoopress: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]
RUN = ("run", "card.yaml", "recipe.yaml", "--out", "out", "--store", "store")
# What a run never needs: the compiler takes longer to import than all else together.
MAIN = (
    "import sys; from zoopress.commands.cli import main\n"
    "sys.argv[0] = 'zoopress'\n"
    "try: main()\n"
    "finally: assert not {'transformers', 'prefect', 'torch._dynamo'} & set(sys.modules)"
)


@pytest.fixture(scope="module")
def zoopress(warm: WarmProcess) -> Zoopress:
    """Run the command line in a folder, in a process of its own."""

    def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [warm.folder / "zoopress", *arguments], cwd=folder, capture_output=True, text=True
        )

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run has ended, in a process that began like a user's."""
    folder = tmp_path_factory.mktemp("zoo")
    # Random weights bear little; without targets every run would warn of that.
    write_zoo(folder, recipe=CHAIN + "targets: {min_cosine: 0.3, min_label_loyalty: 0.4}\n")
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *RUN], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    (folder / "progress").write_text(done.stderr)
    return folder


def test_run_prints_the_table_and_where_things_are(finished: Path) -> None:
    printed = (finished / "printed").read_text()
    assert "bytes, all files" in printed
    assert "latency p50, batch 1" in printed
    assert "label loyalty" in printed
    assert f"artifact  {Path('out/artifact')}" in printed
    assert f"report    {Path('out/report.md')}" in printed


def test_progress_is_one_line_a_stage_and_goes_to_standard_error(finished: Path) -> None:
    lines = (finished / "progress").read_text().splitlines()
    done = [line for line in lines if "→" in line]
    assert [line.split()[2] for line in done] == [
        "neuron_pruning",
        "magnitude_pruning",
        "weight_quantization",
        "entropy_coding",
    ]


def test_json_is_the_metrics_and_nothing_else(finished: Path, zoopress: Zoopress) -> None:
    done = zoopress(finished, *RUN, "--json")
    assert json.loads(done.stdout) == json.loads((finished / "out" / "metrics.json").read_text())
    assert done.stderr == ""


def test_quiet_prints_nothing(finished: Path, zoopress: Zoopress) -> None:
    done = zoopress(finished, *RUN, "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_plan_says_what_is_in_the_store(finished: Path, zoopress: Zoopress) -> None:
    (finished / "longer.yaml").write_text(CHAIN.replace("bits: 4", "bits: 5"))
    options = ("--store", "store", "--no-probe")
    known = zoopress(finished, "plan", "card.yaml", "recipe.yaml", *options)
    other = zoopress(finished, "plan", "card.yaml", "longer.yaml", *options)
    assert "stages    0 to compute, 4 in the store" in known.stdout
    assert "stages    2 to compute, 2 in the store" in other.stdout


def test_inspect_shows_origin_and_lineage(finished: Path, zoopress: Zoopress) -> None:
    done = zoopress(finished, "inspect", "out/artifact")
    assert done.returncode == 0, done.stderr
    assert "path:weights.safetensors" in done.stdout
    assert "all checksums match" in done.stdout
    assert "magnitude_pruning" in done.stdout


def test_evaluate_measures_the_artifact_again(finished: Path, zoopress: Zoopress) -> None:
    done = zoopress(finished, "evaluate", "out/artifact", "card.yaml", "--json")
    figures, metrics = (
        json.loads(done.stdout),
        json.loads((finished / "out/metrics.json").read_text()),
    )
    assert figures["cosine"] == pytest.approx(metrics["cosine"], abs=1e-4)
    assert figures["size_bytes"] == metrics["size_bytes"]


def test_techniques_and_their_keys_are_listed(finished: Path, zoopress: Zoopress) -> None:
    assert "magnitude_pruning" in zoopress(finished, "techniques").stdout
    assert "sparsity" in zoopress(finished, "technique", "magnitude_pruning").stdout
    unknown = zoopress(finished, "technique", "magnitud_pruning")
    assert unknown.returncode == 1
    assert "Did you mean 'magnitude_pruning'?" in unknown.stderr


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("stages: [{technique: magnitude_prunning, sparsity: 0.5}]", "Did you mean 'magnitude_pr"),
        (
            "stages:\n  - technique: magnitude_pruning\n    sparsty: 0.5",
            "recipe.yaml:3: unknown key",
        ),
        ("stages: [{technique: magnitude_pruning, sparsity: 1.5}]", "less than 1, got 1.5"),
        ("stages: [{technique: magnitude_pruning, sparsity: much}]", "valid number"),
        ("stages: []", "at least 1 item"),
        ("stages: [", "is not valid YAML"),
        (
            "stages:\n  - {technique: weight_quantization}\n  - {technique: magnitude_pruning, "
            "sparsity: 0.5}",
            "This order works: magnitude_pruning, weight_quantization.",
        ),
        (
            "stages:\n  - {technique: magnitude_pruning, sparsity: 0.5}\n  - {technique: "
            "truncated_svd, parameters: 0.5}",
            "would discard the masks that stage 1 (magnitude_pruning) made",
        ),
    ],
)
def test_a_users_mistake_is_one_line_without_a_traceback(
    tmp_path: Path, zoopress: Zoopress, recipe: str, message: str
) -> None:
    write_zoo(tmp_path, recipe=recipe)
    done = zoopress(tmp_path, "run", "card.yaml", "recipe.yaml", "--store", "store")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 20
    assert not (tmp_path / "out").exists()


def test_mistakes_and_help_show_without_importing_torch(tmp_path: Path) -> None:
    write_zoo(tmp_path, recipe="stages: [{technique: weight_quantization, bit: 4}]")
    for arguments in (["run", "card.yaml", "recipe.yaml"], ["--help"], ["techniques"]):
        code = (
            f"import sys; sys.argv = ['zoopress', *{arguments!r}]\n"
            "from zoopress.commands.cli import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "assert not {'torch', 'transformers', 'prefect'} & set(sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_a_missing_card_names_the_nearest(tmp_path: Path, zoopress: Zoopress) -> None:
    done = zoopress(tmp_path, "run", "minilmm", "hybrid")
    assert done.returncode == 1
    assert "Did you mean 'minilm'?" in done.stderr


def test_completion_offers_cards_and_recipes(tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "zoopress"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "_ZOOPRESS_COMPLETE": "complete_bash",
            "COMP_WORDS": "zoopress run mini",
            "COMP_CWORD": "2",
        },
    )
    assert "minilm" in done.stdout
