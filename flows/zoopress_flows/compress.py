"""The main path as a Prefect flow: each stage a task, named after its technique.

Prefect watches and schedules; it keeps nothing. Results are in the store before Prefect hears of
them, so whatever happens to a server, finished work stays finished.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import zoopress_flows.quiet  # noqa: F401  # isort: skip

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from zoopress.cards import load_card
from zoopress.pipeline.compress import Result, compress, run_inline
from zoopress.plugins import load_plugins
from zoopress.progress import Reporter, terminal
from zoopress.recipes import load_recipe
from zoopress.reports.report import markdown
from zoopress.store import Store
from zoopress_flows.attempts import as_task, run_for_command, work
from zoopress_flows.living import living
from zoopress_flows.repositories import repository_name
from zoopress_flows.watching import FlowLog, ProgressArtifact, artifact_key


@flow(name="compress", flow_run_name="{card} × {recipe}")
def compress_flow(
    card: str,
    recipe: str,
    out: str | None = None,
    store: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Compress a model and prove the result.

    Args:
        card: a card's name or file.
        recipe: a recipe's name or file, or a section of a file.
        out: folder of the result; out/CARD/RECIPE by default.
        store: where results are kept; the user's own by default.
        quiet: whether to print nothing.

    Returns:
        The metrics.
    """
    repository, title = repository_name(Path.cwd()), f"{card} × {recipe}"
    listeners = [ProgressArtifact(title, repository).tell, FlowLog().tell]
    with living(), work() as attempt:
        result = _compress(card, recipe, out, store, terminal(quiet, listeners), as_task)
        attempt.result = result
    with suppress(Exception):  # an artifact is to look at; the work is done
        key = artifact_key("report", repository, result.report.name)
        create_markdown_artifact(markdown(result.report), key=key, description="zoopress report")
    return result.report.metrics()


def run_in_flow(
    card: str, recipe: str, out: str, store: str | None, quiet: bool, chosen: bool = False
) -> Result:
    """Run the flow for the command line; if Prefect itself fails on the way, finish without it.

    Raises:
        ZoopressError: if the work fails, or if Prefect was `chosen` and cannot begin.
    """

    def flow() -> Result:
        compress_flow(card, recipe, out, store, quiet)
        # The flow hands over figures; the result itself is read from the store.
        return _compress(card, recipe, out, store, Reporter(), run_inline)

    def without() -> Result:
        return _compress(card, recipe, out, store, terminal(quiet), run_inline)

    return run_for_command(flow, without, quiet, chosen)


def _compress(
    card: str,
    recipe: str,
    out: str | None,
    store: str | None,
    reporter: Reporter,
    execute: Callable[[str, Callable[[], Any]], Any],
) -> Result:
    plugins = load_plugins()
    the_card, the_recipe = load_card(card, plugins), load_recipe(recipe, plugins)
    folder = Path(out) if out else Path("out") / the_card.name / the_recipe.name
    return compress(the_card, the_recipe, folder, Store(store), plugins, reporter, execute)
