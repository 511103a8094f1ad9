"""Gates: what a result must show before the chain goes on."""

from __future__ import annotations

from zoopress.gates.gates import (
    BUILT_IN as BUILT_IN,
    OF_TARGETS as OF_TARGETS,
    Gate as Gate,
    check_chosen as check_chosen,
    check_sound as check_sound,
    check_targets as check_targets,
)
from zoopress.results import (
    Fidelity as Fidelity,
    GateInput as GateInput,
    StageResult as StageResult,
)
