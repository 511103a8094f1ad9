"""The base of whatever a user configures in a recipe, and JSON schemas of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

from zoopress.errors import nearest

if TYPE_CHECKING:
    from zoopress.plugins import Registry

PLUGINS = "plugins"
"""Key of the context in which a config is validated: the plugins that it names things of."""

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


def registered(hook: Registry, besides: Collection[str] = ()) -> AfterValidator:
    """Annotate a field that names what plugins register: a recipe with another name is refused.

    Where a config is made without a recipe, nothing is known of plugins; then whoever asks them for
    the name finds out.

    Args:
        hook: where it is registered.
        besides: names that are valid, too.
    """

    def check(name: str, info: ValidationInfo) -> str:
        plugins = (info.context or {}).get(PLUGINS)
        if plugins is None or name in besides or name in plugins.references[hook]:
            return name
        known = (*besides, *plugins.references[hook])
        raise ValueError(f"no plugin registers it under {hook!r}.{nearest(name, known)}")

    return AfterValidator(check)
