"""What flows share: Prefect looks on, and what it shows is never worth a failure."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import zoopress_flows.quiet  # noqa: F401  # isort: skip

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from zoopress.errors import ZoopressError
from zoopress.progress import terminal

T = TypeVar("T")
_LONG_SECONDS = 10.0


class ProgressArtifact:
    """Shows in Prefect how far a step is that takes long; listens to a reporter.

    Args:
        title: what it is about.
    """

    def __init__(self, title: str) -> None:
        self.title = title
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
                key = artifact_key("progress", self.title)
                self._artifact = create_progress_artifact(100 * fraction, key, about)
            else:
                update_progress_artifact(self._artifact, 100 * fraction, about)


def artifact_key(*parts: str) -> str:
    """Return a key as Prefect's artifacts have it: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def or_without_prefect(flow: Callable[[], T], without: Callable[[], T], quiet: bool) -> T:
    """Run a flow for the command line; if Prefect itself fails, finish without it.

    Raises:
        ZoopressError: if the work fails.
    """
    try:
        return flow()
    except ZoopressError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        terminal(quiet).line(f"the Prefect flow failed ({reason}); going on without Prefect")
        return without()
