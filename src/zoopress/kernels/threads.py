"""Run a compiled function in the threads of torch's own pool, as many as torch is told to use.

torch's wheels bring an OpenMP library, and its entry points are a stable interface. A second pool
would compete with torch's for the cores, and numba's own ends the process in one that was forked or
that calls it from two threads.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch


def run_in_threads(address: int, task: int, pieces: int) -> None:
    """Call the function at an address, void(void *), in as many threads as there is work for.

    Each thread calls it once, and it is to take pieces of the work until none is left. Where torch
    brings no OpenMP of that interface, one thread does it all.

    Args:
        address: of the function.
        task: address of what it is called with.
        pieces: into which the work falls.
    """
    threads = min(torch.get_num_threads(), pieces)
    parallel = _parallel() if threads > 1 else None
    if parallel is None:
        _function(address)(task)
    else:
        parallel(address, task, threads, 0)


@cache
def _function(address: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


@cache
def _parallel() -> Any:
    """Return OpenMP's function that starts threads, None if there is none."""
    if "OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # other systems' names, or no such lookup
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel
