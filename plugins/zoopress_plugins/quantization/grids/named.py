"""Grids by the names that recipes and artifacts call them."""

from __future__ import annotations

from functools import cache

import torch

from zoopress_plugins.quantization.grids.level_grid import LevelGrid
from zoopress_plugins.quantization.grids.normal_float import normal_float_levels
from zoopress_plugins.quantization.grids.powers_of_two import power_levels, smallest_power
from zoopress_plugins.quantization.grids.small_floats import float4_levels, float8_levels

BITS: dict[str, tuple[int, ...]] = {
    "binary": (1,),
    "ternary": (2,),
    "odd": (2, 3, 4, 5, 6, 7),
    "nf4": (4,),
    "fp4": (4,),
    "fp8_e4m3": (8,),
    "fp8_e5m2": (8,),
    "power_of_two": (2, 3, 4, 5),
}
"""The bits of a code that each grid may have; three levels take log₂ 3 of their two."""


@cache
def named_grid(name: str, bits: int) -> LevelGrid:
    """Return a grid.

    Args:
        name: one of `BITS`.
        bits: of a code.

    Raises:
        ValueError: if there is none of that name and bits.
    """
    if name not in BITS:
        raise ValueError(f"grid must be one of {list(BITS)}, not {name!r}")
    if type(bits) is not int or bits not in BITS[name]:
        raise ValueError(f"bits of the grid {name!r} must be one of {list(BITS[name])}, not {bits}")
    # Artifacts are rebuilt on the meta device, and levels are values.
    with torch.device("cpu"):
        if name == "binary":
            return LevelGrid(name, torch.tensor([-1.0, 1.0]), unit=1.0)
        if name == "ternary":
            return LevelGrid(name, torch.tensor([-1.0, 0.0, 1.0]), unit=1.0)
        if name == "odd":  # evenly spaced without a zero, as signs are
            return LevelGrid(name, 2 * torch.arange(2.0**bits) - (2**bits - 1), unit=1.0)
        if name == "nf4":
            return LevelGrid(name, normal_float_levels())
        if name == "fp4":
            return LevelGrid(name, float4_levels(), unit=0.5)
        if name == "power_of_two":
            unit = smallest_power(bits)
            fits = 1 / unit <= 127
            return LevelGrid(name, power_levels(bits), signed=True, unit=unit if fits else None)
        dtype = torch.float8_e4m3fn if name == "fp8_e4m3" else torch.float8_e5m2
        return LevelGrid(name, float8_levels(dtype))
