"""What happened to each cell of a zoo run, for whoever looks for a reason: a file each.

LOGS/CARD/RECIPE.log    a line an event, with the time; what libraries and techniques printed,
                        and where a worker was that crashed or took too long, stand between
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

_LEFT_OUT = frozenset({"progress", "ended"})
"""Events that are of no interest afterwards."""


class CellLogs:
    """Writes the logs of a run; one of an earlier run is begun anew.

    A log that cannot be written is no reason to stop.

    Args:
        folder: gets them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._begun: set[Path] = set()

    def write(self, card: str, recipe: str, event: Mapping[str, Any]) -> None:
        """Add an event to a cell's log; any number of threads may."""
        if event["event"] in _LEFT_OUT:
            return
        time = datetime.now().astimezone().isoformat(timespec="seconds")
        text = str(event.get("text") or "").rstrip()
        first, _, rest = text.partition("\n")
        lines = [f"{time} {event['event']:<11} {first}".rstrip()]
        lines += [f"    {line}" for line in rest.splitlines()]
        path = self._path(card, recipe)
        with self._lock, suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a" if path in self._begun else "w", encoding="utf-8") as log:
                log.write("\n".join(lines) + "\n")
            self._begun.add(path)

    def path_if_any(self, card: str, recipe: str) -> str | None:
        """Return where the log of a cell is, if this run wrote one."""
        path = self._path(card, recipe)
        return str(path) if path in self._begun else None

    def _path(self, card: str, recipe: str) -> Path:
        return self.folder / card / f"{recipe}.log"
