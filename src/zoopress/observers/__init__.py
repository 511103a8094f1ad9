"""Observers: plugins that hear what happens in a run, and change nothing."""

from __future__ import annotations

from zoopress.observers.news import (
    CellEnd as CellEnd,
    CellNews as CellNews,
    RunNews as RunNews,
    StageNews as StageNews,
    State as State,
)
