"""The command line. Heavy libraries are imported by the commands that need them."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoopress.commands import (
    coding,
    export,
    gates,
    hub,
    init,
    nightly,
    plan,
    reports,
    rollback,
    schema,
    techniques,
    zoo_run,
)
from zoopress.commands.arguments import (
    CardArgument,
    EngineOption,
    JsonOption,
    QuietOption,
    RevisionOption,
    StoreOption,
    completion,
    flow_module,
    loaded_plugins,
    note,
    print_json,
    results_apart,
    use_prefect,
)
from zoopress.commands.flows import flows_app
from zoopress.commands.plugin import plugin_app
from zoopress.commands.store import store_app
from zoopress.commands.verbs import Verbs, reserve
from zoopress.commands.zoo import zoo_app
from zoopress.errors import ZoopressError
from zoopress.progress.plain_text import write_any_text

if TYPE_CHECKING:
    from zoopress.pipeline.compress import Result

_JSON = {"--json", "schema"}
"""What makes a command print JSON."""

app = typer.Typer(
    name="zoopress",
    cls=Verbs,
    help="Compress a model zoo: chains of techniques, each link proven.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)
app.add_typer(plugin_app, name="plugin")
app.add_typer(zoo_app, name="zoo")
app.add_typer(flows_app, name="flows")
app.add_typer(store_app, name="store")
zoo_app.command()(zoo_run.run)


RecipeArgument = Annotated[
    str,
    typer.Argument(
        help="A recipe's name or file, or a section of a file as params.yaml#recipes.hybrid.",
        autocompletion=completion("recipes"),
    ),
]


@app.command()
def run(
    card: CardArgument,
    recipe: RecipeArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the result: out/CARD/RECIPE.")
    ] = None,
    store: StoreOption = None,
    engine: EngineOption = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory that may be used, as 4GB; a model too large for it stays on disk. By "
            "default what this process is limited to."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the metrics as JSON.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Compress a model and prove the result.

    Examples:

        zoopress run minilm hybrid

        zoopress run cards/my-model.yaml my-recipe.yaml --out build/my-model

        zoopress run minilm params.yaml#recipes.hybrid --engine prefect
    """
    from zoopress.cards import load_card
    from zoopress.cells.plan import plan_early
    from zoopress.pipeline.compress import compress
    from zoopress.progress import terminal
    from zoopress.recipes import load_recipe
    from zoopress.store import Store
    from zoopress.units import parse_bytes

    plugins = loaded_plugins()
    the_card, the_recipe = load_card(card, plugins), load_recipe(recipe, plugins)
    plan_early(the_card, the_recipe, plugins)
    folder = out or Path("out") / the_card.name / the_recipe.name
    silent = quiet or as_json
    try:
        if use_prefect(engine):
            run_in_flow = flow_module("compress").run_in_flow
            result: Result = run_in_flow(
                card, recipe, str(folder), store, silent, chosen=engine is not None
            )
        else:
            result = compress(
                *(the_card, the_recipe, folder, Store(store), plugins, terminal(quiet=silent)),
                memory_bytes=None if memory is None else parse_bytes(memory),
            )
    except KeyboardInterrupt:
        note("Interrupted. Finished stages are in the store; the same command goes on from there.")
        raise typer.Exit(130) from None
    if as_json:
        print_json(result.report.metrics())
    elif not quiet:
        _print_result(result)


app.command()(plan.plan)
app.command()(init.init)
app.command()(hub.push)
app.command()(hub.pull)
app.command()(rollback.rollback)
app.command()(hub.lineage)
app.command()(coding.encode)
app.command()(coding.decode)
app.command()(export.export)
app.command()(nightly.nightly)
app.command()(reports.evaluate)
app.command()(reports.compare)
app.command()(reports.report)


