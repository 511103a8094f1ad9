"""The commands that measure and show: evaluate, compare, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoopress.commands.arguments import (
    ArtifactArgument,
    CardArgument,
    JsonOption,
    QuietOption,
    RevisionOption,
    completion_of,
    completion_of_measures,
    loaded_plugins,
    print_json,
)
from zoopress.errors import InputError, StoreError, os_words

if TYPE_CHECKING:
    from zoopress.cards import Card
    from zoopress.plugins import Plugins
    from zoopress.reports.facts import Facts

PlacesArgument = Annotated[
    list[str],
    typer.Argument(
        help="Folders that `zoopress run` or `zoopress zoo run` wrote, artifacts, or repositories "
        "on the Hub: org/name.",
    ),
]
MeasuresOption = Annotated[
    list[str],
    typer.Option(
        "--measure",
        "-m",
        help="What to measure besides what the card names, such as computation; repeat for more.",
        autocompletion=completion_of_measures,
        default_factory=list,
        show_default=False,
    ),
]


def evaluate(
    artifact: ArtifactArgument,
    card: CardArgument,
    measures: MeasuresOption,
    revision: RevisionOption = None,
    runtime: Annotated[
        str,
        typer.Option(
            "--runtime",
            help="What runs the compressed model: eager, compile, onnxruntime, openvino, auto, or "
            "one that a plugin brings.",
            autocompletion=completion_of("runtimes"),
        ),
    ] = "eager",
    everything: Annotated[bool, typer.Option("--all", help="Measure all there is.")] = False,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Also write the figures to this JSON file."),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Compare an artifact with its original on a card's data: size, fidelity, latency, metrics.

    The card may name other data than the model was made with. Task metrics come with 95 %
    confidence intervals.

    Examples:

        zoopress evaluate out/minilm/hybrid/artifact minilm

        zoopress evaluate out/minilm/hybrid/artifact minilm --measure computation --measure memory

        zoopress evaluate my-org/minilm-small minilm --revision v1 --all --out figures.json

        zoopress evaluate out/minilm/hybrid/artifact minilm --runtime compile
    """
    from zoopress.cards import load_card
    from zoopress.hub.artifacts import find_artifact
    from zoopress.progress import terminal

    plugins = loaded_plugins()
    loaded = load_card(card, plugins)
    wanted = _wanted(measures, everything, loaded, plugins)
    folder = find_artifact(artifact, revision)
    from zoopress.pipeline.artifact_evaluation import evaluate_artifact  # imports torch

    reporter = terminal(quiet=quiet or as_json)
    figures = evaluate_artifact(folder, loaded, plugins, wanted, reporter, runtime)
    if out is not None:
        _write(out, json.dumps(figures, indent=2, allow_nan=False) + "\n")
    if as_json:
        print_json(figures)
    elif not quiet:
        _print_figures(figures)


def _wanted(given: Sequence[str], everything: bool, card: Card, plugins: Plugins) -> list[str]:
    """Return what to measure; all there is means what the card has data for.

    Raises:
        PluginError: if there is no measure of a name.
        CardError: if the card has no subgroups to compare.
    """
    from zoopress.errors import CardError, PluginError, nearest

    known = list(plugins.references["measures"])
    for name in given:
        if name not in known:
            raise PluginError(f"There is no measure {name!r}.{nearest(name, known)}")
    if not (card.data and card.data.groups):
        if "fairness" in given:
            raise CardError(
                f"Card {card.name!r}: fairness compares subgroups, and the card names none. Name "
                "the dataset's columns that tell them, such as 'data: {groups: [language]}'."
            )
        known = [name for name in known if name != "fairness"]
    return list(dict.fromkeys([*card.measures, *given, *(known if everything else ())]))


def compare(
    places: PlacesArgument,
    as_json: JsonOption = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Also write a page with charts: compare.html."),
    ] = None,
) -> None:
    """Put compressed models side by side: the best of each row marked, and the Pareto front.

    Says where figures cannot be compared: other originals, other data, other machines.

    Examples:

        zoopress compare out/minilm/hybrid out/minilm/small

        zoopress compare out --out compare.html

        zoopress compare out/minilm/hybrid my-org/minilm-small@v1 --markdown
    """
    from zoopress.publishing.reading import find_reports
    from zoopress.reports.comparison import compare as put_side_by_side

    found = find_reports(places)
    if len(found) < 2:
        raise InputError(
            f"There is one model in {places[0]!r}, and nothing to compare it with. Name another, "
            "or show this one with `zoopress report`."
        )
    comparison = put_side_by_side(found)
    if out is not None:
        from zoopress.reports.page import report_page

        _write(out, report_page([], comparison))
    if as_json:
        print_json(comparison.as_dict(), allow_nan=False)
    elif as_markdown:
        print(comparison.markdown(), end="")
    else:
        from rich.console import Console

        console = Console()
        for table in comparison.tables(console.width):
            console.print(table)
        console.print("* the best of its row; ★ on the Pareto front", style="dim")
        for line in comparison.notes:
            console.print(line, style="yellow", markup=False, highlight=False)
        if out is not None:
            console.print(f"page  {out}", highlight=False, soft_wrap=True, markup=False)


