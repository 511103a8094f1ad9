"""Fixtures: one server for the test run, emptied for each test. A plugin for pytest.

The client reads its endpoint when it is first imported and makes addresses of it then. So the
server listens from the moment when this is imported, which must be before the client is.
"""

import atexit
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hub_server.server import HubServer

_HOME = tempfile.mkdtemp(prefix="hub-server-")
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class HubFixture(HubServer):
    """The server, with the settings under which a test's client reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = Path(_HOME) / "hub"

    def environment(self, token: str | None = None) -> dict[str, str]:
        """Return the environment for a process of its own that uses this server."""
        env = {name: value for name, value in os.environ.items() if name not in _TOKENS}
        env.update(client_settings(self), HF_HUB_CACHE=str(self.cache))
        env["HF_HOME"] = str(self.cache.parent)
        if token is not None:
            env["HF_TOKEN"] = token
        return env


def client_settings(server: HubServer) -> dict[str, str]:
    """Return the environment variables that lead a client to a server, and nowhere else."""
    return {
        "HF_ENDPOINT": server.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        # A proxy must not get to see requests to loopback.
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


SERVER = HubFixture()


def _begin() -> None:
    client = sys.modules.get("huggingface_hub.constants")
    if client is not None:
        raise RuntimeError(
            f"huggingface_hub was imported before hub_server.fixtures, with the endpoint"
            f" {client.ENDPOINT}: load these fixtures earlier."
        )
    SERVER.start()
    for name in (*_TOKENS, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"):
        os.environ.pop(name, None)
    os.environ.update(client_settings(SERVER), HF_HOME=_HOME)
    atexit.register(shutil.rmtree, _HOME, ignore_errors=True)


_begin()


def pytest_configure(config: pytest.Config) -> None:
    # The client itself still passes `data=` where httpx wants `content=`, for each large file.
    config.addinivalue_line("filterwarnings", "ignore:Use 'content=:DeprecationWarning")


def pytest_unconfigure() -> None:
    if "huggingface_hub" in sys.modules:
        from huggingface_hub import close_session

        close_session()
    SERVER.stop()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubFixture]:
    """An empty Hub, and an empty cache for its client; nobody is logged in."""
    import huggingface_hub.constants as client
    from huggingface_hub.utils import _cache_manager  # keeps a copy of the setting

    home = tmp_path / "huggingface"
    SERVER.reset()
    SERVER.cache = home / "hub"
    monkeypatch.setattr(client, "HF_HUB_CACHE", str(SERVER.cache))
    monkeypatch.setattr(client, "HUGGINGFACE_HUB_CACHE", str(SERVER.cache))
    monkeypatch.setattr(_cache_manager, "HF_HUB_CACHE", str(SERVER.cache))
    monkeypatch.setattr(client, "HF_HOME", str(home))
    monkeypatch.setattr(client, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(client, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setenv("HF_HUB_CACHE", str(SERVER.cache))
    monkeypatch.setenv("HF_HOME", str(home))
    for name in _TOKENS:
        monkeypatch.delenv(name, raising=False)
    _allow_only_loopback(monkeypatch)
    yield SERVER
    SERVER.reset()


@pytest.fixture
def hub_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client meant to wait between tries. It doesn't wait them."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    waits: list[float] = []
    clock = SimpleNamespace(**{**vars(time), "sleep": waits.append})
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", clock)
    return waits


def _allow_only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def check(host: Any) -> None:
        if host not in ("127.0.0.1", "::1", "localhost", None):
            raise RuntimeError(f"A test tried to reach {host}: only loopback is allowed")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        try:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                check(address[0])
        except RuntimeError:
            self.close()  # libraries do so only after errors of the system
            raise
        connect(self, address)

    def guarded_look_up(host: Any, *arguments: Any, **named: Any) -> Any:
        check(host)
        return look_up(host, *arguments, **named)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
