"""The page of reports: what it says, and that nothing in it can do harm."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from reports.samples import (
    HOSTILE,
    confusion,
    hostile,
    labelled,
    layers,
    png,
    runtimes,
    stage,
    task,
    unlabelled,
)
from zoopress.pipeline.compress import Result
from zoopress.publishing.reading import Found
from zoopress.reports import byte_charts, chain_charts, change_charts, measure_charts
from zoopress.reports.comparison import compare
from zoopress.reports.drawing import draw_svg
from zoopress.reports.facts import facts
from zoopress.reports.page import report_page, tiles
from zoopress.reports.report import markdown
from zoopress.results import Fidelity, LayerResult, Report


class Page(HTMLParser):
    """The elements of a page, its texts, and its scripts."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def several() -> list[Found]:
    reports = [labelled("small"), labelled("tiny", original_size_bytes=2_000_000), unlabelled()]
    return [Found(f"out/{i}", report, Path(f"out/{i}")) for i, report in enumerate(reports)]


QUESTIONS = [
    "Where did the bytes go?",
    "What did each stage gain and cost?",
    "Which layers are sensitive?",
    "Which inputs flipped?",
    "How did training go?",
    "How was it measured?",
    "Make it again",
]


def test_the_page_answers_every_question() -> None:
    text = Page(report_page([labelled()])).text
    for question in QUESTIONS:
        assert question in text
    assert "3 right → wrong, 1 wrong → right" in text
    assert "McNemar's test: p is 0.25, so the difference in accuracy may well be chance" in text
    assert "The weights after step 150 were kept" in text
    assert "Not measured: this machine has no counters" in text


def test_the_page_tells_where_it_runs_fastest() -> None:
    report = labelled(evaluation={"runtimes": runtimes()})
    text = Page(report_page([report])).text
    assert "3.00× as fast (both in openvino)" in text
    assert "both in openvino; 3.00× at 32" in text
    assert "openvino, 96.00 ms openvino, 32.00 ms 3.00× as fast" in text
    assert "32 at a time, 2 threads" in text
    assert "no operator <b>x</b>" in text
    as_markdown = markdown(report)
    assert "| `openvino` | 1 | 32 | 192 | 288 | 64 | 96 | 500 | 8.00 MB | – |" in as_markdown
    assert "does not run the compressed model: no operator &lt;b&gt;x" in as_markdown


def test_what_is_missing_is_left_out() -> None:
    page = Page(report_page([unlabelled()]))
    for question in QUESTIONS[2:5]:
        assert question not in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


@pytest.mark.parametrize("report", [labelled(), unlabelled(), hostile()])
def test_links_in_the_page_lead_somewhere_and_no_id_is_there_twice(report: Report) -> None:
    page = Page(report_page([report, report], compare(several())))
    ids = [str(a["id"]) for name, a in page.elements if "id" in a]
    own = [i for i in ids if re.match(r"m\d-|words|tip", i)]
    assert len(own) == len(set(own))
    for link in page.all("a"):
        assert str(link["href"]).removeprefix("#") in ids


def test_what_others_wrote_is_only_text() -> None:
    report = hostile()
    content = report_page([report], compare([Found(HOSTILE[0], report), *several()]))
    page = Page(content)
    assert len(page.scripts) == 1
    assert not page.all("b")
    assert not page.all("link")
    assert not page.all("iframe")
    assert not [a for _, a in page.elements for name in a if name.startswith("on")]
    names = ("href", "src", "xlink:href", "action", "data", "srcset")
    addresses = [str(a[name]) for _, a in page.elements for name in names if name in a]
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in addresses)
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7 * 7 }}" in page.text


