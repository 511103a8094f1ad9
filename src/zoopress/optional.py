"""Libraries that not every installation has: import one, or say whether it is missing or broken."""

from __future__ import annotations

import importlib
from typing import Any


def import_optional(
    name: str, purpose: str, install: str, error: type[Exception], remedy: str = ""
) -> Any:
    """Import a library that an extra brings.

    Args:
        name: of the module, such as "timm" or "PIL.Image".
        purpose: what needs it, as the beginning of a sentence: "This model needs timm".
        install: the line that installs it.
        error: what to raise.
        remedy: what else helps where it is broken, as a sentence.

    Raises:
        error: saying that it is not installed, or that it is and why it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    # Whatever a broken library raises: torchvision of another release than torch a RuntimeError.
    except Exception as reason:
        raise error(import_failure(reason, name, purpose, install, remedy)) from reason


def import_failure(
    reason: BaseException, name: str, purpose: str, install: str, remedy: str = ""
) -> str:
    """Say why a library could not be imported, and what to do about it."""
    package = name.partition(".")[0]
    if is_missing(reason, package):
        return f"{purpose}, which is not installed: {install}."
    needs = reason.name if isinstance(reason, ModuleNotFoundError) else None
    if needs and needs.partition(".")[0] != package:
        return (
            f"{purpose}, which is installed, but needs {needs!r}, which is not: {install}."
            f"{' ' * bool(remedy)}{remedy}"
        )
    words = " ".join(str(reason).split())[:300].rstrip(".")
    return (
        f"{purpose}, which is installed, but cannot be imported: {type(reason).__name__}: {words}. "
        f"{remedy or f'Reinstall it, in a version that goes with the others: {install}.'}"
    )


def is_missing(reason: BaseException, package: str) -> bool:
    """Tell whether an import failed since a package is not installed, not since it is broken."""
    if not isinstance(reason, ModuleNotFoundError):
        return False
    return reason.name is None or reason.name == package
