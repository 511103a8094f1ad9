"""Find the reports that people name: a run's folder, an artifact, a zoo run's, the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zoopress.artifacts.manifest import MANIFEST, read_manifest, size_bytes
from zoopress.errors import InputError
from zoopress.hub.address import looks_like_address
from zoopress.publishing.lineage import Lineage, find_lineage
from zoopress.results import Report, read_report

REPORT = "report.json"


@dataclass(frozen=True)
class Found:
    """A compressed model that was named.

    Attributes:
        place: how it was named, or where it was found below that.
        report: what was measured; None if only the artifact is at hand.
        folder: where the report is.
        lineage: what the artifact says of itself, where there is no report.
        size_bytes: of an artifact here without a report.
    """

    place: str
    report: Report | None = None
    folder: Path | None = None
    lineage: Lineage | None = None
    size_bytes: int | None = None


def find_reports(places: list[str]) -> list[Found]:
    """Find what people name; a folder that exists comes before a repository on the Hub.

    Args:
        places: each a run's folder (with report.json), a report.json, an artifact, a folder of
            such such as OUT of a zoo run, or a repository on the Hub.

    Raises:
        InputError: if there is nothing, or a report is damaged.
        ArtifactError: if an artifact is damaged.
        HubError: if the Hub cannot be asked.
    """
    found: dict[str, Found] = {}
    for place in places:
        for item in _find(place):
            found.setdefault(str(Path(item.place).absolute()), item)
    return list(found.values())


def _find(place: str) -> list[Found]:
    path = Path(place)
    if path.name == REPORT and path.is_file():
        return [Found(str(path.parent), read_report(path), path.parent)]
    if (path / REPORT).is_file():
        return [Found(place, read_report(path / REPORT), path)]
    if (path / MANIFEST).is_file():
        beside = path.absolute().parent / REPORT
        lineage = find_lineage(place)
        if beside.is_file():
            report = read_report(beside)
            if report.artifact_sha256 == lineage.artifact_sha256:
                return [Found(place, report, beside.parent)]
        size = size_bytes(path, read_manifest(path, verify=False))
        return [Found(place, lineage=lineage, size_bytes=size)]
    if path.is_dir():
        below = sorted([*path.glob(f"*/{REPORT}"), *path.glob(f"*/*/{REPORT}")])
        if not below:
            raise InputError(
                f"{place} holds no results: expected {REPORT} in it, as `zoopress run CARD RECIPE "
                f"--out` leaves it, or {place}/CARD/RECIPE/{REPORT}."
            )
        return [Found(str(file.parent), read_report(file), file.parent) for file in below]
    if path.exists() or not looks_like_address(place):
        raise InputError(
            f"{place}: there is no such folder. Give one that `zoopress run` or `zoopress zoo run` "
            "wrote, an artifact, or a repository on the Hub as org/name."
        )
    return [Found(place, lineage=find_lineage(place))]
