"""The JSON schema of report.json, made from the classes that write it.

`python -m zoopress.reports.schema` prints it; docs/report.schema.json is that, and a test holds it
to that.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields
from typing import Any

from zoopress.results import (
    Coverage,
    Fidelity,
    KindCoverage,
    LayerChange,
    LayerResult,
    OutputFidelity,
    Quality,
    Report,
    StageResult,
)
from zoopress.results.quality import Judgement
from zoopress.techniques import Claim

_NUMBER = {"type": ["number", "null"]}
_INTERVAL = {
    "type": ["array", "null"],
    "items": {"type": "number"},
    "minItems": 2,
    "maxItems": 2,
    "description": 'lower and upper end with the task\'s "confidence"; null if unknown',
}
_METRIC = {
    "type": "object",
    "description": "of the original, of the compressed model, and compressed − original",
    "properties": {
        **dict.fromkeys(("original", "compressed", "difference"), _NUMBER),
        **{f"{name}_interval": _INTERVAL for name in ("original", "compressed", "difference")},
        "better": {"enum": ["higher", "lower", None]},
    },
    "required": ["original", "compressed", "difference"],
}
_EVALUATION = {
    "type": "object",
    "description": 'the task\'s metrics under "task", each other measure by its name; a measure '
    'that does not apply says why under "skipped"',
    "properties": {
        "task": {
            "type": "object",
            "properties": {
                "samples": {"type": "integer"},
                "metric": {
                    "type": ["string", "null"],
                    "description": "the one that the task is judged by",
                },
                "confidence": {"type": "number"},
                "resamples": {"type": "integer"},
                "metrics": {"type": "object", "additionalProperties": _METRIC},
                "mcnemar": {"type": "object"},
                "confusion": {"type": "object"},
                "changes": {
                    "type": "object",
                    "properties": {
                        "samples": {"type": "integer"},
                        "flipped": {"type": "integer"},
                        "examples": {"type": "array", "items": {"type": "object"}},
                    },
                    "required": ["samples", "flipped"],
                },
            },
            "required": ["samples"],
        }
    },
    "additionalProperties": {"type": "object"},
}


_RECORDS = (
    *(Report, StageResult, LayerResult, LayerChange, Coverage, KindCoverage),
    *(Fidelity, OutputFidelity, Claim, Quality, Judgement),
)


def report_schema() -> dict[str, Any]:
    """Return the schema, JSON Schema draft 2020-12."""
    from pydantic import TypeAdapter

    made = TypeAdapter(Report).json_schema()
    parts = {"Report": made, **made["$defs"]}
    for kind in _RECORDS:
        _describe(parts[kind.__name__], kind)
    made["properties"]["evaluation"] = _EVALUATION
    [current] = [field.default for field in fields(Report) if field.name == "schema"]
    made["properties"]["schema"] = {"const": current, "description": "version of this form"}
    made["required"] = [*made["required"], "schema"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _describe(schema: dict[str, Any], kind: type) -> None:
    """Put what a class's documentation says of each field to that field."""
    schema["description"] = (inspect.getdoc(kind) or "").partition("\n\n")[0]
    schema["additionalProperties"] = False
    said = {**_attributes(kind), **_notes_below(kind)}
    for name, field in schema["properties"].items():
        field.pop("title", None)
        if name in said:
            field["description"] = re.sub(r"\bNone\b", "null", said[name])


def _attributes(kind: type) -> dict[str, str]:
    """Return what the section "Attributes" of a docstring says, by name."""
    section = (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", section, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}


def _notes_below(kind: type) -> dict[str, str]:
    """Return the strings that stand below fields, by name."""
    source = inspect.getsource(kind)
    found = re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""$', source, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}


def schema_text() -> str:
    """Return the schema as its file holds it."""
    return json.dumps(report_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
