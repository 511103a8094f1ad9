"""The logistic function and its inverse in integers, for mixing probabilities bit for bit alike.

Probabilities are in 65536ths, their logits in 256ths. Between the knots, half a unit apart, the
function is a straight line.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LIMIT = 3071  # of a logit: 12 units
_KNOTS = (
    *(32768, 40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374),
    *(65438, 65476, 65500, 65514, 65523, 65528, 65531, 65533, 65534, 65535, 65535, 65535),
)
"""round(65536 / (1 + exp(-x))) at x = 0, 0.5, …, 12, at most 65535."""


def probability(logit: int) -> int:
    """Return the probability of a logit from -3071 to 3071."""
    knot, part = divmod(abs(logit), 128)
    upper = (_KNOTS[knot] * (128 - part) + _KNOTS[knot + 1] * part + 64) >> 7
    return upper if logit >= 0 else 65536 - upper


def probability_table() -> NDArray[np.int32]:
    """Return the probability of each logit; [6143], the first for -3071."""
    return np.array([probability(logit) for logit in range(-LIMIT, LIMIT + 1)], np.int32)


def logit_table() -> NDArray[np.int32]:
    """Return the logit of each probability in 4096ths; [4096].

    It is the lowest whose probability reaches the middle of the 4096th.
    """
    middles = 16 * np.arange(4096) + 8
    return (np.searchsorted(probability_table(), middles) - LIMIT).astype(np.int32)