@app.command()
def inspect(
    artifact: Annotated[
        str,
        typer.Argument(
            help="Folder with a zoopress.json, a repository on the Hub: org/name, or a .zpz file.",
            autocompletion=coding.complete_file(".zpz"),
        ),
    ],
    revision: RevisionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify an artifact's files and show where it comes from and how it was made.

    Of a .zpz file, on disk or at a URL, show its tensors, their encodings and bits.

    Examples:

        zoopress inspect out/minilm/hybrid/artifact

        zoopress inspect my-org/minilm-small --revision v1

        zoopress inspect out/minilm/hybrid/artifact/model.zpz
    """
    if artifact.endswith(".zpz"):
        coding.show_tensors(artifact, as_json)
        return
    from rich.console import Console
    from rich.table import Table

    from zoopress.artifacts.artifact import tensor_count
    from zoopress.artifacts.manifest import read_manifest, size_bytes
    from zoopress.hub.artifacts import find_artifact
    from zoopress.publishing.lineage import stage_config

    folder = find_artifact(artifact, revision)
    manifest = read_manifest(folder)
    console = Console()
    base = manifest.base
    size = size_bytes(folder, manifest)
    if as_json:
        shown = {"base": base.model_dump(mode="json"), "bytes": size, "lineage": manifest.lineage}
        print_json(shown)
        return
    console.print(f"{base.name} from {base.source} at {base.revision}, task {base.task}")
    console.print(
        f"{base.size_bytes:,} → {size:,} bytes ({base.size_bytes / size:.2f}×), "
        f"{tensor_count(folder, manifest)} tensors in {', '.join(manifest.weights)}; "
        "all checksums match"
    )
    table = Table("", "technique", "from", "config")
    for i, stage in enumerate(manifest.lineage, start=1):
        spelled = stage_config(stage, loaded_plugins())
        config = ", ".join(f"{k}: {v}" for k, v in spelled.items())
        origin = f"{stage.get('distribution')} {stage.get('version')}"
        table.add_row(str(i), str(stage.get("technique")), origin, config)
    console.print(table)


app.command()(techniques.techniques)
app.command()(techniques.technique)
app.command()(schema.schema)
app.command()(gates.gates)


@app.command()
def recipes() -> None:
    """List the recipes that can be given by name."""
    _print_described(loaded_plugins().recipes)


def _print_described(files: dict[str, Path]) -> None:
    from zoopress.errors import InputError
    from zoopress.yaml_source import read_yaml

    for name, path in sorted(files.items()):
        data = read_yaml(path, InputError).data
        print(f"{name:<20} {data.get('description', '')}")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"zoopress {version('zoopress')}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


reserve(
    command.name or getattr(command.callback, "__name__", None)
    for command in app.registered_commands
)
reserve(group.name for group in app.registered_groups)


def _print_result(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table

    from zoopress.reports.report import comparison_rows

    report = result.report
    table = Table(title=report.name, title_justify="left")
    for header in ("", "original", "compressed", ""):
        table.add_column(header, justify="left" if not header else "right")
    for row in comparison_rows(report):
        table.add_row(*row)
    console = Console()
    console.print(table)
    for kernel, count in sorted(report.kernels.items()):
        console.print(f"{count} packed weights: {kernel}", highlight=False)
    console.print(f"artifact  {result.artifact}", highlight=False, soft_wrap=True)
    console.print(f"report    {result.folder / 'report.md'}", highlight=False, soft_wrap=True)


def main() -> None:
    """Run the command line; errors that a user can act on come without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        write_any_text(stream)
    try:
        with results_apart() if _JSON.intersection(sys.argv) else nullcontext():
            app()
    except ZoopressError as error:
        note(f"error: {error}")
        raise SystemExit(1) from None
    except Exception as error:
        from zoopress.plugins import load_plugins

        sys.excepthook(type(error), error, error.__traceback__)
        if whose := load_plugins().crash(error):
            note(f"error: {whose}")
        raise SystemExit(1) from None
