"""The JSON schema of cards with what is installed, for editors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from zoopress.cards.card import WAYS, Card
from zoopress.config import DIALECT, json_schema
from zoopress.plugins import Plugins


def card_schema(plugins: Plugins) -> dict[str, Any]:
    """Return the schema; sources, tasks, datasets and measures are those that plugins register."""
    registered = plugins.references
    schema = json_schema(Card)
    keys, data = schema["properties"], schema["$defs"]["Data"]
    keys["source"]["pattern"] = _schemes(registered["sources"])
    keys["task"]["enum"] = sorted(registered["tasks"])
    keys["measures"]["items"] = {"enum": sorted(registered["measures"])}
    for branch in data["properties"]["dataset"]["anyOf"]:
        if branch.get("type") == "string":
            branch["pattern"] = _schemes(registered["datasets"])
    data["oneOf"] = [{"required": [way]} for way in WAYS]
    return {
        "$schema": DIALECT,
        "title": "A card of zoopress",
        **schema,
        "description": "One model of the zoo, where it comes from and how to try it.",
    }


def _schemes(names: Iterable[str]) -> str:
    return f"^({'|'.join(map(re.escape, sorted(names)))}):.+"
