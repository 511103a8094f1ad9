"""Read files of rows as tables. All raise ValueError or OSError for what they cannot read."""

from __future__ import annotations

import csv
import json
import math
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.errors import cautious
from zoopress.optional import import_optional
from zoopress.tasks import Table
from zoopress_zoo.datasets.tables import Columns, as_file, known_part

if TYPE_CHECKING:
    import pyarrow

_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf)", re.I)
_LONGEST_FIELD = 1 << 24


def read_csv(path: Path) -> dict[str, Table]:
    """Read lines of values with commas, or tabs in a .tsv file; the first line names the columns.

    A column whose every value is a number holds numbers; one that lacks some holds NaN there.
    """
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            lines = csv.reader(stream, delimiter=delimiter, strict=True)
            header = next(lines, [])
            columns: list[list[str]] = [[] for _ in header]
            for line in lines:
                if not line:
                    continue
                if len(line) != len(header):
                    raise ValueError(
                        f"line {lines.line_num} has {len(line)} values, and the first line names "
                        f"{len(header)} columns"
                    )
                for column, value in zip(columns, line, strict=True):
                    column.append(value)
    except csv.Error as error:
        raise ValueError(f"line {lines.line_num}: {error}") from error
    finally:
        csv.field_size_limit(limit)
    names = _distinct([name.strip() for name in header])
    values = (typed_column(column) for column in columns)
    return {"all": Columns(dict(zip(names, values, strict=True)))}


def typed_column(texts: Sequence[str]) -> list[Any]:
    """Return texts as integers, or as floats with NaN for empty ones, if all are numbers."""
    stripped = [text.strip() for text in texts]
    if all(map(_INTEGER.fullmatch, stripped)):
        return [int(text) for text in stripped]
    names = any(re.fullmatch(r"[+-]?0[0-9]+", text) for text in stripped)  # 007 is no number
    if any(stripped) and not names and all(not t or _FLOAT.fullmatch(t) for t in stripped):
        return [float(text) if text else math.nan for text in stripped]
    return list(texts)


def read_json_lines(path: Path) -> dict[str, Table]:
    """Read one JSON object a line."""
    rows = []
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"line {number}: {error}") from error
    return {"all": _of_rows(rows)}


def read_json(path: Path) -> dict[str, Table]:
    """Read a list of JSON objects, or an object of lists, one a column."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if isinstance(content, dict) and all(isinstance(v, list) for v in content.values()):
        lengths = {name: len(values) for name, values in content.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"its columns have different lengths: {lengths}")
        return {"all": Columns(content)}
    if not isinstance(content, list):
        raise ValueError("it must hold a list of objects, or an object of lists")
    return {"all": _of_rows(content)}


def read_text(path: Path) -> dict[str, Table]:
    """Read the lines that are not empty, as the column "text"."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return {"all": Columns({"text": [line.strip() for line in lines if line.strip()]})}


def read_npz(path: Path) -> dict[str, Table]:
    """Read arrays of numbers, the rows along the first axis; what is pickled is refused."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, EOFError, MemoryError, KeyError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(cautious(str(error))) from None
    parts: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        if array.ndim == 0:
            raise ValueError(f"the array {name!r} is a single number, not a row each")
        tokens = name.split("_")
        part = known_part([tokens[0], tokens[-1]]) if len(tokens) > 1 else None
        column = "_".join(token for token in tokens if token != part) if part else name
        parts.setdefault(part or "all", {})[column] = array
    for part, columns in parts.items():
        lengths = {name: len(array) for name, array in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the arrays of part {part!r} have different lengths: {lengths}")
    return {part: Columns(columns) for part, columns in parts.items()}


def read_parquet(path: Path) -> dict[str, Table]:
    """Read a Parquet file; images and sound are the structs of bytes that the Hub's files have."""
    needed, install = "reading Parquet needs pyarrow", "pip install 'zoopress[data]'"
    pyarrow = import_optional("pyarrow", needed, install, ValueError)
    parquet = import_optional("pyarrow.parquet", needed, install, ValueError)
    try:
        return {"all": _Arrow(parquet.read_table(path))}
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


class _Arrow(Table):
    def __init__(self, table: pyarrow.Table) -> None:
        _distinct(table.column_names)
        self._table = table

    @property
    def columns(self) -> Sequence[str]:
        return tuple(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def values(self, column: str, rows: Sequence[int]) -> Sequence[Any]:
        taken = self._table.column(column).take(list(rows))
        return [as_file(value) for value in taken.to_pylist()]


def _of_rows(rows: Sequence[Any]) -> Table:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise ValueError(f"row {number} is {type(row).__name__}, not an object")
    names = dict.fromkeys(name for row in rows for name in row)
    return Columns({name: [row.get(name) for row in rows] for name in names})


def _distinct(names: Iterable[str]) -> list[str]:
    found = list(names)
    double = sorted({name for name in found if found.count(name) > 1})
    if double:
        raise ValueError(f"several columns are called {double[0]!r}")
    return found
