"""What the HTML pages share: one file each, no network, no script but their own."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

SHARED = Path(__file__).parent
"""Holds page.css, tips.js and the templates of reports."""


def render(template: Path, **values: Any) -> str:
    """Return a page from a Jinja2 template; every value is escaped but `markupsafe.Markup`.

    A template may include the shared files by name, and gives its script the filter `csp_hash`.
    """
    return _environment(template.parent).get_template(template.name).render(**values)


def csp_hash(content: str) -> str:
    """Return what allows an inline script, and only that one, in a content security policy."""
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


def _environment(folder: Path) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = csp_hash
    return environment
