"""What calibration data shows of a model's layers, measured once.

statistic    what a statistic is; `named` has those that can be asked for by name
watch        find what reads a weight, whatever module or function does
products     which operators multiply data by a weight, and how
passes       run a model over data
service      what techniques ask, in `context.statistics`
measured     what they get
shelf        where it is kept
"""

from __future__ import annotations

from zoopress.statistics.measured import Layer, Measured, Part
from zoopress.statistics.registry import STATISTICS
from zoopress.statistics.service import Statistics
from zoopress.statistics.shelf import Shelf
from zoopress.statistics.statistic import Counts, Seen, Sizes, State, Statistic

__all__ = [
    "STATISTICS",
    "Counts",
    "Layer",
    "Measured",
    "Part",
    "Seen",
    "Shelf",
    "Sizes",
    "State",
    "Statistic",
    "Statistics",
]
