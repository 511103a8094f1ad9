"""Find the kernel's machine code for this machine: on disk, or compiled once and kept there."""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import platform
import subprocess
import sys
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from platformdirs import user_cache_path

from zoopress.kernels.build import PAGE, start, write

_SECONDS = 300


class Kernel(NamedTuple):
    """What is called, and how its vectors and tiles are.

    Attributes:
        address: of a function void(task).
        lanes: floats of a vector; columns are padded to a multiple.
        tile_rows: inputs that are multiplied at once.
        tile_outputs: rows of weights that are multiplied at once.
    """

    address: int
    lanes: int
    tile_rows: int
    tile_outputs: int


@cache
def kernel() -> Kernel:
    """Return the kernel of this machine; without a place to keep it, each process compiles it."""
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _compiled_for_now()
    if not path.exists():
        try:
            _build(path)
        except (OSError, subprocess.SubprocessError):
            return _compiled_for_now()
    try:
        return _opened(path)
    except ValueError:  # damaged
        path.unlink(missing_ok=True)
        _build(path)
        return _opened(path)


def _compiled_for_now() -> Kernel:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "kernel.bin")
        return _opened(Path(folder) / "kernel.bin")


def _build(path: Path) -> None:
    command = [sys.executable, "-m", "zoopress.kernels.build", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)


def _opened(path: Path) -> Kernel:
    """Return the kernel that a file holds.

    Raises:
        ValueError: if it is damaged.
    """
    content = path.read_bytes()
    image = content[PAGE:]
    if not image or hashlib.sha256(image).hexdigest() not in content[:PAGE].decode("latin-1"):
        raise ValueError(f"{path} is damaged")
    head = json.loads(content[:PAGE])
    sizes = [head[name] for name in Kernel._fields[1:]]
    if head["entry"] < 0:
        return Kernel(start(image), *sizes)
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC)
        except PermissionError:  # on a disk of which nothing may be run
            mapped = mmap.mmap(-1, len(content))
            mapped.write(content)
            protect = ctypes.CDLL(None).mprotect
            bytes_at = np.frombuffer(mapped, np.uint8).ctypes.data
            allowed = mmap.PROT_READ | mmap.PROT_EXEC
            if protect(ctypes.c_void_p(bytes_at), ctypes.c_size_t(len(content)), allowed):
                raise
    bytes_mapped = np.frombuffer(mapped, np.uint8)
    _KEPT.append(bytes_mapped)
    return Kernel(bytes_mapped.ctypes.data + PAGE + head["entry"], *sizes)


_KEPT: list[Any] = []


def _path() -> Path:
    """Return where the kernel is kept: a file for each source, compiler and kind of processor."""
    here = Path(__file__).parent
    about = [
        *(here.joinpath(f"{name}.py").read_text("utf-8") for name in _SOURCES),
        *(version(name) for name in ("numba", "llvmlite")),
        _processor(),
    ]
    digest = hashlib.sha256("\0".join(about).encode()).hexdigest()[:32]
    named = os.environ.get("ZOOPRESS_CACHE")
    folder = Path(named) if named else user_cache_path("zoopress", appauthor=False)
    return folder / "kernels" / f"{digest}.bin"


_SOURCES = ("build", "coded_rows", "linking", "vector_code")


def _processor() -> str:
    """Describe the processor, and all that its instructions depend on."""
    told = [platform.machine(), platform.system(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    wanted = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(told + [line for line in lines if line.split("\t")[0].strip() in wanted])
