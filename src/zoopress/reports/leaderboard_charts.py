"""The charts of a leaderboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoopress.reports.chart_specs import (
    COSINE,
    MAX_BARS,
    RATIO,
    SPEED_UP,
    metric_axis,
    scatter,
    stage_bars,
)
from zoopress.reports.drawing import (
    DARK,
    INHERITED,
    Chart,
    Spec,
    draw_png,
    draw_svg,
    require_renderer,
)

if TYPE_CHECKING:
    from zoopress.reports.leaderboard import Leaderboard


def charts(leaderboard: Leaderboard) -> list[Chart]:
    """Draw all charts of a leaderboard; none of one without a cell that is done.

    Raises:
        ChartsMissingError: if what draws them is not installed.
    """
    require_renderer()
    drawn = []
    measured = metric_axis(leaderboard)
    for axis in (*([measured] if measured else []), COSINE, SPEED_UP):
        spec = scatter(leaderboard, RATIO, axis, INHERITED)
        if spec is not None:
            caption = (
                "The dashed line joins the cells that no other beats in both measures shown; "
                "marks with an edge are on the front of all three."
            )
            title = f"{axis.title.partition(',')[0].capitalize()} against compression ratio"
            drawn.append(Chart(title, caption, draw_svg(spec)))
    if leaderboard.done:
        count = len(leaderboard.done)
        which = f"{MAX_BARS} of {count} cells, those on the front first" if count > MAX_BARS else ""
        caption = "Bytes of the tensor files before ÷ after each stage, multiplied up" + (
            f"; {which}." if which else "."
        )
        bars = draw_svg(stage_bars(leaderboard, INHERITED))
        drawn.append(Chart("What each stage gained", caption, bars, tall=True))
    return drawn


def pareto_svg(leaderboard: Leaderboard) -> str:
    """Draw fidelity against compression ratio, dark on white, as a file of its own.

    Raises:
        ChartsMissingError: if what draws it is not installed.
        ValueError: if no cell is done.
    """
    return draw_svg(_pareto(leaderboard), DARK, "white")


def pareto_png(leaderboard: Leaderboard) -> bytes:
    """Draw fidelity against compression ratio as a PNG of twice the usual resolution.

    Raises:
        ChartsMissingError: if what draws it is not installed.
        ValueError: if no cell is done.
    """
    return draw_png(_pareto(leaderboard), DARK, "white")


def _pareto(leaderboard: Leaderboard) -> Spec:
    spec = scatter(leaderboard, RATIO, COSINE, DARK)
    if spec is None:
        raise ValueError("There is nothing to draw: no cell is done.")
    return spec
