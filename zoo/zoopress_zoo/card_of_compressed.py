"""What a card of a compressed model says, as far as its manifest and its run tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoopress.artifacts.manifest import MANIFEST, Manifest
from zoopress.cards.maker import clean
from zoopress.store import file_digest

_OWN = frozenset(
    {
        # tags that every page of a compressed model gets
        *("zoopress", "compressed", "pruning", "quantization", "low-rank", "entropy-coding"),
        *("distillation", "redesign", "transfer"),
        # measures of a compression, not of the task
        *("cosine_similarity", "label_loyalty", "probability_loyalty", "compression_ratio"),
        "size_bytes",
    }
)
_SHARED = ("hub:", "package:")


def facts_of_base(metadata: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """Return a page's metadata with the first original's licence where the page states none.

    Without what is said of the compressed model alone: its library, where that is zoopress, the
    tags that it will get again, and how the compression was measured.
    """
    facts = dict(metadata)
    if not facts.get("license") and manifest.base.license:
        facts["license"] = manifest.base.license
    if facts.get("library_name") == "zoopress":
        del facts["library_name"]
    for key in ("tags", "metrics"):
        if isinstance(facts.get(key), list):
            facts[key] = [item for item in facts[key] if item not in _OWN]
    return facts


def factory_wanted(manifest: Manifest) -> str:
    """Return what a card's author has to add for a model that a Python function builds."""
    named = manifest.architecture.arguments.get("factory")
    return (
        f"factory: this model is built by a Python function; it was {clean(str(named), 120)!r}. An "
        "artifact is never trusted to name code, so name one of your own, for example\n"
        "factory: FILE.py:FUNCTION"
    )


def card_of_run(artifact: Path) -> Mapping[str, Any]:
    """Return the card that an artifact was made with, from the report beside it; else nothing."""
    try:
        report = json.loads((artifact.parent / "report.json").read_bytes())
        card, sha256 = report["card"], report["artifact_sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    is_its = sha256 == file_digest(artifact / MANIFEST)
    return card if is_its and isinstance(card, dict) else {}


def shared_data(card: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a card's data if it is the same from everywhere, None if it is files beside a card."""
    data = card.get("data")
    if not isinstance(data, dict) or {"file", "inputs"} & data.keys():
        return None
    dataset, text = str(data.get("dataset", "hub:")), data.get("text", "python-docstrings")
    if not dataset.startswith(_SHARED) or text != "python-docstrings":
        return None
    return dict(data)


def compressed_from(manifest: Manifest) -> str:
    """Say what a model was compressed from, and by which techniques."""
    base = manifest.base.base_model or manifest.base.name
    stages = ", ".join(clean(str(stage.get("technique")), 60) for stage in manifest.lineage)
    return f"compressed from {clean(base, 100)} by {stages or 'no stage'}"
