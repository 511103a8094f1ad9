"""A real Prefect server of a test's own, and processes that use it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

START_SECONDS = 120.0
TOOLS = Path(sys.executable).parent


class PrefectServer:
    """A server with its own home and port.

    Args:
        home: of Prefect: its database and settings.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a process that uses this server, and nobody else's."""
        given = os.environ if base is None else base
        kept = {key: value for key, value in given.items() if not key.startswith("PREFECT_")}
        return {
            **kept,
            "PATH": f"{TOOLS}{os.pathsep}{kept['PATH']}",
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_CLI_PROMPT": "false",
            # Look often: tests do not want to wait as people do.
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        }

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ("--host", "127.0.0.1", "--port", str(self.port), "--no-ui")
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(TOOLS / "prefect"), "server", "start", *options],
                env=self.environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_for(lambda: httpx.get(f"{self.url}/health").status_code == 200, START_SECONDS)

    def kill(self) -> None:
        """Kill it and its children, as `kill -9` does."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def ask(self, path: str, **filters: Any) -> Any:
        """Return what a query of the API answers."""
        answer = httpx.post(f"{self.url}/{path}", json=filters, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def runs(self, flow: str, state: str | None = None) -> list[dict[str, Any]]:
        """Return the runs of a flow, of one type of state if that is given, the newest first."""
        found: list[dict[str, Any]] = self.ask(
            "flow_runs/filter", flows={"name": {"any_": [flow]}}, sort="EXPECTED_START_TIME_DESC"
        )
        return [run for run in found if state in (None, run["state_type"])]

    def wait_for(self, condition: Callable[[], Any], seconds: float) -> Any:
        """Return what a condition returns once that is true.

        Raises:
            AssertionError: if it is not in time.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if found := condition():
                    return found
            except httpx.TransportError:
                pass
            time.sleep(0.3)
        log = (self.home / "server.log").read_text(errors="replace")[-2000:]
        raise AssertionError(f"not within {seconds} s; the server says:\n{log}")


@contextmanager
def prefect_server(home: Path) -> Iterator[PrefectServer]:
    """Run a server for a while."""
    server = PrefectServer(home)
    server.start()
    try:
        yield server
    finally:
        server.kill()
