"""A lease: the right to compute a key, among machines that share only files.

The holder writes another content every few seconds. Whoever waits compares what it reads with what
it read before, by its own monotonic clock: a content that stood still for long enough is that of a
dead holder. No two clocks are compared, so none has to be right.

Leases save work; that results are right does not depend on them. A machine that was suspended and
comes back may compute what another has taken over, and both results are whole.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from zoopress.store.remote_files import RemoteFiles, UnreachableError

log = logging.getLogger("zoopress.store")


@dataclass(frozen=True)
class Timing:
    """Seconds between the signs of life of a holder, until it counts as dead, between looks."""

    beat_s: float = 15.0
    dead_after_s: float = 60.0
    look_s: float = 2.0


@contextmanager
def leased(
    files: RemoteFiles, path: str, waiting: Callable[[], None], timing: Timing
) -> Iterator[None]:
    """Hold a lease; without one, if the shared store does not answer.

    Args:
        files: of the shared store.
        path: of the lease.
        waiting: called once if another machine holds it.
        timing: how fast the holder beats and others look.
    """
    holder = uuid.uuid4().hex
    try:
        _take(files, path, holder, waiting, timing)
    except UnreachableError as error:
        log.warning("Working without a lease: %s", error)
        yield
        return
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(files, path, holder, ended, timing), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()  # else it might write the lease again after we removed it
        with suppress(UnreachableError, FileNotFoundError):
            if _holder(files.read(path)) == holder:
                files.remove([path])


def _take(
    files: RemoteFiles, path: str, holder: str, waiting: Callable[[], None], timing: Timing
) -> None:
    told = over = False
    seen, since = b"", time.monotonic()
    while not files.create(path, _content(holder, 0)):
        try:
            content = files.read(path)
        except FileNotFoundError:
            continue  # released between the two
        if content != seen:
            seen, since, over = content, time.monotonic(), False
        elif time.monotonic() - since >= timing.dead_after_s:
            if _end_dead(files, path, seen, again=over):
                continue
            since, over = time.monotonic(), True
        if not told:
            waiting()
            told = True
        time.sleep(timing.look_s)


def _end_dead(files: RemoteFiles, path: str, content: bytes, again: bool) -> bool:
    """Remove the lease of a dead holder, unless another machine is at that already.

    Several may find it dead at once. One that comes late would remove the lease of the first, so
    they agree by a second file, and look at the lease once more when they have that.

    Args:
        files: of the shared store.
        path: of the lease.
        content: what it held when it was found dead.
        again: whether that was tried a while ago, and so whoever was at it died as well.
    """
    mark = f"{path}.ending"
    if not files.create(mark, b"") and not again:
        return False
    try:
        if files.read(path) == content:
            log.warning("Taking over %s: its holder gave no sign of life", path)
            files.remove([path])
        return True
    except FileNotFoundError:
        return True
    finally:
        files.remove([mark])


def _beat(
    files: RemoteFiles, path: str, holder: str, ended: threading.Event, timing: Timing
) -> None:
    count = 0
    while not ended.wait(timing.beat_s):
        count += 1
        try:
            if _holder(files.read(path)) != holder:
                return  # we stood still for too long, and another took over
            files.write(path, _content(holder, count))
        except FileNotFoundError:
            return  # taken over, and ended already
        except UnreachableError:
            continue


def _content(holder: str, count: int) -> bytes:
    return f"{holder} {count}\n".encode()


def _holder(content: bytes) -> str:
    return content.decode(errors="replace").partition(" ")[0]
