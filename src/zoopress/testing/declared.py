"""What holds of anything that a config chooses by name: criteria, losses, blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zoopress.errors import PluginError
from zoopress.plugins import Plugins, Registry
from zoopress.testing.conformance import (
    SNAKE_CASE,
    ConformanceError,
    check_config,
    check_imports_lightly,
    require,
)


def check_declared(thing: Any, hook: Registry, base: type, plugins: Plugins) -> None:
    """Check name, registration, documentation and options of what a config chooses by name.

    Raises:
        ConformanceError: naming the first rule that is broken.
    """
    kind, key = type(thing), f"zoopress_{hook}"
    name = getattr(kind, "name", None)
    require(isinstance(thing, base), f"it is not below {base.__module__}.{base.__qualname__}")
    require(
        isinstance(name, str) and SNAKE_CASE.fullmatch(name) is not None,
        f"the name {name!r} is not in snake_case, such as 'input_norms'",
    )
    try:
        registered = plugins.resolve(hook, str(name))
    except PluginError as error:
        raise ConformanceError(
            f'{error} Return {{"{name}": "{kind.__module__}:{kind.__qualname__}"}} from a hook '
            f"{key}, name its module in the entry-point group 'zoopress', and install the package."
        ) from error
    require(registered is kind, f"{name!r} is registered as {registered!r}, which is another class")
    require(bool((vars(kind).get("__doc__") or "").strip()), "the class has no docstring")
    check_config(kind.config_type, thing.config)
    for taken in ("name", "loss", "weight", "teacher"):
        require(
            taken not in kind.config_type.model_fields,
            f"the option {taken!r} cannot be told from the recipe's own key; rename it",
        )
    check_imports_lightly(kind)


@contextmanager
def named(thing: object) -> Iterator[None]:
    """Put the class before the rule that it breaks."""
    try:
        yield
    except ConformanceError as error:
        raise ConformanceError(f"{type(thing).__name__}: {error}") from error
