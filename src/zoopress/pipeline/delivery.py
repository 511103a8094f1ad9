"""Write what a run made into a folder: artifact, page, report, plots."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from zoopress.artifacts.manifest import MANIFEST
from zoopress.cells.cell import Original
from zoopress.errors import InputError, StoreError, os_words
from zoopress.plugins import Plugins
from zoopress.provenance import COMMIT_KEYS
from zoopress.publishing.model_card import render_model_card
from zoopress.reports.plots import plot_files
from zoopress.reports.report import markdown
from zoopress.results import Report, read_report
from zoopress.store import Entry, file_digest, write_atomic


def write_results(
    report: Report, entry: Entry, folder: Path, plugins: Plugins | None = None
) -> None:
    """Write artifact and report into a folder, each in one step; what is right already stays.

    Args:
        report: the report.
        entry: the stored result with the artifact.
        folder: gets `artifact/`, `report.json`, `report.md`, `metrics.json` and `plots/`.
        plugins: know what the techniques are; everything installed by default.

    Raises:
        StoreError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Here, not in the store: that may be read-only, or another one.
        lock = folder / ".lock"
        with FileLock(lock):
            report = _with_known_commit(report, folder / "report.json")
            _replace_artifact(entry, folder, render_model_card(report, plugins=plugins))
            write_atomic(folder / "report.json", _json(report.as_dict()))
            write_atomic(folder / "report.md", markdown(report))
            write_atomic(folder / "metrics.json", _json(report.metrics()))
            (folder / "plots").mkdir(exist_ok=True)
            for name, text in plot_files([report]).items():
                write_atomic(folder / "plots" / name, text)
            lock.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"Cannot write to {folder}: {os_words(error)}. All stages are safe in the "
            "store; run again with another --out."
        ) from error


def source_problem(original: Original) -> str:
    """Say in what a source that a run left here is unlike its own original; empty if in nothing."""
    folder = original.files.folder
    if original.model.manifest is None:
        return ""
    try:
        report = read_report(folder.parent / "report.json")
        if report.artifact_sha256 != file_digest(folder / MANIFEST):
            return ""
    except (InputError, OSError):
        return ""  # an artifact alone tells nothing of it
    return report.inherited_problem or report.last_judged.problem


def _with_known_commit(report: Report, path: Path) -> Report:
    """Keep the commit that a report which says all the same names: it reproduces it as well.

    So nothing changes in what is published when something else in the repository does.
    """

    def said(of: Report) -> Any:
        made_with = {k: v for k, v in of.made_with.items() if k not in COMMIT_KEYS}
        return json.loads(_json(replace(of, made_with=made_with).as_dict()))

    try:
        before = Report.from_dict(json.loads(path.read_bytes()))
        return before if said(before) == said(report) else report
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return report  # none, or one of another version


def _replace_artifact(entry: Entry, folder: Path, readme: str) -> None:
    target = folder / "artifact"
    is_ours = (target / "zoopress.json").is_file()
    if target.exists() and not is_ours and not (target.is_dir() and not any(target.iterdir())):
        raise StoreError(
            f"{target} is there already and is no artifact of zoopress; nothing was overwritten. "
            "Move it away, or choose another --out."
        )
    for leftover in folder.glob(".artifact.*"):  # of a killed run; we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=".artifact.", dir=folder))
    try:
        shutil.copytree(entry.artifact, new / "new")
        (new / "new" / "README.md").write_text(readme, encoding="utf-8")
        if target.exists():
            os.rename(target, new / "old")
        os.rename(new / "new", target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _json(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"
