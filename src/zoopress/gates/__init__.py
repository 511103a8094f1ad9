"""Gates: what a result must show before the chain goes on."""

from __future__ import annotations

from zoopress.gates.gates import BUILT_IN as BUILT_IN
from zoopress.gates.gates import OF_TARGETS as OF_TARGETS
from zoopress.gates.gates import Gate as Gate
from zoopress.gates.gates import check_chosen as check_chosen
from zoopress.gates.gates import check_sound as check_sound
from zoopress.gates.gates import check_targets as check_targets
from zoopress.results import Fidelity as Fidelity
from zoopress.results import GateInput as GateInput
from zoopress.results import StageResult as StageResult
