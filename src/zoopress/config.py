"""The base of whatever a user configures in a recipe, and JSON schemas of it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

DIALECT = "http://json-schema.org/draft-07/schema#"
"""Which JSON Schema: the one that editors' YAML support reads."""


class Config(BaseModel):
    """Base of every config: unknown keys are errors, values are never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def json_schema(model: type[BaseModel], at: str = "#") -> dict[str, Any]:
    """Return a model's JSON schema, without the titles that pydantic makes of names.

    Args:
        model: the class.
        at: where the schema will stand in a larger one, as a JSON pointer.

    Raises:
        PydanticInvalidForJsonSchema: if one of its fields has no JSON form.
    """
    schema: dict[str, Any] = model.model_json_schema(ref_template=f"{at}/$defs/{{model}}")
    for part in (schema, *schema.get("$defs", {}).values()):
        part.pop("title", None)
        for field in part.get("properties", {}).values():
            field.pop("title", None)
    return schema
