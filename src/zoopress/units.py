"""Sizes and durations as people write and read them."""

from __future__ import annotations

import math
import re

from zoopress.errors import InputError

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_bytes(text: str) -> int:
    """Return the bytes that "20GB", "1.5 GiB", "300M" or "4096" stand for.

    Raises:
        InputError: if it stands for none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    if not found or (found[3] and not found[2]):
        raise InputError(f"{text!r} is no size; write for example 800MB, 20GB or 1.5GiB.")
    factor = _FACTORS[found[2].lower()]
    if found[3]:
        factor = 1 << (10 * round(len(str(factor)) / 3))
    return int(float(found[1]) * factor)


def show_bytes(count: int) -> str:
    """Return bytes with three figures, in the unit in which they are easiest to read."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            shown = count / factor
            return f"{shown:.{max(0, 3 - len(str(int(shown))))}f} {unit}"
    return f"{count} bytes"


_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_SMALLEST_PLAIN = -5
_LARGEST_PLAIN = 15


def show_number(value: float, figures: int = 3) -> str:
    """Return a number as people write it: "1,030", "0.0123", "4.2 × 10⁻⁹"; never "1.03e+03".

    Args:
        value: the number.
        figures: how many count; all digits before the point are shown.
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    mantissa, _, power = f"{value:.{figures - 1}e}".partition("e")
    exponent = int(power)
    if not _SMALLEST_PLAIN <= exponent <= _LARGEST_PLAIN:
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa} × 10{str(exponent).translate(_SUPERSCRIPTS)}"
    shown = f"{value:,.{max(0, figures - 1 - exponent)}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def parse_duration(text: str) -> float:
    """Return the seconds that "30d", "12h", "45m", "90s" or "2w" stand for.

    Raises:
        InputError: if it stands for none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", text, re.IGNORECASE)
    if not found:
        raise InputError(f"{text!r} is no duration; write for example 30d, 12h, 45m or 2w.")
    return float(found[1]) * _SECONDS[found[2].lower()]


def show_seconds(seconds: float) -> str:
    """Return a duration as people say it: "0.4 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
