"""Rounding to the nearest point of the grid: every weight by itself."""

from __future__ import annotations

from zoopress.choice import NoOptions
from zoopress.techniques.rounder import Matrix, Rounded, Rounder


class Nearest(Rounder[NoOptions]):
    """Round each weight to the nearest point of the grid with the least squared error."""

    name = "nearest"

    def round(self, matrix: Matrix) -> Rounded:
        """Return the nearest points; where inputs are known, ranges are chosen by these as well."""
        from zoopress_plugins.quantization.rounding.output_error import start_of

        return start_of(matrix)
