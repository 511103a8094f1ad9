"""What a recipe chooses by name from what plugins register, with options of its own.

    criterion: magnitude
    criterion: {name: random, seed: 3}

A config holds it as plain data, so a recipe is read, keyed and reported without knowing what a name
stands for; options are checked when the recipe is read, and whenever the thing is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from zoopress.config import PLUGINS, Config
from zoopress.errors import PluginError, StageError, nearest
from zoopress.plugins import Plugins, Registry, load_plugins

if TYPE_CHECKING:
    from typing_extensions import Self


class NoOptions(Config):
    """The config of what has no options."""


class Choice(BaseModel):
    """One of what plugins register for a hook: its name, or a mapping of it and its options.

    A subclass names the registry, and may have keys of its own beside the options.

    Class attributes:
        registry: the hook.
        key: under which key the name stands where there are options, too.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    registry: ClassVar[Registry]
    key: ClassVar[str] = "name"

    name: str = Field(description="what plugins call it")

    def kind(self, plugins: Plugins | None = None) -> Any:
        """Return the class that is registered under the name.

        Raises:
            PluginError: if none is, or it cannot be imported.
        """
        return (plugins or load_plugins()).resolve(self.registry, self.name)

    def make(self, plugins: Plugins | None = None) -> Any:
        """Return what was chosen, with its options.

        Args:
            plugins: those of the run; everything installed if None.

        Raises:
            StageError: if there is no such thing, or an option is wrong.
        """
        try:
            kind = self.kind(plugins)
            return kind(kind.config_type.model_validate(self.options))
        except PluginError as error:
            raise StageError(str(error)) from error
        except ValidationError as error:
            problems = [f"{_place(item)}: {item['msg']}" for item in error.errors()]
            raise StageError(f"{self.key} {self.name!r}: {'; '.join(problems)}.") from error

    @property
    def options(self) -> dict[str, Any]:
        """The options, as they were given."""
        return dict(self.__pydantic_extra__ or {})

    def fitting(self, kind: Any) -> str | None:
        """Say why a class that is registered cannot be used where this choice stands, or None."""
        return None

    def __repr__(self) -> str:
        return repr(self.model_dump())

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Describe what editors accept: a name, or a mapping with it and any options."""
        mapping = dict(handler.resolve_ref_schema(handler(core_schema)))
        if cls.key != "name" and "properties" in mapping:
            swap = {"name": cls.key}
            properties = mapping["properties"].items()
            mapping["properties"] = {swap.get(key, key): value for key, value in properties}
            mapping["required"] = [swap.get(key, key) for key in mapping.get("required", ())]
        return {"anyOf": [{"type": "string"}, mapping]}

    @model_validator(mode="before")
    @classmethod
    def _spelled(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Choice):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"expected a name, or {{{cls.key}: NAME, …}} with its options")
        if cls.key != "name":
            if "name" in value and cls.key in value:
                raise ValueError(f"give the name under '{cls.key}' alone")
            if cls.key in value:
                value = {"name" if key == cls.key else key: item for key, item in value.items()}
        if "name" not in value:
            raise ValueError(f"expected a name, or {{{cls.key}: NAME, …}} with its options")
        return value

    @model_validator(mode="after")
    def _checked(self, info: ValidationInfo) -> Self:
        plugins = (info.context or {}).get(PLUGINS)
        if plugins is None:
            return self
        try:
            kind = self.kind(plugins)
        except PluginError as error:
            raise _telling(str(error)) from None
        reason = self.fitting(kind)
        if reason:
            raise _telling(reason)
        try:
            options = kind.config_type.model_validate(self.options, context=info.context)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                self.name, [_of_option(self.name, kind.config_type, i) for i in error.errors()]
            ) from None
        # All options, so that a result's key and report name the defaults, too.
        return self.model_copy(update=options.model_dump(mode="json"))

    @model_serializer(mode="wrap")
    def _as_written(self, handler: Any) -> Any:
        written = handler(self)
        if isinstance(written, dict) and written.keys() == {"name"} and self.key == "name":
            return self.name
        if isinstance(written, dict) and self.key != "name":
            written = {self.key if key == "name" else key: item for key, item in written.items()}
        return written


def choices(value: Any) -> Iterator[Choice]:
    """Yield every choice in a config, also in configs, lists and mappings inside it."""
    if isinstance(value, Choice):
        yield value
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from choices(getattr(value, name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from choices(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from choices(item)


def _telling(message: str) -> PydanticCustomError:
    """Return an error that is shown as it stands."""
    return PydanticCustomError("choice", "{text}", {"text": message})


def _of_option(name: str, options: type[BaseModel], item: Any) -> InitErrorDetails:
    """Return an error in the options of what was chosen, at its place in the choice."""
    if item["type"] == "extra_forbidden":
        message = f"{name!r} has no option {_place(item)!r}."
        kind: Any = _telling(message + nearest(_place(item), options.model_fields))
    elif item["type"] == "missing":
        kind = _telling(f"{name!r} needs the option {_place(item)!r}.")
    else:
        kind = PydanticCustomError("option", "{text}", {"text": item["msg"]})
    return InitErrorDetails(type=kind, loc=item["loc"], input=item["input"])


def _place(item: Any) -> str:
    return ".".join(str(part) for part in item["loc"]) or "(whole)"
