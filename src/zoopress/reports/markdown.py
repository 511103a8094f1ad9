"""Put values that others wrote into Markdown as text, so that they stay text.

Cards, configs and repositories are strangers' words. Each function here returns a piece of
Markdown that shows its value and does nothing else, also in a table's cell.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import yaml

# Entities where a backslash would not do: before Markdown is parsed, the Hub looks for HTML and
# for formulas in $$…$$ or \\(…\\), and tables look for |.
_ENTITIES = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "|": "&#124;",
    "\\": "&#92;",
    "$": "&#36;",
}
_BACKSLASHED = re.compile(r"[`*\[\]~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_AT_START = re.compile(r"^(\d{1,9}(?=[.)](?: |$)))?([-#+=.)])")
_DIRECTIONS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF])
"""Characters that show text in another order than it is in."""


def one_line(value: Any) -> str:
    """Return text in one line, without characters that cannot be written or that hide others."""
    written = str(value).encode("utf-8", "replace").decode("utf-8").translate(_DIRECTIONS)
    shown = "".join(" " if unicodedata.category(c) == "Cc" else c for c in written)
    return " ".join(shown.split())


def text(value: Any) -> str:
    """Return a value as plain text, wherever in a line, cell or heading it stands."""
    shown = "".join(_ENTITIES.get(c, c) for c in one_line(value))
    return _AT_START.sub(r"\1\\\2", _BACKSLASHED.sub(r"\\\g<0>", shown))


def code(value: Any) -> str:
    """Return a value as code in a line or cell."""
    shown = one_line(value)
    if not shown or set(shown) & set("`|\\$"):
        return f"<code>{text(shown)}</code>"
    return f"`{shown}`"


def fence(content: str, language: str) -> str:
    """Return a block of code that nothing inside can end."""
    runs = re.findall(r"`+", content)
    ticks = "`" * max(3, 1 + max(map(len, runs), default=0))
    return f"{ticks}{language}\n{content.rstrip()}\n{ticks}"


def web_address(value: Any) -> str | None:
    """Return an address of the web without a password, fit for Markdown; None for all else."""
    shown = one_line(value)
    try:
        parts = urlsplit(shown)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host or not re.fullmatch(r"[\w.-]+", host):
        return None
    place = parts._replace(netloc=host if port is None else f"{host}:{port}").geturl()
    return quote(place, safe=":/?#&=+,;@%!'~").replace("&", "&amp;")


def link(label: Any, address: Any) -> str:
    """Return a link, or the label alone if the address is not one of the web."""
    target = web_address(address)
    return text(label) if target is None else f"[{text(label)}]({target})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; numbers to the right.

    Args:
        header: Markdown.
        rows: Markdown, as many cells each.
    """
    body = [list(row) for row in rows]
    columns = range(len(header))
    rules = [
        "---:" if body and all(re.match(r"[-\d.]|$", row[i]) for row in body) else "---"
        for i in columns
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(header), rules, *body])


class _Dumper(yaml.SafeDumper):
    """Lists of plain values in one line, as people write them; no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_sequence(
        self, tag: str, sequence: Iterable[Any], flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        items = list(sequence)
        plain = not any(isinstance(item, (dict, list, tuple)) for item in items)
        return super().represent_sequence(tag, items, flow_style=plain)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # Rare ends of lines come back as spaces unless they are escaped.
    style = '"' if set(value) & set("\x85\u2028\u2029\r") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent_text)


def yaml_text(data: Any) -> str:
    """Return plain data as YAML, as people write it."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def yaml_block(data: Any) -> str:
    """Return plain data as a block of YAML."""
    return fence(yaml_text(data), "yaml")
