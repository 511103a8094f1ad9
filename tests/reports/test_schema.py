"""The published schema of report.json: it is what the code writes, and every report keeps to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from reports.samples import hostile, labelled, unlabelled
from zoopress.pipeline.compress import Result
from zoopress.reports.schema import report_schema, schema_text
from zoopress.results import Report

FILE = Path(__file__).parent.parent.parent / "docs" / "report.schema.json"
SCHEMA = report_schema()


def test_the_published_schema_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == schema_text(), (
        "write it anew: python -m zoopress.reports.schema > docs/report.schema.json"
    )


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("report", [labelled(), unlabelled(), hostile()])
def test_every_report_keeps_to_the_schema(report: Report) -> None:
    Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(report.as_dict())))


def test_what_a_run_writes_keeps_to_the_schema(finished: Result) -> None:
    data = json.loads((finished.folder / "report.json").read_text())
    Draft202012Validator(SCHEMA).validate(data)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"stages": [{"technique": "x"}]},
        {"unheard_of": 1},
        {"evaluation": {"task": {"metrics": {}}}},
        {"evaluation": {"robustness": 3}},
    ],
)
def test_what_is_no_report_does_not_keep_to_it(change: dict[str, object]) -> None:
    data = json.loads(json.dumps(labelled().as_dict()))
    with pytest.raises(ValidationError):
        Draft202012Validator(SCHEMA).validate({**data, **change})


def test_every_field_is_described() -> None:
    missing = [
        f"{kind}.{name}"
        for kind, part in [("Report", SCHEMA), *SCHEMA["$defs"].items()]
        for name, field in part["properties"].items()
        if "description" not in field
    ]
    assert missing == []
