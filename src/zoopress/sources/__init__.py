"""From a card's files to modules."""

from __future__ import annotations

from zoopress.identity import callable_code as callable_code
from zoopress.identity import load_callable as load_callable
from zoopress.sources.source import (
    Architecture as Architecture,
)
from zoopress.sources.source import (
    Companions as Companions,
)
from zoopress.sources.source import (
    SourceFiles as SourceFiles,
)
from zoopress.sources.source import (
    build_on_meta as build_on_meta,
)
from zoopress.sources.source import (
    detect_architecture as detect_architecture,
)
from zoopress.sources.source import (
    pull as pull,
)
