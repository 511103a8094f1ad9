"""From the name that a recipe or a user gives to what codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from zoopress.coding.built_in import BUILT_IN
from zoopress.coding.coder import Coder
from zoopress.coding.entropy_coder import finder

if TYPE_CHECKING:
    from zoopress.plugins import Plugins

AUTO = "auto"
"""Of the format's own coders, for each chunk the one that suits it."""


def choose_coder(name: str, plugins: Plugins | None = None) -> Coder:
    """Return the coder of a name: one of the format's own, or one that a plugin registers.

    Args:
        name: "auto", or a registered name.
        plugins: what is registered; everything installed by default.

    Raises:
        PluginError: if nothing of the name is registered.
    """
    if name == AUTO or name in BUILT_IN:
        return cast(Coder, name)
    return finder(plugins)(name)
