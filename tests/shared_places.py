"""Places for shared stores: memory, a folder, and S3 as a real server on this machine."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from zoopress.store import Store
from zoopress.store.lease import Timing
from zoopress.store.remote_files import Retry

AT_ONCE = Timing(beat_s=0.05, dead_after_s=0.5, look_s=0.02)
ONCE = Retry(attempts=1)
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
needs_s3 = pytest.mark.skipif(
    not (importlib.util.find_spec("s3fs") and importlib.util.find_spec("moto")),
    reason="s3fs or moto is not installed",
)
STORAGES = ["memory", "file", pytest.param("s3", marks=needs_s3)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_server(port: int) -> Iterator[None]:
    """Run a server that speaks S3; what it holds is gone when it ends."""
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, **quiet)  # type: ignore[call-overload]
    try:
        for _ in range(600):
            assert process.poll() is None, "the server ended"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


class SharedPlace:
    """A URL, what lies there, and machines that use it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    @property
    def raw(self) -> tuple[Any, str]:
        """The file system and the path of the store's root, past zoopress."""
        system, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        return system, root

    def machine(self, name: str, url: str | None = None) -> Store:
        """Return the store as a machine sees it that shares nothing but the URL."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ZOOPRESS_STORE_CACHE", str(self.folder / name))
            return Store(url or self.url, timing=AT_ONCE, retry=ONCE)

    def names(self, below: str = "") -> list[str]:
        """Return the files below a folder of the store, relative to it."""
        system, root = self.raw
        start = f"{root}/{below}".rstrip("/")
        return sorted(name[len(start) + 1 :] for name in system.find(start))

    def read(self, name: str) -> bytes:
        system, root = self.raw
        return bytes(system.cat_file(f"{root}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        system, root = self.raw
        if not self.url.startswith(("s3", "memory")):
            system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        system.pipe_file(f"{root}/{name}", content)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    port = free_port()
    with s3_server(port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def shared_place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], SharedPlace]:
    """Return a function that makes a place in a storage, empty and of its own."""

    def make(storage: str) -> SharedPlace:
        name = f"zoo-{time.monotonic_ns()}"
        if storage == "memory":
            return SharedPlace(f"memory://{name}/store", tmp_path)
        if storage == "file":
            return SharedPlace(f"file://{tmp_path}/{name}", tmp_path)
        endpoint = request.getfixturevalue("s3_endpoint")
        for variable, value in {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(variable, value)
        place = SharedPlace(f"s3://{name}/store", tmp_path)
        place.raw[0].mkdir(name)
        return place

    return make
