"""The gates that a recipe chooses, each with its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.config import Config
from zoopress.errors import PluginError, RecipeError
from zoopress.yaml_source import Location, YamlSource, validate_mapping

if TYPE_CHECKING:
    from zoopress.plugins import Plugins


@dataclass(frozen=True)
class ChosenGate:
    """A gate that a recipe names.

    Attributes:
        name: under which it is registered.
        judge: given a `zoopress.results.GateInput`, returns None or what is wrong.
        config: its options; None of a function, which has none.
        origin: the plugin and distribution that it comes from, in words.
    """

    name: str
    judge: Callable[[Any], str | None] = field(compare=False)
    config: Config | None = None
    origin: str = field(default="", compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the gate as a recipe spells it, defaults included."""
        options = {} if self.config is None else self.config.model_dump(mode="json")
        return {"gate": self.name, **options}


def config_of(gate: Any, name: str) -> type[Config] | None:
    """Return the class of a registered gate's options, None of a function's.

    Raises:
        PluginError: if it is neither a function nor a class as gates are.
    """
    if not isinstance(gate, type):
        return None
    config = getattr(gate, "config_type", Config)
    if not (isinstance(config, type) and issubclass(config, Config)):
        problem = "whose config_type is no subclass of zoopress.config.Config"
    elif not any("__call__" in vars(base) for base in gate.__mro__):
        problem = "which has no method __call__(given)"
    else:
        return config
    raise PluginError(
        f"The gate {name!r} is the class {gate.__qualname__}, {problem}. Repair its plugin: a "
        "gate is a function, or a class with a config_type, __init__(config) and __call__(given)."
    )


def parse_gates(
    data: Any, at: Location, source: YamlSource, plugins: Plugins
) -> tuple[ChosenGate, ...]:
    """Read the list of gates that stands at a location of a recipe.

    Raises:
        RecipeError: naming file, line, key and the nearest name.
    """
    if not isinstance(data, list):
        raise RecipeError(
            f"{source.where(at)}: 'gates' must be a list, each item a name or "
            f"{{gate: NAME, option: …}}, got {data!r}."
        )
    chosen: dict[str, ChosenGate] = {}
    for i, item in enumerate(data):
        gate = _parse_gate(item, (*at, i), source, plugins)
        if gate.name in chosen:
            raise RecipeError(
                f"{source.where((*at, i))}: the gate {gate.name!r} stands here twice; keep one."
            )
        chosen[gate.name] = gate
    return tuple(chosen.values())


def read_gates(
    data: Sequence[Mapping[str, Any]], path: Path, plugins: Plugins
) -> tuple[ChosenGate, ...]:
    """Read gates again that `ChosenGate.as_dict` wrote, such as those of a report's recipe.

    Args:
        data: as they were written.
        path: the file that they stand in, for errors.
        plugins: which gates there are.

    Raises:
        RecipeError: if one is not installed here, or has other options now.
    """
    return parse_gates(list(data), (), YamlSource(path, data), plugins)


def effective(shared: Sequence[ChosenGate], own: Sequence[ChosenGate]) -> tuple[ChosenGate, ...]:
    """Return what a stage is asked: the recipe's gates, its own in the place of those they name."""
    return tuple({gate.name: gate for gate in (*shared, *own)}.values())


def _parse_gate(item: Any, at: Location, source: YamlSource, plugins: Plugins) -> ChosenGate:
    options = {"gate": item} if isinstance(item, str) else item
    name = options.get("gate") if isinstance(options, dict) else None
    if not isinstance(options, dict) or not isinstance(name, str):
        raise RecipeError(
            f"{source.where(at)}: a gate is a name, or {{gate: NAME, option: …}}, got {item!r}."
        )
    where = source.where((*at, "gate"))
    try:
        found = plugins.resolve("gates", name)
        config_type = config_of(found, name)
    except PluginError as error:
        raise RecipeError(f"{where}: {error}{_remedy(name, plugins)}") from None
    if getattr(found, "always_asked", False):
        raise RecipeError(
            f"{where}: the gate {name!r} is always asked and cannot be chosen; leave it out."
        )
    given = {key: value for key, value in options.items() if key != "gate"}
    if config_type is None:
        if given:
            raise RecipeError(
                f"{source.where((*at, next(iter(given))))}: the gate {name!r} has no options; "
                f"remove {', '.join(map(repr, given))}."
            )
        return ChosenGate(name, found, origin=_origin(name, plugins))
    config = validate_mapping(config_type, given, source, RecipeError, at)
    try:
        return ChosenGate(name, found(config), config, _origin(name, plugins))
    except Exception as error:  # a plugin's, which may do anything
        raise RecipeError(
            f"{source.where(at)}: the gate {name!r} does not take its options: "
            f"{type(error).__name__}: {error}. Change them, or repair the gate's plugin."
        ) from error


def _origin(name: str, plugins: Plugins) -> str:
    origin = plugins.origin("gates", name)
    return f"plugin {origin.plugin!r} of {origin.distribution}"


def _remedy(name: str, plugins: Plugins) -> str:
    if name in plugins.references["gates"]:
        return ""
    return (
        " No installed plugin registers a gate of that name: install the one that does, or remove "
        "it from 'gates'. `zoopress gates` lists those that there are."
    )
