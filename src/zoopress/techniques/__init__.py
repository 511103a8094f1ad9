"""Contract of a technique: config, effects, context, outcome."""

from __future__ import annotations

from zoopress.techniques.answers import (
    applied as applied,
    effects_of as effects_of,
    folding as folding,
)
from zoopress.techniques.block import Block as Block, BlockChoice as BlockChoice, Cost as Cost
from zoopress.techniques.criterion import (
    Criterion as Criterion,
    Evidence as Evidence,
    UnitCriterion as UnitCriterion,
    WeightCriterion as WeightCriterion,
)
from zoopress.techniques.rounder import (
    Matrix as Matrix,
    Rounded as Rounded,
    Rounder as Rounder,
    RounderChoice as RounderChoice,
)
from zoopress.techniques.scope import (
    EVERYTHING as EVERYTHING,
    Scope as Scope,
    weights_below as weights_below,
)
from zoopress.techniques.technique import (
    ACTIVATION_RANGES as ACTIVATION_RANGES,
    INITIAL_PROPERTIES as INITIAL_PROPERTIES,
    KINDS as KINDS,
    MASKS as MASKS,
    MATRICES as MATRICES,
    Claim as Claim,
    Config as Config,
    ConfigT as ConfigT,
    Context as Context,
    Effects as Effects,
    Family as Family,
    Kind as Kind,
    Need as Need,
    Outcome as Outcome,
    Technique as Technique,
    WeightSelection as WeightSelection,
    float_weights as float_weights,
)
