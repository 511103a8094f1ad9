"""The program that a worker process runs; see `workers.py`."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import traceback
from typing import Any

from zoopress.errors import ZoopressError


def main() -> None:
    """Do jobs until there is no more input."""
    # Standard output carries answers; what libraries print goes with the error messages.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    from zoopress.orchestration.jobs import perform

    jobs = _incoming()
    while (job := jobs.get()) is not None:
        try:
            result = perform(json.loads(job), answer)
        except ZoopressError as error:
            answer({"failure": str(error)})
        except MemoryError:
            raise  # ends the process, and is told apart by that
        except Exception as error:
            traceback.print_exc()
            answer({"failure": f"{type(error).__name__}: {error}\n{traceback.format_exc()}"})
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
