"""Render a Jinja2 template, the default or a user's own, in a sandbox."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.errors import InputError, nearest
from zoopress.reports.markdown import code, text

if TYPE_CHECKING:
    from jinja2 import Environment

DEFAULT_TEMPLATE = "model_card.md.j2"

_OWN = "the user's template"
_REMEDY = "docs/model-card.md lists the variables and blocks that there are."
_MAX_BYTES = 1 << 20


def render(context: Mapping[str, Any], path: Path | None) -> str:
    """Return the page that a template makes.

    Args:
        context: its variables; all text in them is safe Markdown.
        path: the user's template, None for the default.

    Raises:
        InputError: naming file, line and remedy.
    """
    from jinja2 import TemplateNotFound, TemplateSyntaxError, UndefinedError

    own = None if path is None else _read(path)
    environment = environment_for(own, path)
    if path is None:
        return environment.get_template(DEFAULT_TEMPLATE).render(context)
    try:
        _check_blocks(environment, own or "", path)
        page = environment.get_template(_OWN).render(context)
    except InputError:
        raise
    except TemplateSyntaxError as error:
        raise InputError(
            f"{path}:{error.lineno}: {error.message or 'is no Jinja2 template'}. {_REMEDY}"
        ) from error
    except TemplateNotFound as error:
        raise InputError(
            f"{path}:{_line(error, path)}: there is no template {error.name!r}; the only one that "
            f"can be extended or included is {DEFAULT_TEMPLATE!r}."
        ) from error
    except UndefinedError as error:
        name = re.match(r"'([^']+)' is undefined", str(error.message))
        hint = nearest(name[1], context) if name else ""
        raise InputError(
            f"{path}:{_line(error, path)}: {error.message}.{hint} {_REMEDY}"
        ) from error
    except Exception as error:  # whatever a user's template does; the sandbox's refusals, too
        raise InputError(
            f"{path}:{_line(error, path)}: {type(error).__name__}: {error}. {_REMEDY}"
        ) from error
    _check_page(page, path)
    return page


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: larger than {_MAX_BYTES} bytes, which no page is.")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text. Save it as UTF-8.") from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read: {error.strerror or error}. Name a Jinja2 file, or leave the "
            "template out to get the default page."
        ) from error


@lru_cache(maxsize=2)
def environment_for(own: str | None = None, path: Path | None = None) -> Environment:
    """Return a sandbox that knows the default template, and the user's if there is one."""
    from jinja2 import FunctionLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def load(name: str) -> tuple[str, str | None, None] | None:
        if name == DEFAULT_TEMPLATE:
            default = Path(__file__).with_name(DEFAULT_TEMPLATE)
            return default.read_text(encoding="utf-8"), str(default), None
        if name == _OWN and own is not None:
            return own, str(path), None
        return None

    environment = ImmutableSandboxedEnvironment(
        loader=FunctionLoader(load),
        undefined=StrictUndefined,
        autoescape=False,  # it is no HTML; the variables are safe already
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({"text": text, "code": code})
    return environment


def _check_blocks(environment: Environment, own: str, path: Path) -> None:
    """Refuse blocks that the default does not have: Jinja2 would leave them out in silence."""
    from jinja2 import meta, nodes

    tree = environment.parse(own, _OWN, str(path))
    if DEFAULT_TEMPLATE not in meta.find_referenced_templates(tree):
        return
    known = environment.get_template(DEFAULT_TEMPLATE).blocks
    for block in tree.find_all(nodes.Block):
        if block.name not in known:
            raise InputError(
                f"{path}:{block.lineno}: the page has no block {block.name!r}."
                f"{nearest(block.name, known)} {_REMEDY}"
            )


def _line(error: BaseException, path: Path) -> int:
    """Return the line of the user's template at which an error happened."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno or 1 for f in reversed(frames) if f.filename == str(path)), 1)


def _check_page(page: str, path: Path) -> None:
    """Refuse a page that the Hub could not read, or that says nothing to it."""
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import REGEX_YAML_BLOCK
    from yaml import YAMLError

    remedy = "Keep the block 'metadata', or start with '---', {{ metadata }} and '---'."
    if not REGEX_YAML_BLOCK.search(page):
        raise InputError(f"{path}: the page has no metadata at its top. {remedy}")
    try:
        ModelCard(page)
    except (ValueError, TypeError, YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: the page's metadata cannot be read: {reason}. {remedy}") from (
            error
        )
