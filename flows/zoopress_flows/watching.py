"""What flows share: Prefect looks on, and what it shows is never worth a failure."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import Any

import zoopress_flows.quiet  # noqa: F401  # isort: skip

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

_LONG_SECONDS = 10.0
_LOGGED = {
    "stage": "info",
    "line": "info",
    "said": "info",
    "warning": "warning",
    "retry": "warning",
    "failed": "error",
}
"""Which events Prefect's log gets, and as what."""


class ProgressArtifact:
    """Shows in Prefect how far a step is that takes long; listens to a reporter.

    Args:
        title: what it is about.
        repository: the zoo's name among those of the server.
    """

    def __init__(self, title: str, repository: str = "") -> None:
        self.title, self.repository = title, repository
        self._artifact: Any = None
        self._due = time.monotonic() + _LONG_SECONDS

    def tell(self, event: dict[str, Any]) -> None:
        """Take an event."""
        if event["event"] == "stage":
            self._artifact, self._due = None, time.monotonic() + _LONG_SECONDS
        fraction = event.get("fraction")
        if fraction is None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _LONG_SECONDS / 2
        with suppress(Exception):
            about = f"{self.title}: {event.get('text', '')}"
            if self._artifact is None:
                key = artifact_key("progress", self.repository, self.title)
                self._artifact = create_progress_artifact(100 * fraction, key, about)
            else:
                update_progress_artifact(self._artifact, 100 * fraction, about)


def artifact_key(*parts: str) -> str:
    """Return a key as Prefect's artifacts have it: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


class FlowLog:
    """Writes into Prefect's log of the run it is made in what is worth a line; a listener."""

    def __init__(self) -> None:
        self._log: Any = None
        with suppress(Exception):  # outside a run there is none
            self._log = get_run_logger()

    def tell(self, event: dict[str, Any]) -> None:
        """Take an event."""
        kind, text = event["event"], str(event.get("text") or "")
        if self._log is None or kind not in _LOGGED or not text:
            return
        with suppress(Exception):
            getattr(self._log, _LOGGED[kind])(text if kind == "line" else f"{kind}: {text}")
