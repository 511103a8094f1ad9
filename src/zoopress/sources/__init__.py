"""From a card's files to modules."""

from __future__ import annotations

from zoopress.identity import callable_code as callable_code, load_callable as load_callable
from zoopress.sources.source import (
    Architecture as Architecture,
    Companions as Companions,
    SourceFiles as SourceFiles,
    build_on_meta as build_on_meta,
    detect_architecture as detect_architecture,
    pull as pull,
)
