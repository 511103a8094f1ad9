"""The contract with plugins: the version of the hooks, and what registered functions return.

A plugin may say which version it was made for, in its module:

    zoopress_hook_interface = "1.2"
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.errors import PluginError, nearest
from zoopress.provenance import update_line

if TYPE_CHECKING:
    from zoopress.techniques import Technique

HOOK_INTERFACE = (1, 2)
"""Version of the hooks.

The first number grows when a plugin made for the one before may break; what goes then was told to
be deprecated for one release at least, by `zoopress plugin check` and in the changelog. The second
grows when something is added.
"""

STATEMENT = "zoopress_hook_interface"
"""The attribute in which a plugin says what it was made for."""

Version = tuple[int, int]

_PLAIN = "plain data: dicts with text as keys, lists, text, numbers, bools and None"
_ANSWERS: dict[str, str] = {
    "sources": "zoopress.sources:SourceFiles",
    "datasets": "zoopress.tasks:Dataset",
    "measures": _PLAIN,
    "gates": "None or True where it passes, or a sentence (str) that says what failed and what to "
    "change",
}
"""What the functions of a registry return: a class as "module:Class", or in words."""

_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "measures": lambda answer: not_plain(answer),
    "gates": lambda answer: (
        None if answer is None or answer is True or isinstance(answer, str) else shown(answer)
    ),
}
"""What is wrong with an answer, where its class does not say."""


def spelled(version: Version) -> str:
    """Return a version as people write it."""
    return f"{version[0]}.{version[1]}"


def stated_version(plugin: object) -> Version | None:
    """Return the version of the hooks that a plugin says it was made for, None if it says none.

    Raises:
        PluginError: if what it says is no version.
    """
    stated = getattr(plugin, STATEMENT, None)
    return None if stated is None else _version(stated)


def version_in_source(module: str) -> Version | None:
    """Return what a module that cannot be imported says it was made for, read from its source."""
    try:
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            return None
        with open(spec.origin, "rb") as file:
            body = ast.parse(file.read()).body
    except (ImportError, OSError, SyntaxError, ValueError):
        return None
    except Exception:  # a package is imported to find a module in it: its errors are its own
        return None
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if STATEMENT in names:
                try:
                    return _version(node.value.value)
                except PluginError:
                    return None
    return None


def _version(stated: Any) -> Version:
    match = re.fullmatch(r"(\d+)\.(\d+)", stated) if isinstance(stated, str) else None
    if match is None:
        raise PluginError(
            f"its {STATEMENT} is {shown(stated)}. Write the version of the hooks that it was made "
            f"for as text, such as {spelled(HOOK_INTERFACE)!r}, or leave it out"
        )
    return int(match[1]), int(match[2])


def misfit(stated: Version | None, distribution: str, reason: str = "") -> str | None:
    """Say why a plugin does not fit the hooks that are here, and what to update; None if it does.

    Args:
        stated: what it was made for.
        distribution: which it comes from.
        reason: what went wrong with it. A newer minor version only matters if something did.
    """
    if stated is None:
        return None
    because = f" ({reason})" if reason else ""
    made = f"it was made for hook interface {spelled(stated)}, this zoopress has "
    made += spelled(HOOK_INTERFACE)
    if stated[0] > HOOK_INTERFACE[0] or (reason and stated > HOOK_INTERFACE):
        return f"{made}{because}. Update zoopress: {update_line('zoopress')}"
    if stated[0] < HOOK_INTERFACE[0]:
        return f"{made}{because}. Update {distribution}: {update_line(distribution)}"
    return None


def unknown_hook(message: str, hooks: Iterable[str]) -> str | None:
    """Reword what pluggy says of a hook that does not exist; None if it says something else."""
    match = re.match(r"unknown hook '(\w+)'", message)
    if match is None:
        return None
    return (
        f"there is no hook {match[1]!r}.{nearest(match[1], hooks)} If it is one of a newer "
        f"zoopress, update zoopress: {update_line('zoopress')}"
    )


def unmarked_hook(plugin: object, hooks: Iterable[str], mark: str) -> str | None:
    """Say which function of a plugin is called like a hook and lacks the mark, None if none does.

    Args:
        plugin: a module, or an object in its place.
        hooks: names of all hooks.
        mark: the attribute that the decorator sets.
    """
    for name in hooks:
        found = getattr(plugin, name, None)
        if callable(found) and not hasattr(found, mark):
            return (
                f"its function {name} would never be called, since it lacks the decorator: write "
                "@hookimpl above it (from zoopress.plugins import hookimpl)"
            )
    return None


def culprit(error: BaseException, modules: Mapping[str, str]) -> str | None:
    """Return whose code an error comes from: the plugin of the innermost frame that is of one.

    Args:
        error: with a traceback.
        modules: the module of each plugin that may be meant, by its name.
    """
    tops = {module.partition(".")[0]: plugin for plugin, module in modules.items()}
    found = None
    step = error.__traceback__
    while step is not None:
        top = str(step.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        found = tops.get(top, found)
        step = step.tb_next
    return found


def expected(hook: str) -> str:
    """Return what the functions of a registry return, in words."""
    return _ANSWERS[hook].replace(":", ".", 1) if _is_class(_ANSWERS[hook]) else _ANSWERS[hook]


def wrong_answer(hook: str, answer: Any) -> str | None:
    """Describe what a registered function returned, if it is not what its hook asks for."""
    if hook in _CHECKS:
        return _CHECKS[hook](answer)
    if hook in _ANSWERS:
        module, _, name = _ANSWERS[hook].partition(":")
        if not isinstance(answer, getattr(importlib.import_module(module), name)):
            return shown(answer)
    return None


def _is_class(answer: str) -> bool:
    return re.fullmatch(r"[\w.]+:\w+", answer) is not None


def _several(answer: Any, what: str) -> list[Any]:
    """Return what a hook answers as a list."""
    if isinstance(answer, str) or not isinstance(answer, Iterable):
        raise TypeError(f"expected a list of {what}, got {shown(answer)}")
    return list(answer)


def technique_classes(answer: Any) -> list[type[Technique[Any]]]:
    """Check what a plugin answers to `zoopress_techniques`."""
    technique_type = importlib.import_module("zoopress.techniques").Technique
    classes = _several(answer, "technique classes")
    for item in classes:
        if not (isinstance(item, type) and issubclass(item, technique_type)):
            raise TypeError(f"{item!r} is not a subclass of zoopress.Technique")
        missing = [n for n in ("name", "family", "config_type") if not hasattr(item, n)]
        if missing:
            raise TypeError(f"technique {item.__qualname__} lacks {', '.join(missing)}")
    return classes


def named_references(answer: Any) -> dict[str, str]:
    """Check what a plugin answers to a hook that wants names with "module:attribute"."""
    if not isinstance(answer, Mapping):
        raise TypeError(f'expected a dict of names and "module:attribute", got {shown(answer)}')
    references = dict(answer)
    for name, reference in references.items():
        if not isinstance(name, str) or not isinstance(reference, str) or ":" not in reference:
            raise TypeError(f'expected a name and "module:attribute", got {name!r}: {reference!r}')
    return references


def existing_folders(answer: Any) -> list[Path]:
    """Check what a plugin answers to a hook that wants folders."""
    several = [answer] if isinstance(answer, (str, Path)) else _several(answer, "folders")
    for folder in several:
        if not isinstance(folder, (str, Path)):
            raise TypeError(f"expected folders as pathlib.Path, got {shown(folder)}")
    folders = [Path(folder) for folder in several]
    for folder in folders:
        if not folder.is_dir():
            raise NotADirectoryError(f"there is no folder {folder}")
    return folders


def not_plain(value: Any, at: str = "") -> str | None:
    """Name the first part of a value that JSON cannot hold, and where it is; None if all can."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return None
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                return f"the key {shown(key)}{_place(at)}"
            if found := not_plain(item, f"{at}.{key}" if at else key):
                return found
        return None
    if isinstance(value, (list, tuple)):
        found_in = (not_plain(item, f"{at}[{index}]") for index, item in enumerate(value))
        return next((found for found in found_in if found), None)
    return shown(value) + _place(at)


def _place(at: str) -> str:
    return f" at {at}" if at else ""


def shown(value: Any) -> str:
    """Return a value with its type, short enough for a message."""
    if value is None:
        return "None"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a plugin's own class may fail at this, too
        text = "…"
    kind = type(value).__name__
    return f"{kind} {text if len(text) <= 60 else text[:57] + '…'}"
