"""Memory as a budget that runs on this machine share.

    FOLDER/
        ledger.json     claims in the order in which they were made, admitted or waiting
        ledger.lock     held while the ledger is read and written
        PID-XXXX.lock   held by each process that claims, for as long as it lives

A claim waits until it fits beside those that were admitted. What a killed process claimed is free
again: the kernel lets go of its lock. What hangs holds its claim, and must not hold up the others:

- Who waits keeps those behind it from overtaking, so that a large claim gets its turn, but not for
  ever: for `PATIENCE_S`, then they may for as long, then they may not for twice as long, and so on.
- Who only wants a quiet machine waits `PATIENCE_S` at most, and then goes on beside whoever is
  left, and knows; what outlasted that once is not waited for again. Who has it, keeps it.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

from zoopress.resources import memory_limit

_SHARE = 0.8
_POLL_SECONDS = 0.05
PATIENCE_S = 20.0
_HANGS = 90
"""For how many times that, whoever has a quiet machine keeps it: half an hour."""


def machine_memory() -> int:
    """Return the bytes of memory that processes here may use, every limit on them included."""
    return memory_limit().bytes


class MemoryBudget:
    """A number of bytes that claims are made on.

    Args:
        total: the budget; by default 80 % of the memory that this process may use.
        folder: where all who share it meet; by default one for the user on this machine, or in the
            control group or the Slurm job whose memory it is.
        patience_s: how long whoever hangs may hold up others.
    """

    def __init__(
        self,
        total: int | None = None,
        folder: Path | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        limit = memory_limit()
        self.total = total or int(_SHARE * limit.bytes)
        owner = f"zoopress-budget-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        if limit.scope:
            owner += f"-{sha256(limit.scope.encode()).hexdigest()[:12]}"
        self.folder = folder or Path(tempfile.gettempdir()) / owner
        self.patience_s = patience_s

    @contextmanager
    def claim(
        self,
        size: int | None,
        waiting: Callable[[], None] = lambda: None,
        what: str = "other work",
        quiet: bool = False,
    ) -> Iterator[list[str]]:
        """Hold `size` bytes of the budget, or for None the machine alone; waits for its turn.

        A claim for more than there is runs alone as well. Threads of one process may claim at once.

        Args:
            size: how much.
            waiting: called over and over while it waits; what it raises ends the waiting.
            what: it is for, which others are told who wait for it.
            quiet: whether nothing shall run beside it, if that can be had in time.

        Yields:
            What disturbs a claim for a quiet machine; complete once the claim has ended.
        """
        ticket = {
            "process": self._presence,
            "id": uuid4().hex,
            "bytes": size or 0,
            "alone": size is None or size >= self.total,
            "quiet": quiet,
            "since": time.monotonic(),
            "what": what,
            "beside": [],
        }
        beside: list[str] = []
        try:
            while (found := self._admit(ticket)) is None:
                waiting()
                time.sleep(_POLL_SECONDS)
            beside += found
            yield beside
        finally:
            with self._ledger() as claims:
                for claim in claims:
                    if claim["id"] == ticket["id"]:
                        beside[:] = claim["beside"]
                claims[:] = [claim for claim in claims if claim["id"] != ticket["id"]]

    def holders(self) -> list[str]:
        """Return who holds some of the budget now, in words."""
        with self._ledger() as claims:
            return [_words(claim) for claim in claims if claim["admitted"]]

    def _admit(self, ticket: dict[str, Any]) -> list[str] | None:
        """Enter a claim if it is new; return what disturbs it if it may go ahead."""
        with self._ledger() as claims:
            if all(claim["id"] != ticket["id"] for claim in claims):
                claims.append({**ticket, "admitted": False})
            ahead = [claim for claim in claims if claim["admitted"]]
            for claim in claims:
                if claim["admitted"]:
                    continue
                fits = self._fits(claim, ahead)
                if claim["id"] == ticket["id"]:
                    if fits:
                        _enter(claim, [other for other in ahead if other["admitted"]])
                    return list(claim["beside"]) if fits else None
                if fits:
                    ahead.append(claim)  # about to be admitted, when its process asks again
                elif self._keeps_others_back(claim):
                    return None
        raise AssertionError("a claim that waits is in the ledger")

    def _fits(self, claim: dict[str, Any], beside: list[dict[str, Any]]) -> bool:
        if not beside:
            return True
        if claim["alone"] or any(other["alone"] for other in beside):
            return False
        if claim["bytes"] + sum(other["bytes"] for other in beside) > self.total:
            return False
        waited = time.monotonic() - claim["since"]
        if claim["quiet"] and waited >= self.patience_s:
            _outlasted.update(other["id"] for other in beside)
        if claim["quiet"] and any(other["id"] not in _outlasted for other in beside):
            return False
        undisturbed = any(other["quiet"] and not other["beside"] for other in beside)
        return claim["quiet"] or not undisturbed or waited >= _HANGS * self.patience_s

    def _keeps_others_back(self, claim: dict[str, Any]) -> bool:
        """Tell whether nobody may overtake a claim that waits: by turns, each twice as long."""
        waited = (time.monotonic() - claim["since"]) / self.patience_s
        return waited < 1 or math.floor(math.log2(waited)) % 2 == 1

    @contextmanager
    def _ledger(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the claims of processes that live; what is changed in the list is written back."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / "ledger.json"
        with FileLock(self.folder / "ledger.lock"):
            claims: list[dict[str, Any]] = []
            with suppress(OSError, ValueError):
                claims = [{**_EMPTY, **claim} for claim in json.loads(path.read_bytes())]
            others = {claim["process"] for claim in claims} - {self._presence}
            gone = {process for process in others if not _lives(self.folder / process)}
            claims = [claim for claim in claims if claim["process"] not in gone]
            yield claims
            path.write_text(json.dumps(claims), encoding="utf-8")  # lost by a crash: empty

    @cached_property
    def _presence(self) -> str:
        """Return the name of this process among those that claim."""
        return _presence(self.folder)


_EMPTY: dict[str, Any] = {"quiet": False, "since": 0.0, "what": "other work", "beside": []}
"""What claims of versions before do not say."""


def _enter(claim: dict[str, Any], beside: list[dict[str, Any]]) -> None:
    """Admit a claim; whoever wanted to be undisturbed, and is not, learns of it."""
    claim["admitted"] = True
    if claim["quiet"]:
        claim["beside"] = [other["what"] for other in beside]
    for other in beside:
        if other["quiet"]:
            other["beside"] = [*other["beside"], claim["what"]]


def _words(claim: dict[str, Any]) -> str:
    process = str(claim["process"]).partition("-")[0]
    return f"{claim['what']} (process {process})"


_outlasted: set[str] = set()
"""Claims that somebody here has waited for in vain."""
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
