"""What plugins test themselves with."""

from __future__ import annotations

from zoopress.testing.blocks import check_block as check_block
from zoopress.testing.conformance import (
    ConformanceError as ConformanceError,
    check_technique as check_technique,
)
from zoopress.testing.criteria import check_criterion as check_criterion
from zoopress.testing.deployment import (
    check_exporter as check_exporter,
    check_runtime as check_runtime,
    tiny_artifact as tiny_artifact,
)
from zoopress.testing.entropy_coders import (
    check_entropy_coder as check_entropy_coder,
)
from zoopress.testing.losses import check_loss as check_loss
from zoopress.testing.rounders import check_rounder as check_rounder
from zoopress.testing.tiny import (
    artifact_bytes as artifact_bytes,
    context_for as context_for,
    reload_artifact as reload_artifact,
    run_chain as run_chain,
    seeded as seeded,
    tiny_card as tiny_card,
    write_card as write_card,
)
