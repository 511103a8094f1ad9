"""The server: two listeners on loopback, one for the Hub and one for its store of large files.

    with HubServer() as hub:
        hub.add_user("alice", token="hf_alice")
        hub.create_repo("alice/model", {"config.json": b"{}"})
        ...  # HF_ENDPOINT=hub.endpoint HF_HUB_DISABLE_XET=1
        assert [request.path for request in hub.requests] == [...]

Large files are at another origin, as on the real Hub: its client treats redirects within one origin
otherwise than those that leave it, and must not send its token along.
"""

import contextlib
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from hub_server import account_api, dataset_api, files_api, model_api
from hub_server.faults import Fault, Faults
from hub_server.messages import Request, Response
from hub_server.routes import answer
from hub_server.state import HubState

# The more general patterns come last.
ENDPOINT_MODULES = (account_api, model_api, dataset_api, files_api)

CHUNK = 64 * 1024


class HubServer(HubState):
    """A Hub on loopback, filled and inspected from the thread of the test."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.requests: list[Request] = []
        self._active = 0
        self._idle = threading.Condition()
        super().__init__()
        self._listeners = {site: _Listener(self, site) for site in ("hub", "cdn")}
        self._threads: list[threading.Thread] = []

    @property
    def endpoint(self) -> str:
        return self._listeners["hub"].url

    @property
    def cdn(self) -> str:
        """The origin of large files: of another name, or clients take it for the Hub itself."""
        return self._listeners["cdn"].url.replace("127.0.0.1", "localhost")

    def start(self) -> "HubServer":
        for listener in self._listeners.values():
            thread = threading.Thread(
                target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
            )
            thread.start()
            self._threads.append(thread)
        return self

    def stop(self) -> None:
        """Close the listeners and every connection, and wait for their threads."""
        for listener in self._listeners.values():
            if self._threads:
                listener.shutdown()
            listener.close_connections()
            listener.server_close()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def reset(self) -> None:
        """Forget everything, once requests that are under way have ended."""
        self.faults.clear()
        with self._idle:
            self._idle.wait_for(lambda: self._active == 0, timeout=5)
        super().reset()
        self.requests.clear()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Have `reset` wait, so that no request of one test acts on the next one's state."""
        with self._idle:
            self._active += 1
        try:
            yield
        finally:
            with self._idle:
                self._active -= 1
                self._idle.notify_all()

    def __enter__(self) -> "HubServer":
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def asked(self, path: str = "", method: str | None = None) -> list[Request]:
        """Return the requests so far that fit, as a fault would."""
        probe = Fault("status", path, method, times=None)
        return [request for request in self.requests if probe.fits(request.method, request.target)]


class _Listener(ThreadingHTTPServer):
    daemon_threads = True  # a test run that is broken off must not hang
    request_queue_size = 64

    def __init__(self, hub: HubServer, site: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.site = hub, site
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._open: dict[socket.socket, threading.Thread] = {}
        self._open_lock = threading.Lock()
        self.to_reset: set[socket.socket] = set()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._open_lock:
            self._open[request] = threading.current_thread()
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._open_lock:
                self._open.pop(request, None)

    def close_connections(self) -> None:
        with self._open_lock:
            connections = dict(self._open)
        for connection, thread in connections.items():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=5)

    def shutdown_request(self, request: Any) -> None:
        # Shutting down would say goodbye properly before the reset.
        if request in self.to_reset:
            self.to_reset.discard(request)
            request.close()
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let go of connections that clients broke; show mistakes of our own."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _HangUpError(Exception):
    """The connection ends here, without more of an answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave together
    disable_nagle_algorithm = True
    server: _Listener

    def _serve(self) -> None:
        with self.server.hub.busy():
            self._answer()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _answer(self) -> None:
        split = urlsplit(self.path)
        request = Request(
            self.server.site,
            self.command,
            split.path,
            split.query,
            {name.lower(): value for name, value in self.headers.items()},
        )
        hub = self.server.hub
        hub.requests.append(request)
        fault = hub.faults.take(request.method, request.target)
        try:
            limit = fault.count if fault and fault.kind == "break_upload" else None
            request.body = b"".join(self._body(limit))
            if limit is not None:
                raise _HangUpError
            if fault and fault.kind == "delay":
                hub.faults.wait(fault.seconds)
            if fault and fault.kind == "status":
                response = Response(fault.code, fault.body, dict(fault.headers))
            else:
                response = answer(hub, request)
            if fault and fault.kind == "lose_answer":
                raise _HangUpError
            request.status = response.status
            self._send(*_spoil(response, fault))
        except _HangUpError:
            self.close_connection = True
            if fault and fault.reset:
                self._reset()

    def _body(self, limit: int | None) -> Iterator[bytes]:
        """Read the request's body, or the first `limit` bytes of it."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            source = self._chunks()
        else:
            source = self._plain(int(self.headers.get("Content-Length") or 0))
        read = 0
        for piece in source:
            yield piece
            read += len(piece)
            if limit is not None and read >= limit:
                return

    def _plain(self, length: int) -> Iterator[bytes]:
        while length > 0:
            piece = self.rfile.read(min(length, CHUNK))
            if not piece:
                raise _HangUpError  # the client went away
            length -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _send(self, response: Response, limit: int | None) -> None:
        """Send an answer, or its headers and the first `limit` bytes of its body."""
        self.send_response(response.status)
        for name, value in response.headers.items():
            # Header fields are Latin-1; what isn't is percent-encoded by whoever made it.
            self.send_header(name, value.encode("latin-1", "replace").decode("latin-1"))
        if "Content-Length" not in response.headers and response.status not in (204, 304):
            self.send_header("Content-Length", str(len(response.body)))
        self.send_header("X-Request-Id", f"Root=1-{len(self.server.hub.requests):08x}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body if limit is None else response.body[:limit])
        self.wfile.flush()
        if limit is not None:
            raise _HangUpError

    def _reset(self) -> None:
        """Have the connection closed with a TCP reset rather than properly."""
        # A client that has not read yet would lose even what was sent before.
        time.sleep(0.05)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.to_reset.add(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: tests have the list of requests."""


def _spoil(response: Response, fault: Fault | None) -> tuple[Response, int | None]:
    """Return the answer as a fault leaves it, and after how many bytes it breaks off."""
    if fault is None or response.status >= 300:
        return response, None
    if fault.kind == "flip":
        total = int(response.headers.get("Content-Range", "/-1").rsplit("/", 1)[1])
        size = len(response.body) if total < 0 else total
        place = (fault.count if fault.count >= 0 else size + fault.count) - response.offset
        if 0 <= place < len(response.body):
            body = bytearray(response.body)
            body[place] ^= 0xFF
            response = replace(response, body=bytes(body))
    elif fault.kind == "truncate":
        response = replace(response, body=response.body[: fault.count])
    return response, fault.count if fault.kind == "drop" else None
