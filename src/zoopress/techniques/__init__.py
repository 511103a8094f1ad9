"""Contract of a technique: config, effects, context, outcome."""

from __future__ import annotations

from zoopress.techniques.answers import applied as applied
from zoopress.techniques.answers import effects_of as effects_of
from zoopress.techniques.block import Block as Block
from zoopress.techniques.block import BlockChoice as BlockChoice
from zoopress.techniques.block import Cost as Cost
from zoopress.techniques.criterion import Criterion as Criterion
from zoopress.techniques.criterion import Evidence as Evidence
from zoopress.techniques.criterion import UnitCriterion as UnitCriterion
from zoopress.techniques.criterion import WeightCriterion as WeightCriterion
from zoopress.techniques.scope import EVERYTHING as EVERYTHING
from zoopress.techniques.scope import Scope as Scope
from zoopress.techniques.scope import weights_below as weights_below
from zoopress.techniques.technique import (
    ACTIVATION_RANGES as ACTIVATION_RANGES,
)
from zoopress.techniques.technique import (
    INITIAL_PROPERTIES as INITIAL_PROPERTIES,
)
from zoopress.techniques.technique import (
    KINDS as KINDS,
)
from zoopress.techniques.technique import (
    MASKS as MASKS,
)
from zoopress.techniques.technique import (
    Claim as Claim,
)
from zoopress.techniques.technique import (
    Config as Config,
)
from zoopress.techniques.technique import (
    ConfigT as ConfigT,
)
from zoopress.techniques.technique import (
    Context as Context,
)
from zoopress.techniques.technique import (
    Effects as Effects,
)
from zoopress.techniques.technique import (
    Family as Family,
)
from zoopress.techniques.technique import (
    Kind as Kind,
)
from zoopress.techniques.technique import (
    Need as Need,
)
from zoopress.techniques.technique import (
    Outcome as Outcome,
)
from zoopress.techniques.technique import (
    Technique as Technique,
)
from zoopress.techniques.technique import (
    WeightSelection as WeightSelection,
)
from zoopress.techniques.technique import (
    float_weights as float_weights,
)
