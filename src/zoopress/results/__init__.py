"""The records of what was measured, which everyone passes on."""

from __future__ import annotations

from zoopress.results.coverage import Coverage as Coverage, KindCoverage as KindCoverage
from zoopress.results.quality import Quality as Quality
from zoopress.results.report import (
    LayerResult as LayerResult,
    Report as Report,
    read_report as read_report,
)
from zoopress.results.stage_result import (
    MEANINGLESS as MEANINGLESS,
    Fidelity as Fidelity,
    GateInput as GateInput,
    LayerChange as LayerChange,
    OutputFidelity as OutputFidelity,
    Similarity as Similarity,
    StageResult as StageResult,
)
