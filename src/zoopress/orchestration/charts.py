"""Charts of a leaderboard, drawn to SVG and PNG without a network.

What draws them is vl-convert, of the extra `reports`; see docs/decisions/0017-charts.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from zoopress.errors import ZoopressError
from zoopress.orchestration.chart_specs import (
    COSINE,
    MAX_BARS,
    RATIO,
    SPEED_UP,
    Spec,
    scatter,
    stage_bars,
    themed,
)

if TYPE_CHECKING:
    from zoopress.orchestration.leaderboard import Leaderboard

INSTALL = "pip install 'zoopress[reports]'"
INHERITED, DARK = "currentColor", "#222222"
"""Colours of text and axes: that of the page around the chart, and that of a file of its own."""


class ChartsMissingError(ZoopressError):
    """What draws charts is not installed."""


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        title: what it shows.
        caption: how to read it.
        svg: fit to stand in HTML; takes its text colour from there.
    """

    title: str
    caption: str
    svg: str
    tall: bool = False
    """Whether it may be much taller than wide."""


def charts(leaderboard: Leaderboard) -> list[Chart]:
    """Draw all charts of a leaderboard; none of one without a cell that is done.

    Raises:
        ChartsMissingError: if what draws them is not installed.
    """
    _renderer()
    drawn = []
    for axis in (COSINE, SPEED_UP):
        spec = scatter(leaderboard, RATIO, axis, INHERITED)
        if spec is not None:
            caption = (
                "The dashed line joins the cells that no other beats in both measures shown; "
                "marks with an edge are on the front of all three."
            )
            title = f"{axis.title.partition(',')[0].capitalize()} against compression ratio"
            drawn.append(Chart(title, caption, _svg(spec, INHERITED)))
    if leaderboard.done:
        count = len(leaderboard.done)
        which = f"{MAX_BARS} of {count} cells, those on the front first" if count > MAX_BARS else ""
        caption = "Bytes of the tensor files before ÷ after each stage, multiplied up" + (
            f"; {which}." if which else "."
        )
        bars = _svg(stage_bars(leaderboard, INHERITED), INHERITED)
        drawn.append(Chart("What each stage gained", caption, bars, tall=True))
    return drawn


def pareto_svg(leaderboard: Leaderboard) -> str:
    """Draw fidelity against compression ratio, dark on white, as a file of its own.

    Raises:
        ChartsMissingError: if what draws it is not installed.
        ValueError: if no cell is done.
    """
    return _svg(_pareto(leaderboard), DARK, "white")


def pareto_png(leaderboard: Leaderboard) -> bytes:
    """Draw fidelity against compression ratio as a PNG of twice the usual resolution.

    Raises:
        ChartsMissingError: if what draws it is not installed.
        ValueError: if no cell is done.
    """
    spec = themed(_pareto(leaderboard), DARK, "white")
    drawn: bytes = _renderer().vegalite_to_png(spec, scale=2, allowed_base_urls=[])
    return drawn


def _pareto(leaderboard: Leaderboard) -> Spec:
    spec = scatter(leaderboard, RATIO, COSINE, DARK)
    if spec is None:
        raise ValueError("There is nothing to draw: no cell is done.")
    return spec


def _renderer() -> Any:
    """Return the module that draws Vega-Lite; it takes a second to start."""
    if find_spec("vl_convert") is None:
        raise ChartsMissingError(f"Charts need vl-convert-python: {INSTALL}.")
    import vl_convert

    return vl_convert


def _svg(spec: Spec, ink: str, background: str | None = None) -> str:
    drawn: str = _renderer().vegalite_to_svg(themed(spec, ink, background), allowed_base_urls=[])
    return drawn
