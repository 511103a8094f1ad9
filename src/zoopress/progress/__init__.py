"""Telling what is going on: events, and displays of them."""

from __future__ import annotations

from zoopress.progress.reporter import Event as Event
from zoopress.progress.reporter import Listener as Listener
from zoopress.progress.reporter import Progress as Progress
from zoopress.progress.reporter import Reporter as Reporter
from zoopress.progress.terminal import MODES as MODES
from zoopress.progress.terminal import error_console as error_console
from zoopress.progress.terminal import terminal as terminal
from zoopress.progress.terminal import zoo_board as zoo_board
