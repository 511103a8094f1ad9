"""What several commands share: arguments, their completion, plugins with warnings, notes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from zoopress.commands.verbs import plugin_verbs
from zoopress.errors import InputError, ZoopressError
from zoopress.optional import import_optional

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.table import Table

    from zoopress.plugins import Plugins, Registry


def note(text: str) -> None:
    """Print to standard error, so that results can be piped."""
    print(text, file=sys.stderr)


_results: TextIO | None = None


@contextmanager
def results_apart() -> Iterator[None]:
    """Send what anything prints to standard error; `print_json` alone reaches standard output.

    Techniques and the libraries that they call print what they like, and would spoil JSON by it.
    """
    global _results
    printed = sys.stdout
    printed.flush()
    with ExitStack() as restored:
        restored.callback(setattr, sys, "stdout", printed)
        restored.callback(globals().update, _results=None)
        try:
            output = printed.fileno()
        except OSError:  # captured, by a notebook say
            _results = printed
        else:
            _results = restored.enter_context(os.fdopen(os.dup(output), "w", encoding="utf-8"))
            restored.callback(os.dup2, _results.fileno(), output)
            restored.callback(_results.flush)
            os.dup2(sys.stderr.fileno(), output)  # also what is not Python, and child processes
        sys.stdout = sys.stderr
        yield


def print_json(value: Any, **options: Any) -> None:
    """Print JSON to standard output."""
    print(json.dumps(value, **options), file=_results or sys.stdout)


def loaded_plugins() -> Plugins:
    """Load and merge plugins; what is broken or clashes is told and left out."""
    from zoopress.plugins import load_plugins

    plugins = load_plugins()
    plugins.check()
    plugin_verbs(plugins)
    for problem in (*plugins.broken, *plugins.clashes):
        note(f"warning: {problem}")
    return plugins


def completion(kind: str) -> Any:
    """Return what completes names of "cards", "recipes" or "techniques", and YAML files."""

    def complete(incomplete: str) -> list[str]:
        from zoopress.cards import local_cards
        from zoopress.plugins import load_plugins

        names = {*getattr(load_plugins(), kind), *(local_cards() if kind == "cards" else ())}
        names |= {str(path) for path in Path().glob(f"{incomplete}*.yaml")}
        return sorted(name for name in names if name.startswith(incomplete))

    return complete


def completion_of_measures(incomplete: str) -> list[str]:
    """Complete the name of a measure."""
    from zoopress.plugins import load_plugins

    names = load_plugins().references["measures"]
    return sorted(name for name in names if name.startswith(incomplete))


def completion_of(hook: Registry) -> Callable[[str], list[str]]:
    """Return what completes names of a registry, such as "runtimes"."""

    def complete(incomplete: str) -> list[str]:
        from zoopress.plugins import load_plugins

        return sorted(n for n in load_plugins().references[hook] if n.startswith(incomplete))

    return complete


def options_table(config: type[BaseModel]) -> Table:
    """Return a table of what a config's keys mean."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("key", "type", "default", "meaning")
    for key, info in config.model_fields.items():
        default = "(required)" if info.is_required() else repr(info.default)
        kind = str(info.annotation).replace("typing.", "")
        if isinstance(info.annotation, type):
            kind = info.annotation.__name__
        table.add_row(key, escape(kind), escape(default), escape(info.description or ""))
    return table


CardArgument = Annotated[
    str, typer.Argument(help="A card's name or file.", autocompletion=completion("cards"))
]
ArtifactArgument = Annotated[
    str, typer.Argument(help="Folder with a zoopress.json, or a repository on the Hub: org/name.")
]
RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit on the Hub.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CardsOption = Annotated[
    list[str],
    typer.Option(
        "--cards",
        help="Cards: a name, a file, a pattern, or a folder of them. Repeat for more.",
        autocompletion=completion("cards"),
        default_factory=list,
        show_default=False,
    ),
]
RecipesOption = Annotated[
    list[str],
    typer.Option(
        "--recipes",
        help="Recipes: a name, a file, a pattern, or all of a section as params.yaml#recipes. "
        "Repeat for more.",
        autocompletion=completion("recipes"),
        default_factory=list,
        show_default=False,
    ),
]
MatrixOption = Annotated[
    str | None,
    typer.Option(
        "--matrix",
        help="A file such as params.yaml; its 'matrix' names the cards and recipes that are not "
        "given.",
        show_default=False,
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="ZOOPRESS_STORE",
        help="Where results are kept: a folder, or a URL such as s3://bucket/zoo.",
        show_default=False,
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", "-j", help="Jobs at once; by default one a core, 8 at most."),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(help="Memory that jobs share, as 24GB; by default 80 % of the machine's."),
]
CellTimeoutOption = Annotated[
    str | None,
    typer.Option(
        "--cell-timeout",
        help="How long a cell may compute, as 45m or 2h; by default what 'limits' of the matrix' "
        "file says, else no limit.",
        show_default=False,
    ),
]
RetriesOption = Annotated[
    int | None,
    typer.Option(
        "--retries",
        min=0,
        help="How often is tried again what may pass: a worker that died or took too long, a "
        "network or a disk that failed. By default once, if a worker died.",
        show_default=False,
    ),
]
OnFailureOption = Annotated[
    str | None,
    typer.Option(
        "--on-failure",
        help="Command that is run if not all is done; it gets the JSON on standard input. By "
        "default what 'notify' of the matrix' file says.",
        show_default=False,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


class Engine(str, Enum):
    """What runs the stages."""

    inline = "inline"
    prefect = "prefect"


EngineOption = Annotated[
    Engine | None,
    typer.Option(help="What runs the stages; prefect where PREFECT_API_URL is set."),
]


def use_prefect(engine: Engine | None, runner: str | None = None) -> bool:
    """Tell whether Prefect is to run it."""
    if engine is Engine.inline and runner is not None:
        raise InputError(f"--runner {runner} is for Prefect; leave --engine inline out.")
    return engine is Engine.prefect or bool(
        engine is None and (runner is not None or "PREFECT_API_URL" in os.environ)
    )


def flow_module(name: str) -> Any:
    """Import a module of flows.

    Raises:
        ZoopressError: if Prefect is not installed, or broken.
    """
    from importlib import import_module

    install = "pip install 'zoopress[flows]', or leave --engine out"
    import_optional("prefect", "The engine 'prefect' needs Prefect", install, ZoopressError)
    return import_module(f"zoopress_flows.{name}")  # by name: the core imports no flow
