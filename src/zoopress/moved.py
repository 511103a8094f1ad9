"""Modules that have moved, importable by the names that plugins know them by.

A name stays here for as long as the hook interface keeps its major version (`HOOK_INTERFACE` in
`zoopress.plugins`); `zoopress plugin check` tells a plugin's author which to replace.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "zoopress.artifact": "zoopress.artifacts.artifact",
    "zoopress.bounds": "zoopress.models.bounds",
    "zoopress.card": "zoopress.cards",
    "zoopress.card_maker": "zoopress.cards.maker",
    "zoopress.cell": "zoopress.cells.cell",
    "zoopress.checkpoints": "zoopress.artifacts.checkpoints",
    "zoopress.compress": "zoopress.pipeline.compress",
    "zoopress.data": "zoopress.tasks",
    "zoopress.edits": "zoopress.models.edits",
    "zoopress.encoding": "zoopress.artifacts.encoding",
    "zoopress.evaluation.batches": "zoopress.tasks.batches",
    "zoopress.hub.licenses": "zoopress.publishing.licenses",
    "zoopress.hub.model_card": "zoopress.publishing.model_card",
    "zoopress.hub.publish": "zoopress.publishing.publish",
    "zoopress.hub.release": "zoopress.publishing.release",
    "zoopress.lineage": "zoopress.publishing.lineage",
    "zoopress.manifest": "zoopress.artifacts.manifest",
    "zoopress.model": "zoopress.models.model",
    "zoopress.orchestration.leaderboard": "zoopress.reports.leaderboard",
    "zoopress.packing": "zoopress.models.packing",
    "zoopress.plan": "zoopress.cells.plan",
    "zoopress.precision": "zoopress.models.precision",
    "zoopress.recipe": "zoopress.recipes",
    "zoopress.report": "zoopress.results",
    "zoopress.source": "zoopress.sources",
    "zoopress.stacks": "zoopress.models.stacks",
    "zoopress.task": "zoopress.tasks",
    "zoopress.technique": "zoopress.techniques",
    "zoopress.testing_models": "zoopress.testing.models",
    "zoopress.weights": "zoopress.models.weights",
}
"""Old name to new one."""


class _Moved(MetaPathFinder, Loader):
    """Gives the module itself, so that both names hold the same classes."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(MOVED[spec.name])
        self._specs[spec.name] = module.__spec__  # importing sets that of the old name
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None, "importing has just set it"
        module.__spec__ = self._specs.pop(module.__spec__.name)


def keep_old_names() -> None:
    """Let modules that have moved be imported by their old names."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
