"""What all coders of planes share: statistics, and the trellis as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zoopress.coding.alphabet import Alphabet, choose_alphabet
from zoopress.coding.compiled import compiled
from zoopress.coding.trellis import NEXT, ODD

Plane: TypeAlias = NDArray[np.int32]

TRELLIS_NEXT = np.array(NEXT, np.uint8).reshape(-1)
TRELLIS_ODD = np.array(ODD, np.uint8)
_MAX_COUNTED = 1 << 16


@dataclass(frozen=True)
class Statistics:
    """What coders want to know of a plane that isn't empty.

    Attributes:
        center: the value that magnitudes are counted from: 0, or the most frequent one where that
            is far from 0.
        mean_magnitude: from the center.
    """

    low: int
    high: int
    center: int
    mean_magnitude: float
    zeros: float

    def alphabet(self, trellis: bool) -> Alphabet:
        """Return the alphabet of the plane's values, or of their indices in the trellis."""
        if trellis:
            return choose_alphabet(0, -((1 - self.low) // 2), (self.high + 1) // 2)
        return choose_alphabet(self.center, self.low, self.high)


def measure(plane: Plane, trellis: bool) -> Statistics:
    """Measure a plane [rows, columns] that isn't empty."""
    low, high = int(plane.min()), int(plane.max())
    center = 0
    zeros = 0.0
    if high - low < _MAX_COUNTED:
        counts = np.bincount((plane - np.int32(low)).reshape(-1))
        frequent = int(counts.argmax())
        at_zero = int(counts[-low]) if low <= 0 <= high else 0
        if not trellis and 2 * at_zero < counts[frequent]:
            center = low + frequent
        zeros = float(counts[center - low]) / plane.size if low <= center <= high else 0.0
        magnitudes = np.abs(np.arange(low, high + 1) - center)
        mean = int(counts @ magnitudes) / plane.size
    else:
        mean = int(np.abs(plane.astype(np.int64)).sum()) / plane.size
    return Statistics(low, high, center, mean, zeros)


def check_path(astray: bool) -> None:
    """Refuse codes that no trellis has written.

    Raises:
        ValueError: if they went astray.
    """
    if astray:
        raise ValueError(
            "A line of the plane is no path of the trellis: in the states with odd multiples a "
            "code must be odd or 0, in the others even."
        )


def follows_trellis(plane: Plane) -> bool:
    """Tell whether every line of a plane is a path of the trellis."""
    return not follow_trellis(plane.astype(np.int64), TRELLIS_NEXT, TRELLIS_ODD, True)


@compiled
def follow_trellis(
    numbers: NDArray[np.int64],
    next_state: NDArray[np.uint8],
    odd: NDArray[np.uint8],
    inward: bool,
) -> bool:
    """Turn multiples into indices (inward) or back, in place; return whether a line is no path."""
    rows, columns = numbers.shape
    for row in range(rows):
        state = np.int64(0)
        for column in range(columns):
            value = numbers[row, column]
            chosen = np.int64(odd[state])
            sign = (value > 0) - (value < 0)
            if inward:
                if value and value & 1 != chosen:
                    return True
                value = (value + chosen * sign) // 2
                numbers[row, column] = value
            else:
                numbers[row, column] = 2 * value - chosen * sign
            state = np.int64(next_state[2 * state + (value & 1)])
    return False
