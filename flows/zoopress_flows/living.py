"""Flow runs that live, so that one whose process was killed does not stay Running for ever.

    PREFECT_HOME/zoopress-runs/ID.lock   held as long as the run lives; freed by the kernel
    PREFECT_HOME/zoopress-runs/ID.json   which server it belongs to

Whoever begins a run looks for those that died, and tells their server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

import zoopress_flows.quiet  # noqa: F401  # isort: skip

from filelock import FileLock, Timeout
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_HOME
from prefect.states import Crashed

_DEAD = "Its process ended without a word: it was killed, or the machine went down."


@contextmanager
def living() -> Iterator[None]:
    """Note that this flow run lives, as long as it does; those that died are marked as crashed."""
    lock: FileLock | None = None
    with suppress(Exception):  # what Prefect shows is never worth a failure
        folder = _folder()
        end_the_dead()
        lock = FileLock(folder / f"{flow_run.id}.lock", thread_local=False)
        lock.acquire(timeout=0)
        _note(lock).write_text(json.dumps({"server": PREFECT_API_URL.value()}), encoding="utf-8")
    try:
        yield
    finally:
        if lock is not None:
            _forget(lock)


def end_the_dead() -> list[str]:
    """Mark runs of this machine and this server as crashed whose processes are gone.

    Returns:
        Their ids.

    Raises:
        Exception: of Prefect's, if it does not answer.
    """
    ended = []
    for note in sorted(_folder().glob("*.json")):
        lock = FileLock(note.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            server = json.loads(note.read_bytes()).get("server")
        except (OSError, ValueError):
            server = None
        if server != PREFECT_API_URL.value():
            lock.release()
            continue
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(note.stem)).state
            if state is None or not state.is_final():
                client.set_flow_run_state(note.stem, Crashed(message=_DEAD), force=True)
                ended.append(note.stem)
        _forget(lock)
    return ended


def _folder() -> Path:
    folder = Path(PREFECT_HOME.value()) / "zoopress-runs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _note(lock: FileLock) -> Path:
    return Path(lock.lock_file).with_suffix(".json")


def _forget(lock: FileLock) -> None:
    for path in (_note(lock), Path(lock.lock_file)):
        with suppress(OSError):
            path.unlink()
    lock.release()
