"""What the Hub says of the first original at the moment of publication, and its licence's files."""

from __future__ import annotations

from pathlib import Path

from zoopress.artifacts.manifest import Manifest
from zoopress.errors import HubError
from zoopress.hub.address import parse_address
from zoopress.hub.client import Hub, RemoteModel, log
from zoopress.hub.download import fetch
from zoopress.publishing.card_metadata import base_model
from zoopress.publishing.licenses import LEGAL_FILE, BaseInfo
from zoopress.results import Report


def find_base(hub: Hub, report: Report) -> RemoteModel | None:
    """Ask the Hub for the original as it is now, None if it is not there."""
    name = base_model(report)
    found = hub.find(name) if name else None
    if name and found is None:
        log.warning("%s is not on the Hub, so its licence could not be compared", name)
    return found


def check_recorded_license(report: Report, permission: str | None) -> None:
    """Compare with what the artifact says of its first original, which the Hub does not have.

    Raises:
        HubError: if the card of a compressed model says another licence.
    """
    card, recorded = report.card, report.first_original.get("license")
    if recorded and recorded != card.get("license") and not (permission or "").strip():
        raise HubError(
            f"This model cannot be published: the card {card['name']!r} says "
            f"{card.get('license')!r}, and its source was compressed from a model under "
            f"{recorded!r}. Make the card say what the original does. If you have permission, say "
            "with `permission` where it can be read."
        )


def base_info(base: RemoteModel) -> BaseInfo:
    """Return what matters for the right to publish."""
    license = base.card.get("license")
    return BaseInfo(
        license=license[0] if isinstance(license, list) and len(license) == 1 else license,
        license_name=base.card.get("license_name"),
        license_link=base.card.get("license_link"),
        gated=base.gated,
        private=base.private,
        files=tuple(base.files),
    )


def legal_texts(hub: Hub, base: RemoteModel | None, manifest: Manifest) -> dict[str, Path]:
    """Fetch the original's licence, notice and the like, unless the artifact has them already."""
    if base is None:
        return {}
    wanted = [n for n in base.files if LEGAL_FILE.fullmatch(n) and n not in manifest.files]
    if not wanted:
        return {}
    address = parse_address(f"{base.repo_id}@{base.commit}")
    try:
        folder = fetch(hub, address, lambda names: wanted).folder
    except HubError as error:
        log.warning("%s could not be fetched: %s", ", ".join(wanted), error)
        return {}
    return {name: folder / name for name in wanted}