def test_the_page_allows_its_own_script_alone_and_no_network() -> None:
    page = Page(report_page([hostile()]))
    policy = next(str(a["content"]) for a in page.all("meta") if "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}';" in policy
    assert "unsafe-eval" not in policy


@pytest.mark.parametrize(
    "shown",
    [
        "data:image/svg+xml;base64,PHN2Zy8+",
        "data:text/html,<script>alert(1)</script>",
        "data:image/png;base64,PHN2Zy8+",
        "data:image/png;base64,!!!!",
        png() + '" onerror="alert(1)',
        "data:image/png;base64," + "A" * 300_000,
        "http://evil.test/a.png",
    ],
)
def test_what_is_no_png_is_not_shown_as_one(shown: str) -> None:
    assert change_charts.png_address(shown) is None
    assert not any(example.image for example in change_charts.examples(_showing(shown)))


def _showing(shown: str) -> Report:
    return labelled(evaluation={"task": task(shown=shown)})


def test_pictures_and_texts_of_flipped_inputs_are_shown() -> None:
    page = Page(report_page([labelled()]))
    assert [a["src"] for a in page.all("img")] == [png(), png()]
    [example, _] = change_charts.examples(_showing("a film that " + "never " * 500 + "ends"))
    assert example.text is not None
    assert example.text.startswith("a film that never")
    assert example.text.endswith("…")
    assert len(example.text) < 700


def test_without_what_draws_charts_the_page_has_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    content = report_page([labelled()], compare(several()))
    assert "<svg" not in content
    page = Page(content)
    assert "pip install 'zoopress[reports]'" in page.text
    for question in QUESTIONS:
        assert question in page.text


def test_the_same_report_gives_the_same_page() -> None:
    assert report_page([labelled()]) == report_page([labelled()])


def test_a_real_run_makes_a_page_without_places_on_this_disk(finished: Result) -> None:
    content = report_page([finished.report])
    assert "tiny × pruned" in content
    assert str(finished.folder.parent.parent.parent) not in content


def test_a_measure_that_nobody_here_knows_is_shown() -> None:
    data = {
        "original_joules": 2.0,
        "compressed_joules": 1.0,
        "accuracy": {"original": {"blur": 0.5, "fog": 0.25}, "compressed": {"blur": 0.4}},
        "method": {"name": "counter", "bytes": 2_000_000},
        "by_layer": [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.25, "note": "c"}],
        "shape": [1, 3, 8],
        "nothing": None,
        "sure": True,
        "empty": [],
    }
    found = facts("my_measure", data)
    assert found.title == "my measure"
    assert found.pairs == [
        ("joules", "2", "1"),
        ("accuracy: blur", "0.5", "0.4"),
        ("accuracy: fog", "0.25", "–"),
    ]
    assert ("method: name", "counter") in found.single
    assert ("method: bytes", "2.00 MB") in found.single
    assert ("shape", "1, 3, 8") in found.single
    assert ("sure", "yes") in found.single
    [records] = found.lists
    assert records.header == ["name", "share", "note"]
    assert records.rows == [["a", "0.5", "–"], ["b", "0.25", "c"]]


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
KEYS = st.sampled_from(["original", "compressed", "original_ms", "compressed_ms", "a", "layers"])
DATA = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(DATA)
@example({"original": {}, "compressed": {"original": None, "compressed": None}})
def test_any_data_becomes_tables_of_text(data: Any) -> None:
    found = facts("measure", data)
    rows = [*found.pairs, *found.single, *(row for each in found.lists for row in each.rows)]
    assert all(isinstance(text, str) for row in rows for text in row)
    assert all(len(row) == len(each.header) for each in found.lists for row in each.rows)


def test_the_parts_of_the_bytes_are_all_of_them() -> None:
    report = labelled()
    parts = byte_charts.parts(report)
    assert sum(before for _, before, _ in parts) == report.original_size_bytes
    assert sum(after for _, _, after in parts) == report.last.size_bytes
    assert [name for name, _, _ in parts] == ["linear layers", "small tensors", "other files"]


NAMES = st.lists(
    st.lists(
        st.sampled_from(["encoder", "layer", "0", "1", "weight", "x" * 40]), min_size=1, max_size=6
    ),
    min_size=1,
    max_size=6,
)


@given(NAMES, st.integers(5, 40))
def test_short_names_are_ends_of_names(names: list[list[str]], most: int) -> None:
    whole = [".".join(parts) for parts in names]
    for name, short in zip(whole, byte_charts.short_names(whole, most), strict=True):
        assert len(short) <= most
        end = short.removeprefix("…")
        assert name.endswith(end) or name.removesuffix(".weight").endswith(end)
        assert short


