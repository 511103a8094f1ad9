"""The trellis of dependent quantization: which integers may follow which.

Two scalar quantizers share one grid: one has its even multiples, the other its odd multiples and
zero. The parity of each index chooses, through the state, which of them the next integer is of.

Source: Marcellin and Fischer 1990 (trellis-coded quantization); Schwarz et al. 2019,
doi:10.1109/DCC.2019.00017 (dependent quantization with entropy coding).
"""

from __future__ import annotations

STATES = 8
NEXT: tuple[tuple[int, int], ...] = (
    (0, 2),
    (5, 7),
    (1, 3),
    (6, 4),
    (2, 0),
    (4, 6),
    (3, 1),
    (7, 5),
)
"""The next state by state and parity of the index."""
ODD: tuple[int, ...] = (0, 1, 0, 1, 0, 1, 0, 1)
"""Whether a state's quantizer has the odd multiples: index k stands for 2k − sign(k), else 2k."""
