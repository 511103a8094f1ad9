"""The statistics that can be asked for by name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from zoopress.errors import StageError, nearest
from zoopress.statistics.statistic import Statistic

_NAMED = "zoopress.statistics.named"
STATISTICS = {
    "input_norms": f"{_NAMED}.norms:InputNorms",
    "input_means": f"{_NAMED}.means:InputMeans",
    "input_second_moments": f"{_NAMED}.second_moments:InputSecondMoments",
    "input_ranges": f"{_NAMED}.ranges:InputRanges",
    "input_histogram": f"{_NAMED}.histograms:InputHistogram",
    "output_norms": f"{_NAMED}.norms:OutputNorms",
    "output_means": f"{_NAMED}.means:OutputMeans",
    "output_variances": f"{_NAMED}.means:OutputVariances",
    "output_second_moments": f"{_NAMED}.second_moments:OutputSecondMoments",
    "output_ranges": f"{_NAMED}.ranges:OutputRanges",
    "output_histogram": f"{_NAMED}.histograms:OutputHistogram",
    "output_zeros": f"{_NAMED}.zeros:OutputZeros",
    "unit_similarity": f"{_NAMED}.second_moments:UnitSimilarity",
    "gradients": f"{_NAMED}.gradients:Gradients",
    "diagonal_curvature": f"{_NAMED}.gradients:DiagonalCurvature",
    "factored_curvature": f"{_NAMED}.factored_curvature:FactoredCurvature",
    "first_taylor": f"{_NAMED}.gradients:FirstTaylor",
    "second_taylor": f"{_NAMED}.gradients:SecondTaylor",
}
"""Name to "module:Class", imported when first asked for."""


def statistic_class(name: str) -> type[Statistic]:
    """Return the class of a statistic.

    Raises:
        StageError: if there is none of this name.
    """
    if name not in STATISTICS:
        raise StageError(
            f"There is no statistic {name!r}.{nearest(name, STATISTICS)} For one of your own give "
            "an instance of a subclass of zoopress.statistics.Statistic instead of a name."
        )
    module, _, attribute = STATISTICS[name].partition(":")
    found: type[Statistic] = getattr(importlib.import_module(module), attribute)
    return found


def made(statistics: Sequence[str | Statistic]) -> list[Statistic]:
    """Return the statistics that names stand for, with default arguments, or that are given.

    Raises:
        StageError: if there is none of a name.
    """
    return [statistic_class(each)() if isinstance(each, str) else each for each in statistics]
