"""Observers: plugins that hear what happens in a run, and change nothing."""

from __future__ import annotations

from zoopress.observers.news import CellEnd as CellEnd
from zoopress.observers.news import CellNews as CellNews
from zoopress.observers.news import RunNews as RunNews
from zoopress.observers.news import StageNews as StageNews
from zoopress.observers.news import State as State
