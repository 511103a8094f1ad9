"""Telling what is going on: events, and displays of them."""

from __future__ import annotations

from zoopress.progress.reporter import (
    Event as Event,
    Listener as Listener,
    Progress as Progress,
    Reporter as Reporter,
)
from zoopress.progress.terminal import (
    MODES as MODES,
    error_console as error_console,
    terminal as terminal,
    zoo_board as zoo_board,
)
