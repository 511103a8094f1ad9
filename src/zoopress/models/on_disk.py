"""Weights on disk: tensors that lie in files, of models that are larger than memory.

Within `weights_on_disk`, whatever a model is given lies in files without names, which the system
maps: it reads what is touched. A thread looks at how much of such files is resident, and gives all
of it back where that is more than a part of the memory that may be used. Nothing else knows of it:
a mapped tensor is an ordinary one, that can even be written to. What was written to stays in
memory, so whoever changes weights one after another should give them to the model anew.
"""

from __future__ import annotations

import ctypes
import mmap
import tempfile
import threading
import weakref
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LEAST_BYTES = 1 << 16
"""Smaller tensors stay in memory."""
SHARE = 8
"""This part of the memory that may be used is left to files that are mapped."""
_LEAST_RESIDENT = 48 << 20
_SECONDS, _TICKS = 0.01, 50
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


@dataclass
class _Span:
    """A mapped piece of a file, and what keeps it mapped."""

    address: int
    size: int
    owner: Any


@dataclass
class WeightsOnDisk:
    """Where tensors lie instead of in memory.

    Attributes:
        folder: on a disk with room for the model.
        memory_bytes: that may be used for everything.
    """

    folder: Path
    memory_bytes: int
    _spans: dict[int, _Span] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def put(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the same values, that lies in a file; small ones stay what they are.

        Raises:
            OSError: if there is no room.
        """
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not plain or tensor.nbytes < LEAST_BYTES or self._has(tensor):
            return tensor
        flat: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        with tempfile.TemporaryFile(dir=self.folder) as file:  # no kill leaves it behind
            file.write(flat.data)
            file.flush()
            mapped = mmap.mmap(file.fileno(), len(flat), access=mmap.ACCESS_COPY)
        new = torch.frombuffer(mapped, dtype=torch.uint8).view(tensor.dtype).view(tensor.shape)
        self._keep(_Span(new.data_ptr(), len(flat), weakref.ref(mapped)))
        return new

    def adopt(self, module: nn.Module) -> None:
        """Let the tensors of a module lie on disk, and watch those that do already."""
        files = _mapped_files()
        starts = [start for start, _ in files]
        moved: dict[int, Tensor] = {}

        def settle(tensor: Tensor) -> Tensor:
            at = bisect_right(starts, tensor.data_ptr()) - 1
            if at >= 0 and tensor.data_ptr() + tensor.nbytes <= files[at][1]:
                # Held for good: an address that is somebody else's by now must not be given back.
                self._keep(_Span(tensor.data_ptr(), tensor.nbytes, tensor.untyped_storage()))
                return tensor
            return self.put(tensor)

        for owner in module.modules():
            for parameter in owner._parameters.values():
                if parameter is not None and id(parameter) not in moved:
                    parameter.data = moved[id(parameter)] = settle(parameter.data)
            for name, buffer in owner._buffers.items():
                if buffer is not None:
                    owner._buffers[name] = moved.setdefault(id(buffer), settle(buffer))

    def release(self) -> None:
        """Give resident pages of mapped files back; whoever touches them has them read again."""
        with self._lock:
            spans = [span for span in self._spans.values() if _owner(span) is not None]
            self._spans = {span.address: span for span in spans}
        with suppress(OSError), open("/proc/self/pagemap", "rb", buffering=0) as table:
            for span in spans:
                owner = _owner(span)  # held while its pages are looked at
                if owner is not None:
                    _release(span, table)
                del owner

    def watch(self, stop: threading.Event) -> None:
        """Release what is resident whenever it is too much, until told to stop."""
        start, most = _resident_bytes(), max(_LEAST_RESIDENT, self.memory_bytes // SHARE)
        for tick in count(1):
            if stop.wait(_SECONDS):
                return
            if _resident_bytes() - start > most:
                self.release()
            if tick % _TICKS == 0:
                _trim()

    def _keep(self, span: _Span) -> None:
        with self._lock:
            self._spans[span.address] = span

    def _has(self, tensor: Tensor) -> bool:
        span = self._spans.get(tensor.data_ptr())
        there = span is not None and span.size == tensor.nbytes and tensor.is_contiguous()
        return there and _owner(span) is not None


_current: ContextVar[WeightsOnDisk | None] = ContextVar("weights_on_disk", default=None)


@contextmanager
def weights_on_disk(folder: Path, memory_bytes: int) -> Iterator[WeightsOnDisk]:
    """Let what models are given lie on disk, see above.

    What packed weights make of themselves to compute with is forgotten after each layer.

    Args:
        folder: on a disk with room for the model; made if it is missing.
        memory_bytes: that may be used for everything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    disk, stop = WeightsOnDisk(folder, memory_bytes), threading.Event()
    token = _current.set(disk)
    watcher = threading.Thread(target=disk.watch, args=(stop,), daemon=True)
    watcher.start()
    hook = nn.modules.module.register_module_forward_hook(_forget, always_call=True)
    try:
        yield disk
    finally:
        hook.remove()
        stop.set()
        watcher.join()
        _current.reset(token)


def on_disk() -> WeightsOnDisk | None:
    """Return where tensors lie now, None if in memory."""
    return _current.get()


def settled(tensor: Tensor) -> Tensor:
    """Return a tensor that a model is to hold: on disk where weights lie there, else itself."""
    disk = _current.get()
    return tensor if disk is None else disk.put(tensor)


def pieces(tensor: Tensor, numbers: int = 1 << 22) -> Iterator[Tensor]:
    """Yield a tensor's numbers in flat pieces, so that what is made of each stays small."""
    yield from tensor.detach().reshape(-1).split(numbers)


def _forget(module: nn.Module, *_: Any) -> None:
    for name in getattr(type(module), "_packed_names", ()):
        packed: Any = module._modules[name]
        packed.changed()


def _owner(span: _Span | None) -> Any:
    if span is None:
        return None
    return span.owner() if isinstance(span.owner, weakref.ref) else span.owner


def _release(span: _Span, table: Any) -> None:
    """Give the whole pages of a span back, unless somebody wrote to one: that would be lost."""
    page = mmap.PAGESIZE
    first, last = -(-span.address // page), (span.address + span.size) // page
    table.seek(first * 8)
    found = np.frombuffer(table.read(max(0, last - first) * 8), np.uint64)
    written = (found & _SWAPPED) | (found & _PRESENT & ~((found & _OF_FILE) << np.uint64(2)))
    if len(found) == last - first and bool((found & _PRESENT).any()) and not bool(written.any()):
        _libc().madvise(
            ctypes.c_void_p(first * page),
            ctypes.c_size_t((last - first) * page),
            mmap.MADV_DONTNEED,
        )


def _trim() -> None:
    """Let the heap give back what is free: between small things that stay, it keeps it."""
    with suppress(AttributeError):  # not of GNU's library
        _libc().malloc_trim(0)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def _resident_bytes() -> int:
    """Return how much of mapped files is resident; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/self/statm").read_text(encoding="ascii")
        return int(text.split()[2]) * mmap.PAGESIZE
    return 0


def _mapped_files() -> list[tuple[int, int]]:
    """Return where this process has mapped files: begin and end of each, rising."""
    found = []
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
            addresses, _, _, _, inode, *_ = line.split(None, 5)
            if inode != "0":
                start, _, end = addresses.partition("-")
                found.append((int(start, 16), int(end, 16)))
    return found
