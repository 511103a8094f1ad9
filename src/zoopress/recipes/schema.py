"""The JSON schema of recipes with the techniques that are installed, for editors."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import getdoc
from typing import Any

from zoopress.config import DIALECT, json_schema
from zoopress.plugins import Plugins
from zoopress.recipes.gate_choices import config_of
from zoopress.recipes.recipe import BESIDES, Targets, _RecipeFile

_BESIDE: dict[str, Any] = {
    "targets": {"$ref": "#/$defs/Targets"},
    "recovery": {
        "anyOf": [{"$ref": "#/$defs/recovery"}, {"type": "null"}],
        "description": "what trains the model before the stage is judged",
    },
    "gates": {
        "$ref": "#/$defs/gates",
        "description": "what the result must show besides, after this stage alone",
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
    definitions["gates"] = _gates(plugins)
    schema["properties"]["gates"] = {
        "$ref": "#/$defs/gates",
        "description": "what results must show besides, after every stage",
    }
    schema["properties"]["measures"]["items"] = {"enum": sorted(plugins.references["measures"])}
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


def _gates(plugins: Plugins) -> dict[str, Any]:
    """Return the schema of a list of gates: names, and names with options."""
    plain, with_options = [], []
    for name in sorted(plugins.references["gates"]):
        try:
            gate = plugins.resolve("gates", name)
            config = config_of(gate, name)
            keys = {} if config is None else json_schema(config, "#/$defs/gates")
        except Exception:  # a plugin's, which recipes cannot name either
            continue
        if getattr(gate, "always_asked", False):
            continue
        if not keys.get("required"):
            plain.append(name)
        tag = {"const": name, "description": (getdoc(gate) or "").partition("\n")[0]}
        with_options.append(
            {
                "type": "object",
                "additionalProperties": False,
                "properties": {"gate": tag, **keys.get("properties", {})},
                "required": ["gate", *keys.get("required", ())],
            }
        )
    return {
        "type": "array",
        "items": {"anyOf": [{"enum": plain}, *with_options]},
        "description": "what results must show besides",
    }


def _summary(plugins: Plugins, name: str) -> str:
    return (plugins.technique(name).__doc__ or "").strip().partition("\n")[0]
