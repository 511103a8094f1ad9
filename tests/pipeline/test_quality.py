"""The guard on quality, from a run to all that is written of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from small_zoo import write_zoo
from zoopress.cards import load_card
from zoopress.errors import GateError
from zoopress.pipeline.compress import Result, compress
from zoopress.plugins import Plugins
from zoopress.progress import Reporter
from zoopress.publishing.reading import find_reports
from zoopress.publishing.release import open_release, refuse_low_quality
from zoopress.recipes import load_recipe
from zoopress.reports.comparison import compare
from zoopress.reports.leaderboard import CellOutcome, Leaderboard
from zoopress.reports.leaderboard_table import leaderboard_markdown
from zoopress.reports.page import report_page
from zoopress.store import Store

HARSH = "{technique: magnitude_pruning, sparsity: 0.97}"
MILD = "{technique: magnitude_pruning, sparsity: 0.05}"

pytestmark = pytest.mark.usefixtures("brief_evaluation")


def run(folder: Path, plugins: Plugins, recipe: str, name: str) -> tuple[Result, list[Any]]:
    events: list[dict[str, Any]] = []
    if not (folder / "card.yaml").exists():
        write_zoo(folder)
    (folder / f"{name}.yaml").write_text(recipe)
    card = load_card(str(folder / "card.yaml"), plugins)
    read = load_recipe(str(folder / f"{name}.yaml"), plugins)
    out, store = folder / name, Store(folder / "store")
    return compress(card, read, out, store, plugins, Reporter([events.append])), events


def loud(events: list[dict[str, Any]]) -> list[str]:
    return [event["text"] for event in events if event.get("loud")]


def stage_lines(events: list[dict[str, Any]]) -> list[bool]:
    lines = [event["text"] for event in events if event["event"] == "line"]
    return ["⚠ unlike the original" in line for line in lines if line.startswith("stage ")]


def test_a_ruined_model_says_so_everywhere_and_is_not_published(
    tmp_path: Path, plugins: Plugins
) -> None:
    recipe = f"stages: [{HARSH}, {{technique: entropy_coding}}]"
    result, events = run(tmp_path, plugins, recipe, "harsh")
    [warning] = loud(events)
    assert warning.startswith("UNLIKE THE ORIGINAL: cosine is 0.")
    assert "so since stage 1 (magnitude_pruning)" in warning
    assert "targets: min_cosine" in warning
    assert stage_lines(events) == [True, True]

    report = json.loads((result.folder / "report.json").read_text())
    [cosine] = [j for j in report["quality"][-1]["judged"] if j["quantity"] == "cosine"]
    assert (cosine["bound"], cosine["good"]) == (0.9, False)
    assert cosine["value"] == result.report.last.fidelity.cosine < 0.9
    assert json.loads((result.folder / "metrics.json").read_text())["like_original"] is False
    for page in (result.folder / "report.md", result.artifact / "README.md"):
        assert "UNLIKE THE ORIGINAL" in page.read_text()
    assert 'role="alert">⚠ UNLIKE THE ORIGINAL' in report_page([result.report])
    outcome = CellOutcome("c", "harsh", "done", folder="out", report=result.report)
    board = Leaderboard([outcome])
    assert "★⚠" in leaderboard_markdown(board)
    assert Leaderboard.from_dict(json.loads(json.dumps(board.as_dict()))) == board

    with pytest.raises(GateError, match="is not published: UNLIKE"):
        refuse_low_quality(open_release(result.folder, plugins).report)

    again, events = run(tmp_path, plugins, recipe, "harsh")
    assert again.computed == ()
    assert loud(events) == [warning]


def test_a_target_makes_it_a_choice_and_changes_no_key(tmp_path: Path, plugins: Plugins) -> None:
    bad, _ = run(tmp_path, plugins, f"stages: [{HARSH}]", "bad")
    loyalty = "min_label_loyalty: 0, " if bad.report.last.fidelity.label_loyalty else ""
    targets = f"stages: [{HARSH}]\ntargets: {{{loyalty}min_cosine: -1}}"
    chosen, events = run(tmp_path, plugins, targets, "chosen")
    assert chosen.computed == ()
    assert loud(events) == []
    assert chosen.report.metrics()["like_original"] is True
    assert "min_cosine" in chosen.report.quality[-1].lifted
    assert "UNLIKE" not in (chosen.folder / "report.md").read_text()
    refuse_low_quality(open_release(chosen.folder, plugins).report)


def test_what_stays_like_its_original_is_not_warned_about(tmp_path: Path, plugins: Plugins) -> None:
    mild, events = run(tmp_path, plugins, f"stages: [{MILD}]", "mild")
    assert loud(events) == []
    assert stage_lines(events) == [False]
    assert mild.report.metrics()["like_original"] is True
    harsh, _ = run(tmp_path, plugins, f"stages: [{HARSH}]", "harsh")
    notes = compare(find_reports([str(mild.folder), str(harsh.folder)])).notes
    assert [note for note in notes if "⚠" in note] == ["perceptron × harsh: ⚠ unlike the original."]
