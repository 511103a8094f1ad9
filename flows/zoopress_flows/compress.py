"""The main path as a Prefect flow: each stage a task, named after its technique.

Prefect watches and schedules; it keeps nothing. Results are in the store before Prefect hears of
them, so whatever happens to a server, finished work stays finished.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import zoopress_flows.quiet  # noqa: F401  # isort: skip

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from zoopress.cards import load_card
from zoopress.pipeline.compress import Result, compress, run_inline
from zoopress.plugins import load_plugins
from zoopress.progress import Reporter, terminal
from zoopress.recipes import load_recipe
from zoopress.reports.report import markdown
from zoopress.store import Store
from zoopress_flows.watching import ProgressArtifact, or_without_prefect


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
    reporter = terminal(quiet, [ProgressArtifact(f"{card} × {recipe}").tell])
    result = _compress(card, recipe, out, store, reporter, as_task)
    create_markdown_artifact(markdown(result.report), key="report", description="zoopress report")
    return result.report.metrics()


def run_in_flow(card: str, recipe: str, out: str, store: str | None, quiet: bool) -> Result:
    """Run the flow for the command line; if Prefect itself fails, finish without it.

    Raises:
        ZoopressError: if the work fails.
    """

    def flow() -> Result:
        compress_flow(card, recipe, out, store, quiet)
        # The flow hands over figures; the result itself is read from the store.
        return _compress(card, recipe, out, store, Reporter(), run_inline)

    def without() -> Result:
        return _compress(card, recipe, out, store, terminal(quiet), run_inline)

    return or_without_prefect(flow, without, quiet)


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


def as_task(name: str, work: Callable[[], Any]) -> Any:
    """Run a step as a Prefect task."""
    return task(name=name, cache_policy=NO_CACHE, persist_result=False)(lambda: work())()