def test_short_names_keep_what_tells_layers_apart() -> None:
    names = [f"transformer.encoder.layer.{i}.output.dense.weight" for i in range(3)]
    assert byte_charts.short_names(names) == [f"layer.{i}.output.dense" for i in range(3)]
    assert byte_charts.short_names(["0.weight", "2.weight"]) == ["0.weight", "2.weight"]
    assert byte_charts.short_names(["only.one.weight"]) == ["only.one"]


def test_layers_beyond_the_largest_share_a_bar() -> None:
    many = [
        LayerResult(f"layer.{i}.weight", "linear", 100, 400 + i, 50, 0.1, None) for i in range(20)
    ]
    spec = byte_charts.layers_chart(labelled(layers=many))
    rows = spec["layer"][0]["data"]["values"]
    assert len(rows) == byte_charts.TOP + 1
    assert sum(row["before"] for row in rows) == sum(layer.bytes_before for layer in many)
    assert rows[0]["name"].startswith("layer.19")
    assert rows[-1]["name"].startswith("8 more layers together")


def test_most_sensitive_layers_come_first_and_are_not_to_be_compressed_more() -> None:
    sensitivities = [1e-3, 5e-3, 2e-3, 1e-6, 1e-4]
    many = [
        LayerResult(f"block.{i}.weight", "linear", 100, 400, 100, 0.1, value)
        for i, value in enumerate(sensitivities)
    ]
    report = labelled(layers=many)
    assert [text.partition(" ")[0] for text in byte_charts.most_sensitive(report)] == [
        "block.1",
        "block.2",
        "block.0",
    ]
    assert [text.partition(" ")[0] for text in byte_charts.most_to_gain(report)] == [
        "block.3",
        "block.4",
    ]


def test_the_confusion_chart_shows_what_moved() -> None:
    spec = change_charts.confusion_chart(labelled())
    assert spec is not None
    moved = {
        (row["target"], row["predicted"]): (row["text"], row["good"])
        for row in spec["layer"][0]["data"]["values"]
        if row["text"]
    }
    assert moved == {
        ("3", "5"): ("+2", False),
        ("3", "3"): ("−2", False),
        ("4", "9"): ("+1", False),
        ("4", "4"): ("−1", False),
        ("2", "7"): ("−1", True),
        ("2", "2"): ("+1", True),
    }
    pairs = change_charts.confused_pairs(labelled())
    assert (pairs[0]["target"], pairs[0]["predicted"], pairs[0]["change"]) == ("3", "5", 2)


def test_a_confusion_that_did_not_change_or_is_too_large_has_no_chart() -> None:
    same = confusion()
    same["compressed"] = same["original"]
    large = confusion([f"class {i}" for i in range(40)])
    for found in (same, large, {"pairs": []}, {}):
        assert (
            change_charts.confusion_chart(labelled(evaluation={"task": {"confusion": found}}))
            is None
        )
    pairs = [{"target": "cat", "predicted": "dog", "original": 3, "compressed": 5}]
    report = labelled(evaluation={"task": {"confusion": {"pairs": pairs}}})
    assert change_charts.confused_pairs(report) == [{**pairs[0], "change": 2}]


def test_the_steps_of_the_chain_begin_with_the_original() -> None:
    found = chain_charts.steps(labelled())
    assert [step.title for step in found] == [
        "original",
        "1 magnitude pruning + distillation",
        "2 weight quantization",
        "3 entropy coding",
    ]
    assert [step.quality_text for step in found] == ["98.9 %", "98.7 %", "98.6 %", "98.6 %"]
    assert [step.quality for step in chain_charts.steps(unlabelled())] == [1.0, 0.99]


def test_training_in_a_stage_and_in_its_recovery_is_found() -> None:
    report = labelled()
    own = stage("fine_tuning", 10, 9, 0.9, notes={"losses": [[1, 0.5], [2, 0.25]]})
    found = chain_charts.curves(replace(report, stages=[*report.stages, own]))
    assert [curve.title for curve in found] == ["1 distillation", "4 fine tuning"]
    assert found[0].best_step == 150
    assert found[0].stopped_early
    assert found[0].metrics["accuracy"][0] == (50, pytest.approx(0.96))
    assert found[1].losses == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize(
    "notes",
    [
        {"losses": 3},
        {"losses": [[1]]},
        {"losses": [["a", None]]},
        {"evaluations": [{"step": None}]},
        {"recovery": "text"},
    ],
)
def test_notes_of_another_kind_are_no_curve(notes: dict[str, Any]) -> None:
    assert chain_charts.curves(labelled(stages=[stage("mine", 10, 9, 0.9, notes=notes)])) == []


