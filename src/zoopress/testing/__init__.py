"""What plugins test themselves with."""

from __future__ import annotations

from zoopress.testing.blocks import check_block as check_block
from zoopress.testing.conformance import (
    ConformanceError as ConformanceError,
)
from zoopress.testing.conformance import (
    artifact_bytes as artifact_bytes,
)
from zoopress.testing.conformance import (
    check_technique as check_technique,
)
from zoopress.testing.conformance import (
    context_for as context_for,
)
from zoopress.testing.conformance import (
    reload_artifact as reload_artifact,
)
from zoopress.testing.conformance import (
    run_chain as run_chain,
)
from zoopress.testing.conformance import (
    seeded as seeded,
)
from zoopress.testing.conformance import (
    tiny_card as tiny_card,
)
from zoopress.testing.conformance import (
    write_card as write_card,
)
from zoopress.testing.criteria import check_criterion as check_criterion
from zoopress.testing.deployment import (
    check_exporter as check_exporter,
)
from zoopress.testing.deployment import (
    check_runtime as check_runtime,
)
from zoopress.testing.deployment import (
    tiny_artifact as tiny_artifact,
)
from zoopress.testing.entropy_coders import (
    check_entropy_coder as check_entropy_coder,
)
from zoopress.testing.losses import check_loss as check_loss
