"""The program that a worker process runs; see `workers.py`."""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import Any

from zoopress.errors import HubError, SourceError, StoreError, ZoopressError

MAY_PASS = (SourceError, HubError, StoreError)
"""What a network or a disk may be to blame for, so that another try is worth it."""


def main() -> None:
    """Do jobs until there is no more input."""
    # Standard output carries answers; what libraries print goes with the error messages.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    faulthandler.enable()  # what crashes says where
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1)  # and what takes too long

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    from zoopress.orchestration.jobs import cpu_seconds, perform

    jobs = _incoming()
    while (job := jobs.get()) is not None:
        start = cpu_seconds()
        try:
            result = perform(json.loads(job), answer)
        except MemoryError:
            raise  # ends the process, and is told apart by that
        except Exception as error:
            known = isinstance(error, ZoopressError)
            text = str(error)
            if not known:
                traceback.print_exc()
                text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            took = cpu_seconds() - start
            may_pass = isinstance(error, MAY_PASS) or not known
            answer({"failure": text, "may_pass": may_pass, "cpu_seconds": took})
        else:
            answer({"result": result})


def _incoming() -> queue.SimpleQueue[bytes | None]:
    """Return a queue of lines; ends the process when whoever wrote them is gone."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            lines.put(line)
        os._exit(0)  # at once, also in the middle of a job: the store can bear it

    threading.Thread(target=read, daemon=True).start()
    return lines


if __name__ == "__main__":
    main()