BYTES = st.integers(0, 10**12)
REPORTS = st.builds(
    lambda before, after, parameters, found, cosine, samples: labelled(
        original_size_bytes=before + 10,
        original_weight_bytes=before,
        layers=found,
        stages=[
            stage(
                "x",
                before,
                after,
                cosine,
                fidelity=Fidelity(samples, cosine),
                parameters=parameters,
            )
        ],
        evaluation={},
    ),
    BYTES,
    BYTES,
    st.integers(1, 10**9),
    st.lists(
        st.builds(
            LayerResult,
            name=st.text(max_size=10),
            kind=st.sampled_from(["linear", "embedding", "mine"]),
            parameters=BYTES,
            bytes_before=BYTES,
            bytes_after=BYTES,
            relative_error=st.none() | st.floats(0, 10),
            sensitivity=st.none() | st.floats(0, 2),
        ),
        max_size=6,
    ),
    st.floats(-1, 1),
    st.integers(1, 10**6),
)


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=8)
@given(REPORTS)
def test_any_report_has_a_page(report: Report) -> None:
    assert "</html>" in report_page([report])


def test_charts_are_well_formed_whatever_the_names_are() -> None:
    report = hostile()
    specs = [
        byte_charts.parts_chart(report),
        byte_charts.layers_chart(report),
        byte_charts.sensitivity_chart(report),
        chain_charts.stages_chart(report),
        chain_charts.trail_chart(report),
        change_charts.confusion_chart(report),
        *(chain_charts.loss_chart(curve) for curve in chain_charts.curves(report)),
    ]
    for spec in specs:
        assert spec is not None
        root = ElementTree.fromstring(draw_svg(spec))
        assert not [e for e in root.iter() if e.tag.rpartition("}")[2] in ("script", "image", "a")]


def test_robustness_is_told_for_each_attack_and_the_mean_of_each_corruption() -> None:
    data = {
        "score": "accuracy",
        "clean": {"original": 0.99, "compressed": 0.98},
        "pgd": {"original": 0.5, "compressed": None},
        "corruptions": [
            {"name": "blur", "severity": 1, "original": 0.9, "compressed": 0.8},
            {"name": "blur", "severity": 2, "original": 0.7, "compressed": 0.4},
            {"name": "fog", "severity": 1, "original": 0.9},
        ],
    }
    assert measure_charts.robustness_rows(data) == [
        ("undisturbed", 0.99, 0.98),
        ("blur", pytest.approx(0.8), pytest.approx(0.6)),
    ]
    page = Page(report_page([labelled(evaluation={"robustness": data})]))
    assert "Under attack and corruption" in page.text
    labels = [str(a["aria-label"]) for a in page.all("path") if "aria-label" in a]
    assert "blur, compressed: 60.0 %" in labels
    assert measure_charts.robustness_chart({"skipped": "no gradients"}) is None


def test_what_was_not_measured_is_called_an_estimate() -> None:
    assert facts("energy", {"measured": False, "joules": 1.0}).title.endswith("not measured)")
    assert facts("energy", {"measured": True}).title == "energy"


def test_tiles_tell_size_speed_quality_and_changes() -> None:
    assert [(tile.value, tile.title) for tile in tiles(labelled())] == [
        ("5.35×", "smaller"),
        ("1.14×", "as fast"),
        ("98.6 %", "accuracy"),
        ("4", "of 1,000 flipped"),
    ]
    macs = {"original_macs": 400, "compressed_macs": 100, "reduction": 4.0}
    [*_, tile] = tiles(labelled(evaluation={"computation": macs}))
    assert (tile.value, tile.title, tile.detail) == (
        "4.00×",
        "fewer MACs",
        "400 → 100 for one input",
    )
    assert layers()[0].bytes_after > 0