class Form(str, Enum):
    """How a report is written."""

    html = "html"
    md = "md"
    json = "json"


def report(
    places: PlacesArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Where to write, - to print; by default report.html beside report.json (for "
            "several here), and Markdown and JSON are printed.",
            show_default=False,
        ),
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option("--format", help="By default what --out ends with, else html."),
    ] = None,
) -> None:
    """Write what came out of a run as one page: where bytes went, what each stage gained and cost.

    The page needs no network and no other file. With several places it also puts them side by
    side. Charts need the extra 'reports'; without it the page says so.

    Examples:

        zoopress report out/minilm/hybrid

        zoopress report out/minilm/hybrid out/minilm/small --out both.html

        zoopress report out/minilm/hybrid --format md
    """
    from zoopress.publishing.reading import find_reports

    found = find_reports(places)
    without = [item.place for item in found if item.report is None]
    if without:
        raise InputError(
            f"{without[0]} has no report.json beside it, so only its makers know what was "
            "measured. `zoopress evaluate` measures it again; `zoopress compare` shows what it "
            "says of itself."
        )
    chosen = _form(form, out)
    reports = [item.report for item in found if item.report is not None]
    if chosen is Form.json:
        data: Any = [each.as_dict() for each in reports]
        content = json.dumps(data if len(data) > 1 else data[0], indent=2, allow_nan=False) + "\n"
    elif chosen is Form.md:
        from zoopress.reports.report import markdown

        content = "\n".join(markdown(each) for each in reports)
    else:
        from zoopress.reports.comparison import compare as put_side_by_side
        from zoopress.reports.page import report_page

        content = report_page(reports, put_side_by_side(found) if len(found) > 1 else None)
    if str(out) == "-" or (out is None and chosen is not Form.html):
        print(content, end="")
        return
    folder = found[0].folder if len(found) == 1 else None
    target = out or (folder or Path()) / "report.html"
    _write(target, content)
    print(f"report  {target}")


def _form(form: Form | None, out: Path | None) -> Form:
    if form is not None or out is None or str(out) == "-":
        return form or Form.html
    endings = {".html": Form.html, ".htm": Form.html, ".md": Form.md, ".json": Form.json}
    if out.suffix.lower() not in endings:
        raise InputError(
            f"--out {out} does not tell the format: end it with .html, .md or .json, or give "
            "--format."
        )
    return endings[out.suffix.lower()]


def _write(path: Path, content: str) -> None:
    from zoopress.store import write_atomic

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
    except OSError as error:
        raise StoreError(
            f"Cannot write {path}: {os_words(error)}. Choose another --out."
        ) from error


def _print_figures(figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from zoopress.reports.facts import facts, show
    from zoopress.results.figures import flips, task_metrics

    console = Console()
    evaluation = figures["evaluation"]
    metrics = task_metrics(evaluation)
    if metrics:
        shown = Table("", "original", "compressed", "difference")
        for metric in metrics:
            texts = (metric.original_text, metric.compressed_text, metric.difference_text)
            shown.add_row(metric.title, *texts)
        console.print(shown)
    plain = Table("", "", show_header=False)
    for name, value in figures.items():
        if name != "evaluation":
            plain.add_row(name.replace("_", " "), show(value, name))
    if changed := flips(evaluation):
        plain.add_row("flipped", f"{changed[0]:,} of {changed[1]:,} labels")
    console.print(plain)
    for name, data in evaluation.items():
        if name != "task":
            _print_facts(console, facts(name, data))


def _print_facts(console: Any, found: Facts) -> None:
    from rich.table import Table
    from rich.text import Text

    if found.skipped:
        console.print(f"{found.title}: not measured: {found.skipped}", markup=False)
        return
    if found.pairs:
        shown = Table("", "original", "compressed", title=found.title, title_justify="left")
        for pair in found.pairs:
            shown.add_row(*map(Text, pair))
        console.print(shown)
    if found.single:
        others = "; ".join(f"{name}: {value}" for name, value in found.single)
        title = "" if found.pairs else f"{found.title}: "
        console.print(f"{title}{others}", markup=False, highlight=False)
