"""Compile a function of arrays and numbers to machine code, once on each machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def compiled(function: FunctionT) -> FunctionT:
    """Compile `function` when it is first called; other processes find the result on disk.

    It runs without Python's lock, so that threads work side by side. Where neither the package's
    folder nor the user's cache can be written, each process compiles anew.
    """
    try:
        return cast(FunctionT, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # "no locator available": there is no place for the cache
        return cast(FunctionT, numba.njit(nogil=True)(function))
