"""The JSON schema of recipes with the techniques that are installed, for editors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zoopress.config import DIALECT, json_schema
from zoopress.plugins import Plugins
from zoopress.recipes.recipe import BESIDES, Targets, _RecipeFile

_BESIDE: dict[str, Any] = {
    "targets": {"$ref": "#/$defs/Targets"},
    "recovery": {
        "anyOf": [{"$ref": "#/$defs/recovery"}, {"type": "null"}],
        "description": "what trains the model before the stage is judged",
    },
}


def recipe_schema(plugins: Plugins) -> dict[str, Any]:
    """Return the schema; a stage has the keys of the technique that it names, and no others."""
    every = sorted(plugins.techniques)
    able = [name for name in every if plugins.technique(name).recovers]
    schema = json_schema(_RecipeFile)
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    definitions["Targets"] = json_schema(Targets, "#/$defs/Targets")
    for kind, names, besides in (("stage", every, BESIDES), ("recovery", able, ())):
        definitions[kind] = _tagged(plugins, names, kind)
        for name in names:
            definitions[f"{kind}:{name}"] = _with_keys(plugins, name, f"{kind}:{name}", besides)
    schema["properties"]["stages"]["items"] = {"$ref": "#/$defs/stage"}
    about = "Stages in order, and what their result must meet."
    return {"$schema": DIALECT, "title": "A recipe of zoopress", **schema, "description": about}


def _tagged(plugins: Plugins, names: Iterable[str], kind: str) -> dict[str, Any]:
    """Return what chooses a schema by the key `technique`.

    So a mistake is told of the technique that is named; `oneOf` would say that none fits.
    """
    tag = {
        "enum": list(names),
        "enumDescriptions": [_summary(plugins, name) for name in names],  # VS Code shows them
        "description": "what compresses" if kind == "stage" else "what trains",
    }
    chosen = [
        {
            "if": {"properties": {"technique": {"const": name}}, "required": ["technique"]},
            "then": {"$ref": f"#/$defs/{kind}:{name}"},
        }
        for name in names
    ]
    return {
        "type": "object",
        "properties": {"technique": tag},
        "required": ["technique"],
        **({"allOf": chosen} if chosen else {}),
    }


def _with_keys(
    plugins: Plugins, name: str, definition: str, besides: Iterable[str]
) -> dict[str, Any]:
    """Return a technique's config, with the keys that stand beside it."""
    try:
        config = json_schema(plugins.technique(name).config_type, f"#/$defs/{definition}")
    except Exception as error:  # a plugin's config may hold what has no JSON form
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        config = {"additionalProperties": True, "$comment": f"keys are not checked: {reason}"}
    tag = {"const": name, "description": _summary(plugins, name)}
    return {
        **config,
        "type": "object",
        "properties": {
            "technique": tag,
            **config.get("properties", {}),
            **{key: _BESIDE[key] for key in besides},
        },
        "required": ["technique", *config.get("required", ())],
    }


def _summary(plugins: Plugins, name: str) -> str:
    return (plugins.technique(name).__doc__ or "").strip().partition("\n")[0]
