"""Write docs/cli.md from the commands themselves: `python docs/generate_cli.py`.

It reads the declarations that `zoopress --help` is made from, since the layout of the help changes
with versions of typer and the width of the terminal.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from zoopress.commands.cli import app

INTRODUCTION = """\
# The command line

<!-- Written by docs/generate_cli.py; tests/test_docs.py checks that it is up to date. -->

Every command answers `--help`. A mistake of the user ends with status 1 (a wrong option with 2) and
a message without a traceback; an interrupted run with 130. Results and tables go to standard
output, progress and errors to standard error.

`zoopress --install-completion` installs completion of commands, cards, recipes and techniques for
the current shell; `zoopress --show-completion` prints the script instead.

| variable | meaning |
| --- | --- |
| `ZOOPRESS_STORE` | folder or URL of the [store](store.md), not the user's cache folder |
| `ZOOPRESS_STORE_CACHE` | folder for what this machine has of stores below URLs |
| `ZOOPRESS_CACHE` | folder of what [runtimes](outlets.md) make, not the user's cache folder |
| `ZOOPRESS_BLOCK_PLUGINS` | names of plugins to leave out, separated by commas |
| `ZOOPRESS_PROGRESS` | [progress](leaderboard.md#progress) that is `plain`, `json` or `quiet` |
| `ZOOPRESS_RUNNER` | what carries the jobs of a [zoo run](zoo-runs.md): `threads`, `dask`, `ray` |
| `PREFECT_API_URL` | where it is set, `zoopress run` runs its stages as a Prefect flow |
"""


def page() -> str:
    """Return the whole of docs/cli.md."""
    return "\n".join([INTRODUCTION, *(_section(path, run) for path, run in commands(app))])


def commands(group: typer.Typer, path: str = "zoopress") -> list[tuple[str, Callable[..., None]]]:
    """Return every command of a group, and of the groups in it, with the words that call it."""
    found = []
    for command in group.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        found.append((f"{path} {name}", command.callback))
    for child in group.registered_groups:
        assert child.typer_instance is not None
        found += commands(child.typer_instance, f"{path} {child.name}")
    return found


def _section(path: str, run: Callable[..., None]) -> str:
    usage, rows = [path], []
    for name, hint in get_type_hints(run, include_extras=True).items():
        if name == "return":
            continue
        kind, *about = get_args(hint)
        info: ArgumentInfo | OptionInfo = about[0]
        if isinstance(info, ArgumentInfo):
            usage.append(name.upper())
            names = name.upper()
        else:
            # typer keeps the first name of an annotated option in the place of its default.
            given = [info.default, *(info.param_decls or ())]
            flags = [text for text in given if isinstance(text, str) and text.startswith("-")]
            names = ", ".join(flags or [f"--{name.replace('_', '-')}"])
        meaning = info.help or "–"
        if info.envvar:
            meaning += f" Default: `{info.envvar}`, if it is set."
        rows.append(f"| `{names}` | {_kind(kind)} | {meaning} |")
    if any(row.startswith("| `-") for row in rows):
        usage.append("[OPTIONS]")
    head = [f"## {path}", "", f"```text\n{' '.join(usage)}\n```", "", _prose(run.__doc__), ""]
    table = ["| argument | type | meaning |", "| --- | --- | --- |", *rows, ""] if rows else []
    return "\n".join([*head, *table])


def _prose(text: str | None) -> str:
    """Return help with its examples, which are indented, as code."""
    lines = []
    for line in inspect.cleandoc(text or "").splitlines():
        lines.append(f"`{line.strip()}`" if line.startswith(" ") else line)
    return "\n".join(lines).strip()


def _kind(annotation: Any) -> str:
    kinds = [kind for kind in (get_args(annotation) or [annotation]) if kind is not type(None)]
    kind = kinds[0]
    if issubclass(kind, Enum):
        return " or ".join(f"`{choice.value}`" for choice in kind)
    return {str: "text", Path: "path", bool: "flag"}.get(kind, kind.__name__)


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(page(), encoding="utf-8")
