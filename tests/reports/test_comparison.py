"""Models side by side: what is best, what cannot be compared, and where they are found."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from rich.console import Console

from reports.samples import HOSTILE, MACHINE, hostile, labelled, unlabelled
from zoopress.errors import InputError, ZoopressError
from zoopress.pipeline.compress import Result
from zoopress.publishing.reading import Found, find_reports
from zoopress.reports.comparison import Comparison, compare
from zoopress.results import Report, read_report


def side_by_side(*reports: Report) -> Comparison:
    return compare([Found(f"out/{i}", r, Path(f"out/{i}")) for i, r in enumerate(reports)])


def row(comparison: Comparison, title: str) -> dict[str, tuple[str, bool]]:
    [found] = [each for each in comparison.rows if each.title == title]
    cells = [(cell.text, cell.best) for cell in found.cells]
    return dict(zip(comparison.names, cells, strict=True))


def smaller(recipe: str) -> Report:
    report = labelled(recipe)
    report.evaluation["task"]["metrics"]["accuracy"].update(compressed=0.97)
    return labelled(recipe, original_size_bytes=2_140_000, evaluation=report.evaluation)


def test_the_best_of_each_row_is_marked() -> None:
    comparison = side_by_side(labelled("small"), smaller("tiny"))
    assert row(comparison, "ratio") == {
        "lenet × small": ("5.35×", False),
        "lenet × tiny": ("10.70×", True),
    }
    metric = row(comparison, "task metric")
    assert metric["lenet × small"] == ("accuracy 98.6 % (−0.3 ± 0.2 points)", True)
    assert not metric["lenet × tiny"][1]
    # Both are as large as each other, so none is better.
    assert {best for _, best in row(comparison, "size").values()} == {False}


def test_the_smallest_file_is_best_only_among_models_of_one_card() -> None:
    assert "lenet × small" in row(side_by_side(labelled("small"), unlabelled()), "size")
    assert not any(best for _, best in row(side_by_side(labelled(), unlabelled()), "size").values())
    larger = labelled("large", stages=labelled().stages[:2])
    sizes = row(side_by_side(labelled("small"), larger), "size")
    assert sizes["lenet × small"][1]
    assert not sizes["lenet × large"][1]


def test_the_pareto_front_is_marked() -> None:
    comparison = side_by_side(labelled("small"), smaller("tiny"))
    assert row(comparison, "Pareto front") == {
        "lenet × tiny": ("★", False),
        "lenet × small": ("", False),
    }


def test_what_keeps_figures_from_being_compared_is_said() -> None:
    assert side_by_side(labelled("a"), labelled("b")).notes == []
    machine = labelled("b", machine={**MACHINE, "processor": "another"})
    assert any("different machines" in note for note in side_by_side(labelled(), machine).notes)
    card = {**labelled().card, "data": {"text": "python-docstrings"}}
    [note] = side_by_side(labelled("a"), labelled("b", card=card)).notes
    assert "Different test data" in note
    assert "Different originals" in side_by_side(labelled(), unlabelled()).notes[0]
    [note] = side_by_side(labelled("a"), labelled("b", revision="main")).notes
    assert "revisions" in note


def test_models_of_one_name_are_told_apart_by_their_places() -> None:
    assert sorted(side_by_side(labelled(), labelled()).names) == ["out/0", "out/1"]


@pytest.mark.parametrize("width", [30, 60, 80, 120, 300])
def test_the_tables_fit_any_terminal_and_show_every_model(width: int) -> None:
    comparison = side_by_side(labelled("a"), labelled("b"), unlabelled(), hostile())
    stream = StringIO()
    console = Console(file=stream, width=width)
    for table in comparison.tables(width):
        console.print(table)
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert sum(line.startswith("ratio") for line in lines) == sum(
        line.startswith("cosine") for line in lines
    )
    assert stream.getvalue().count("×") >= 4 * 2


def test_what_others_wrote_is_only_text_in_markdown() -> None:
    content = side_by_side(hostile(), labelled("small"), unlabelled()).markdown()
    assert "<script>" not in content
    assert "<img" not in content
    rows = [line for line in content.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {5}


def test_json_has_the_figures_and_the_best() -> None:
    data = json.loads(json.dumps(side_by_side(labelled("small"), smaller("tiny")).as_dict()))
    assert [model["name"] for model in data["models"]] == ["lenet × tiny", "lenet × small"]
    assert data["models"][0]["compression_ratio"] == pytest.approx(10.7)
    assert data["models"][1]["metric"]["compressed"] == 0.986
    assert data["best"]["ratio"] == ["lenet × tiny"]


def test_one_run_is_found_by_each_of_its_names(finished: Result) -> None:
    folder = finished.folder
    for place in (folder, folder / "report.json", folder / "artifact", folder.parent.parent):
        [found] = find_reports([str(place)])
        assert found.report == finished.report
        assert found.folder is not None
        assert found.folder.samefile(folder)
    assert len(find_reports([str(folder), str(folder.parent)])) == 1


def test_an_artifact_alone_is_compared_by_what_it_says_of_itself(
    finished: Result, tmp_path: Path
) -> None:
    shutil.copytree(finished.artifact, tmp_path / "alone")
    found = find_reports([str(finished.folder), str(tmp_path / "alone")])
    comparison = compare(found)
    ratios = row(comparison, "ratio")
    assert len({text for text, _ in ratios.values()}) == 1
    [note] = [note for note in comparison.notes if "Without a report" in note]
    assert "alone" in note


def test_a_report_of_another_artifact_is_not_taken_for_this_ones(finished: Result) -> None:
    path = finished.folder / "report.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "artifact_sha256": "1" * 64}))
    [found] = find_reports([str(finished.folder / "artifact")])
    assert found.report is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 2}, "it is of schema 2"),
        ({"stages": []}, "it has no stages"),
        ({"original_size_bytes": "many"}, "original_size_bytes: Input should be a valid integer"),
        ({"stages": [{"technique": "x"}]}, r"stages\.0\.\w+: "),
        ({"latency": [float("nan")]}, "NaN, which is no JSON"),
    ],
)
def test_a_damaged_report_is_named_with_what_is_wrong(
    change: dict[str, object], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**labelled().as_dict(), **change}))
    with pytest.raises(InputError, match=reason):
        read_report(path)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    for report in (labelled(), unlabelled(), hostile()):
        path = tmp_path / "report.json"
        path.write_text(json.dumps(report.as_dict()))
        assert read_report(path) == report


@given(st.binary(max_size=40) | st.just(b"[" * 100_000))
def test_what_is_no_report_is_an_error_of_the_user(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        path.write_bytes(content)
        with pytest.raises(ZoopressError, match="no report of this version"):
            read_report(path)


@pytest.mark.parametrize("place", ["nowhere/at/all", "/nowhere", HOSTILE[0]])
def test_a_place_that_is_not_there_is_an_error(place: str) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        find_reports([place])


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no results"):
        find_reports([str(tmp_path)])
