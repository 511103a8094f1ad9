"""The records of what was measured, which everyone passes on."""

from __future__ import annotations

from zoopress.results.quality import Quality as Quality
from zoopress.results.report import LayerResult as LayerResult
from zoopress.results.report import Report as Report
from zoopress.results.report import read_report as read_report
from zoopress.results.stage_result import Fidelity as Fidelity
from zoopress.results.stage_result import GateInput as GateInput
from zoopress.results.stage_result import LayerChange as LayerChange
from zoopress.results.stage_result import StageResult as StageResult
