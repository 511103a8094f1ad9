"""YAML files with line numbers, and validation errors that point into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from zoopress.errors import InputError, nearest

Location = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)
MAX_BYTES = 1 << 20
_YAML = "tag:yaml.org,2002:"
_COLLECTIONS = (f"{_YAML}map", f"{_YAML}seq")
_NUMBERS = (f"{_YAML}int", f"{_YAML}float")


@dataclass
class YamlSource:
    """Parsed YAML that remembers where each key and item stood."""

    path: Path
    data: Any
    lines: dict[Location, int] = field(default_factory=dict)
    prefix: Location = ()

    def where(self, location: Location) -> str:
        """Return "file:line" of the nearest known place at or above a location."""
        full = (*self.prefix, *location)
        while full and full not in self.lines:
            full = full[:-1]
        return f"{self.path}:{self.lines.get(full, 1)}"

    def section(self, dotted: str, error: type[InputError]) -> YamlSource:
        """Return the part of the file under a dotted path such as "recipes.hybrid".

        A key may have dots itself, as "recipes.v1.0": the longest that is there is meant.
        """
        data, prefix, parts = self.data, self.prefix, dotted.split(".")
        while parts:
            names = {str(key): key for key in data} if isinstance(data, dict) else {}
            for count in range(len(parts), 0, -1):
                name = ".".join(parts[:count])
                if name in names:
                    key = names[name]
                    data, prefix, parts = data[key], (*prefix, key), parts[count:]
                    break
            else:
                name = parts[0] if len(parts) == len(dotted.split(".")) else ".".join(parts)
                raise error(
                    f"{self.where(prefix)}: there is no {name!r} here.{nearest(name, names)}"
                )
        return YamlSource(self.path, data, self.lines, prefix)


def read_yaml(path: Path, error: type[InputError]) -> YamlSource:
    """Read a YAML file without executing any tag in it.

    Raises:
        InputError: of the given class, if the file is missing, too large or not YAML.
    """
    try:
        with path.open("rb") as stream:  # sizes are unknown of what is no plain file
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise error(f"{path}: larger than {MAX_BYTES} bytes, which no card or recipe is.")
        text = content.decode("utf-8")
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}.") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path}: is not UTF-8 text ({problem.reason} at byte {problem.start}).") from (
            problem
        )
    return parse_yaml(text, path, error)


def parse_yaml(text: str, path: Path, error: type[InputError]) -> YamlSource:
    """Parse YAML text; see `read_yaml`.

    A file of many recipes is asked for each of them, so the last few texts are kept; nobody changes
    what was parsed.
    """
    return _parsed(text, path, error)  # type: ignore[arg-type]  # a class is hashable


@lru_cache(maxsize=8)
def _parsed(text: str, path: Path, error: type[InputError]) -> YamlSource:
    source = YamlSource(path, None)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        source.data = None if node is None else _construct(node, (), source, error, 0)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(problem, "problem", None) or " ".join(str(problem).split())
        raise error(f"{path}{line}: is not valid YAML: {reason}.") from problem
    except RecursionError as problem:
        raise error(f"{path}: is nested too deeply.") from problem
    return source


def _construct(
    node: yaml.Node, location: Location, source: YamlSource, error: type[InputError], depth: int
) -> Any:
    line = node.start_mark.line + 1
    source.lines.setdefault(location, line)
    if depth > 50 or len(source.lines) > 100_000:  # also stops aliases that refer to themselves
        raise error(f"{source.path}:{line}: is nested too deeply, or repeats itself too often.")
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTIONS:
        raise error(
            f"{source.path}:{line}: the tag {_shown(node.tag)} is not understood; leave it out."
        )
    if isinstance(node, yaml.MappingNode):
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            at = key_node.start_mark.line + 1
            # Looked at only if plain: a hostile key could be an alias that grows when printed.
            key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                text = _shown(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "here"
                raise error(f"{source.path}:{at}: the key {text} must be text; quote it.")
            if key in mapping:
                raise error(f"{source.path}:{at}: the key {_shown(key)} stands here twice.")
            place = (*location, key)
            source.lines[place] = at
            mapping[key] = _construct(value_node, place, source, error, depth + 1)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(item, (*location, i), source, error, depth + 1)
            for i, item in enumerate(node.value)
        ]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node)


def _scalar(node: yaml.ScalarNode) -> Any:
    # YAML 1.1 takes 2:4 for 124, counted in sixties, and 2024-01-01 for a date. Nobody means that.
    if (node.tag in _NUMBERS and ":" in node.value) or node.tag == f"{_YAML}timestamp":
        return node.value
    if node.tag in _NUMBERS and len(node.value) > 1000:
        raise _unreadable(node, "a number of more than 1000 digits")
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    # What PyYAML raises of values that do not fit their tag, such as "!!int ''".
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as problem:
        raise _unreadable(node, f"{_shown(node.value)} is no {node.tag.removeprefix(_YAML)}") from (
            problem
        )
    finally:
        loader.dispose()


def _unreadable(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def validate(
    model: type[ModelT], source: YamlSource, error: type[InputError], at: Location = ()
) -> ModelT:
    """Build a pydantic model from parsed YAML.

    Args:
        model: the class.
        source: the parsed file.
        error: which error to raise.
        at: location of the mapping within the source.

    Raises:
        InputError: naming file, line, key and nearest valid key of every mistake, on one screen.
    """
    data = source.data
    for part in at:
        data = data[part]
    if not isinstance(data, dict):
        raise error(f"{source.where(at)}: expected keys and values, got {_shown(data)}.")
    return validate_mapping(model, data, source, error, at)


def validate_mapping(
    model: type[ModelT],
    data: Mapping[str, Any],
    source: YamlSource,
    error: type[InputError],
    at: Location = (),
    context: Mapping[str, Any] | None = None,
) -> ModelT:
    """Build a pydantic model from a mapping that stands at a location of a source.

    Args:
        model: the class.
        data: the mapping.
        source: the parsed file.
        error: which error to raise.
        at: location of the mapping within the source.
        context: what the model's validators may ask for, such as the plugins of the run.

    Raises:
        InputError: as `validate`.
    """
    try:
        return model.model_validate(data, context=context)
    except ValidationError as problem:
        lines = [_line(model, item, source, at) for item in problem.errors()]
        more = f"\n… and {len(lines) - 8} more" if len(lines) > 8 else ""
        raise error("\n".join(dict.fromkeys(lines[:8])) + more) from None


def _line(model: type[BaseModel], item: Any, source: YamlSource, at: Location) -> str:
    location: Location = item["loc"]
    # Union branches and validators appear in pydantic's locations but not in the file.
    shown = tuple(p for i, p in enumerate(location) if i == 0 or _in_data(source, at, location, i))
    name = ".".join(str(part) for part in shown) or "(whole)"
    where = source.where((*at, *shown))
    if item["type"] == "extra_forbidden":
        fields = _fields(model, location[:-1])
        return f"{where}: unknown key {name!r}.{nearest(str(location[-1]), fields)}"
    if item["type"] == "missing":
        return f"{where}: the key {name!r} is missing."
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "choice":  # a whole sentence, with its remedy
        return f"{where}: {name}: {message}"
    return f"{where}: {name}: {message[:1].lower()}{message[1:]}, got {_shown(item['input'])}."


def _in_data(source: YamlSource, at: Location, location: Location, index: int) -> bool:
    known = (*source.prefix, *at, *location[: index + 1]) in source.lines
    return known or isinstance(location[index], str)


def _fields(model: type[BaseModel], location: Location) -> list[str]:
    """Return the valid keys of the (sub)model at a location."""
    current: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        current = _model_in(annotation) or current
    return list(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _model_in(argument)
        if found:
            return found
    return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
