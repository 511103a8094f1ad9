"""What must be installed, in words."""

from __future__ import annotations

from zoopress.errors import DeploymentError
from zoopress.optional import import_optional


def missing(*libraries: str, extra: str) -> str | None:
    """Say which library is not installed or broken, and how to install it; None if all are there.

    Args:
        libraries: by the names that are imported.
        extra: what brings them.
    """
    for library in libraries:
        try:
            import_optional(
                library,
                f"it needs {library}",
                f"pip install 'zoopress[{extra}]'",
                DeploymentError,
            )
        except DeploymentError as error:
            return str(error)
    return None
