"""The commands evaluate, compare and report, as a user calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from zoopress.commands.cli import app
from zoopress.errors import ZoopressError
from zoopress.pipeline.compress import Result


def zoopress(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(done.exception, ZoopressError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_report_lies_beside_its_json(finished: Result) -> None:
    said = zoopress("report", finished.folder)
    page = finished.folder / "report.html"
    assert str(page) in said.replace("\n", "")
    assert "tiny × pruned" in page.read_text(encoding="utf-8")


def test_the_form_follows_from_the_files_ending(finished: Result, tmp_path: Path) -> None:
    zoopress("report", finished.folder, "--out", tmp_path / "new" / "a.md")
    assert (tmp_path / "new" / "a.md").read_text(encoding="utf-8").startswith("# tiny × pruned")
    zoopress("report", finished.folder, "--out", tmp_path / "a.json")
    again = json.loads((tmp_path / "a.json").read_text())
    assert again == json.loads((finished.folder / "report.json").read_text())
    with pytest.raises(ZoopressError, match=r"end it with \.html, \.md or \.json"):
        zoopress("report", finished.folder, "--out", tmp_path / "a.pdf")


def test_markdown_and_json_are_printed(finished: Result) -> None:
    assert zoopress("report", finished.folder, "--format", "md").startswith("# tiny × pruned")
    data = json.loads(zoopress("report", finished.folder, "--format", "json"))
    assert data["card"]["name"] == "tiny"
    assert not (finished.folder / "report.html").exists()


def test_several_reports_make_one_page_with_all_of_them(finished: Result, tmp_path: Path) -> None:
    other = tmp_path / "other" / "run"
    shutil.copytree(finished.folder, other)
    zoopress("report", finished.folder, other, "--out", tmp_path / "both.html")
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "Side by side" in page
    assert page.count("Where did the bytes go?</h3>") == 2


def test_without_a_report_there_is_no_page(finished: Result, tmp_path: Path) -> None:
    shutil.copytree(finished.artifact, tmp_path / "alone")
    with pytest.raises(ZoopressError, match=r"no report\.json.*zoopress evaluate"):
        zoopress("report", tmp_path / "alone")


def test_compare_prints_a_table_markdown_or_json(finished: Result, tmp_path: Path) -> None:
    other = tmp_path / "other" / "run"
    shutil.copytree(finished.folder, other)
    places = (finished.folder, other)
    assert "ratio" in zoopress("compare", *places, "--out", tmp_path / "compare.html")
    assert "Side by side" in (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert zoopress("compare", *places, "--markdown").startswith("|  |")
    assert len(json.loads(zoopress("compare", *places, "--json"))["models"]) == 2


def test_one_model_alone_is_not_compared(finished: Result) -> None:
    with pytest.raises(ZoopressError, match="zoopress report"):
        zoopress("compare", finished.folder)


def test_evaluate_measures_what_is_asked_for(finished: Result, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    card = tmp_path / "tiny.yaml"
    shown = zoopress(
        "evaluate", finished.artifact, card, "--measure", "computation", "--out", out, "--json"
    )
    figures = json.loads(shown)
    assert figures == json.loads(out.read_text())
    assert figures["evaluation"]["computation"]["original_macs"] == 8 * 16 + 16 * 4
    assert figures["label_loyalty"] == finished.report.last.fidelity.label_loyalty


def test_evaluate_prints_tables(finished: Result, tmp_path: Path) -> None:
    card = tmp_path / "tiny.yaml"
    shown = zoopress("evaluate", finished.artifact, card, "--measure", "computation", "--quiet")
    assert shown == ""
    shown = zoopress("evaluate", finished.artifact, card, "--measure", "computation")
    assert "compression ratio" in shown
    assert "computation" in shown
    assert "192" in shown


def test_a_measure_that_is_not_there_is_an_error_before_any_work(
    tmp_path: Path, tiny_card: object
) -> None:
    with pytest.raises(ZoopressError, match="Did you mean 'robustness'"):
        zoopress("evaluate", tmp_path / "nowhere", tmp_path / "tiny.yaml", "--measure", "robustnes")


def test_fairness_without_subgroups_is_an_error_before_any_work(
    tmp_path: Path, tiny_card: object
) -> None:
    with pytest.raises(ZoopressError, match=r"data: \{groups"):
        zoopress("evaluate", tmp_path / "nowhere", tmp_path / "tiny.yaml", "--measure", "fairness")


def test_a_card_with_a_measure_that_is_not_there_is_refused_with_its_line(
    tmp_path: Path, tiny_card: object
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(path.read_text() + "measures: [energie]\n")
    with pytest.raises(ZoopressError, match=r"tiny\.yaml:9: .*'energie'\. Did you mean 'energy'"):
        zoopress("evaluate", tmp_path / "nowhere", path)
