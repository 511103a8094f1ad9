"""Memory as a budget that all runs on this machine share.

    FOLDER/
        ledger.json     claims in the order in which they were made, admitted or waiting
        ledger.lock     held while the ledger is read and written
        PID-XXXX.lock   held by each process that claims, for as long as it lives

A claim waits until it fits beside those that were admitted; nobody is overtaken, so a large one
gets its turn. What a killed process claimed is free again: the kernel lets go of its lock.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

_SHARE = 0.8
_POLL_SECONDS = 0.05


def machine_memory() -> int:
    """Return the bytes of memory that processes here may use, a container's limit included."""
    import psutil

    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return total


class MemoryBudget:
    """A number of bytes that claims are made on.

    Args:
        total: the budget; by default 80 % of the machine's memory.
        folder: where all who share it meet; by default one for the user on this machine.
    """

    def __init__(self, total: int | None = None, folder: Path | None = None) -> None:
        self.total = total or int(_SHARE * machine_memory())
        owner = f"zoopress-budget-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        self.folder = folder or Path(tempfile.gettempdir()) / owner

    @contextmanager
    def claim(self, size: int | None, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold `size` bytes of the budget, or for None the machine alone; waits for its turn.

        A claim for more than there is runs alone as well. Threads of one process may claim at once.

        Args:
            size: how much.
            waiting: called over and over while it waits; what it raises ends the waiting.
        """
        alone = size is None or size >= self.total
        ticket = {"process": self._presence, "id": uuid4().hex, "bytes": size or 0, "alone": alone}
        try:
            while not self._admit(ticket):
                waiting()
                time.sleep(_POLL_SECONDS)
            yield
        finally:
            with self._ledger() as claims:
                claims[:] = [claim for claim in claims if claim["id"] != ticket["id"]]

    def _admit(self, ticket: dict[str, Any]) -> bool:
        """Enter a claim if it is new; tell whether it may go ahead."""
        with self._ledger() as claims:
            if all(claim["id"] != ticket["id"] for claim in claims):
                claims.append({**ticket, "admitted": False})
            ahead = [claim for claim in claims if claim["admitted"]]
            for claim in claims:
                if claim["admitted"]:
                    continue
                if not self._fits(claim, ahead):
                    return False
                if claim["id"] == ticket["id"]:
                    claim["admitted"] = True
                    return True
                ahead.append(claim)  # about to be admitted, when its process asks again
        raise AssertionError("a claim that waits is in the ledger")

    def _fits(self, claim: dict[str, Any], beside: list[dict[str, Any]]) -> bool:
        if not beside:
            return True
        if claim["alone"] or any(other["alone"] for other in beside):
            return False
        return bool(claim["bytes"] + sum(other["bytes"] for other in beside) <= self.total)

    @contextmanager
    def _ledger(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the claims of processes that live; what is changed in the list is written back."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / "ledger.json"
        with FileLock(self.folder / "ledger.lock"):
            claims: list[dict[str, Any]] = []
            with suppress(OSError, ValueError):
                claims = json.loads(path.read_bytes())
            others = {claim["process"] for claim in claims} - {self._presence}
            gone = {process for process in others if not _lives(self.folder / process)}
            claims = [claim for claim in claims if claim["process"] not in gone]
            yield claims
            path.write_text(json.dumps(claims), encoding="ascii")  # lost by a crash: empty

    @cached_property
    def _presence(self) -> str:
        """Return the name of this process among those that claim."""
        return _presence(self.folder)


_presences: dict[tuple[int, Path], tuple[str, FileLock]] = {}


def _presence(folder: Path) -> str:
    """Hold a lock that says that this process lives, until it does not."""
    if (os.getpid(), folder) not in _presences:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = f"{os.getpid()}-{uuid4().hex}.lock"
        lock = FileLock(folder / name, thread_local=False)
        with FileLock(folder / "ledger.lock"):  # so that nobody takes it for left behind
            for other in folder.glob("*-*.lock"):
                _lives(other)
            lock.acquire()
        _presences[os.getpid(), folder] = (name, lock)
    return _presences[os.getpid(), folder][0]


def _lives(path: Path) -> bool:
    """Tell whether the process that holds a lock lives; the lock of one that does not is removed.

    To be called while the ledger is locked.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    with suppress(OSError):
        os.unlink(path)
    return False
