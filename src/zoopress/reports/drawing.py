"""Vega-Lite charts, drawn to SVG and PNG without a network.

What draws them is vl-convert, of the extra `reports`; see docs/decisions/0017-charts.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zoopress.errors import ZoopressError
from zoopress.optional import import_optional

Spec = dict[str, Any]
"""A chart in Vega-Lite: plain data."""

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
        tall: whether it may be much taller than wide.
    """

    title: str
    caption: str
    svg: str
    tall: bool = False


def require_renderer() -> Any:
    """Return the module that draws Vega-Lite; it takes a second to start.

    Raises:
        ChartsMissingError: if it is not installed, or broken.
    """
    return import_optional(
        "vl_convert", "Charts need vl-convert-python", INSTALL, ChartsMissingError
    )


def draw_svg(spec: Spec, ink: str = INHERITED, background: str | None = None) -> str:
    """Draw a chart as SVG; Vega escapes the texts in it.

    Raises:
        ChartsMissingError: if what draws it is not installed.
    """
    themed = _themed(spec, ink, background)
    drawn: str = require_renderer().vegalite_to_svg(themed, allowed_base_urls=[])
    return drawn


def draw_png(spec: Spec, ink: str, background: str) -> bytes:
    """Draw a chart as a PNG of twice the usual resolution.

    Raises:
        ChartsMissingError: if what draws it is not installed.
    """
    themed = _themed(spec, ink, background)
    drawn: bytes = require_renderer().vegalite_to_png(themed, scale=2, allowed_base_urls=[])
    return drawn


def _themed(spec: Spec, ink: str, background: str | None) -> Spec:
    """Give a specification its colours and sizes."""
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12}
    text["titleFontWeight"] = "normal"
    config = {
        "axis": {
            **text,
            "domainColor": ink,
            "tickColor": ink,
            "gridColor": ink,
            "gridOpacity": 0.12,
            "titlePadding": 10,
        },
        "legend": {
            **text,
            "orient": "bottom",
            "columns": 2,
            # Texts are measured here with another font than a browser may take.
            "columnPadding": 28,
            "labelLimit": 140,
            "symbolLimit": 40,
            "layout": {
                side: {"direction": "vertical", "anchor": "start", "margin": 8}
                for side in ("top", "bottom")
            },
        },
        "view": {"stroke": None},
        "text": {"color": ink, "fontSize": 12},
        "line": {"color": ink},
        "font": "Arial, Helvetica, sans-serif",
    }
    return {**spec, "background": background, "width": 320, "config": config, "padding": 8}
