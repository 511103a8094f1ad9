"""Faults on demand: what goes wrong, on which requests, how many times.

A request meets at most one fault, the first added that still has turns and fits.
"""

import re
import threading
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["status", "delay", "drop", "lose_answer", "flip", "truncate", "break_upload"]


@dataclass
class Fault:
    """One thing that goes wrong. Make it with the class methods.

    Attributes:
        path: a regular expression, searched in path and query as they were sent.
        method: an HTTP method; every one where it is `None`.
        times: on how many requests; on all of them where it is `None`.
        hits: on how many requests it was so far.
    """

    kind: Kind
    path: str = ""
    method: str | None = None
    times: int | None = 1
    code: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    count: int = 0
    reset: bool = False
    seconds: float = 0.0
    hits: int = 0

    @classmethod
    def status(
        cls,
        code: int,
        *,
        path: str = "",
        method: str | None = None,
        times: int | None = 1,
        retry_after: int | None = None,
        body: bytes | str | None = None,
        headers: dict[str, str] | None = None,
    ) -> "Fault":
        """Answer with a status code; the request isn't carried out."""
        headers = dict(headers or {})
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        if body is None:
            body = f"<html><body>{code}</body></html>"  # proxies answer with HTML, not with JSON
            headers.setdefault("Content-Type", "text/html")
        content = body.encode() if isinstance(body, str) else body
        return cls("status", path, method, times, code=code, headers=headers, body=content)

    @classmethod
    def rate_limit(
        cls,
        seconds: int,
        *,
        path: str = "",
        method: str | None = None,
        times: int | None = 1,
        ietf: bool = False,
    ) -> "Fault":
        """Answer 429, with `Retry-After` or with the `RateLimit` headers that the Hub sends."""
        if ietf:
            headers = {
                "RateLimit": f'"api";r=0;t={seconds}',
                "RateLimit-Policy": '"fixed window";"api";q=500;w=300',
            }
        else:
            headers = {"Retry-After": str(seconds)}
        return cls.status(429, path=path, method=method, times=times, headers=headers)

    @classmethod
    def delay(
        cls, seconds: float, *, path: str = "", method: str | None = None, times: int | None = 1
    ) -> "Fault":
        """Wait before the request is carried out."""
        return cls("delay", path, method, times, seconds=seconds)

    @classmethod
    def drop(
        cls,
        after_bytes: int,
        *,
        reset: bool = False,
        path: str = "",
        method: str | None = "GET",
        times: int | None = 1,
    ) -> "Fault":
        """Close the connection after so many bytes of the body: cleanly, or with a TCP reset."""
        return cls("drop", path, method, times, count=after_bytes, reset=reset)

    @classmethod
    def lose_answer(
        cls,
        *,
        reset: bool = False,
        path: str = "",
        method: str | None = None,
        times: int | None = 1,
    ) -> "Fault":
        """Carry the request out, then close the connection without an answer."""
        return cls("lose_answer", path, method, times, reset=reset)

    @classmethod
    def flip(
        cls, offset: int, *, path: str = "", method: str | None = "GET", times: int | None = 1
    ) -> "Fault":
        """Invert the byte at this offset of the file; from the end where negative."""
        return cls("flip", path, method, times, count=offset)

    @classmethod
    def truncate(
        cls, length: int, *, path: str = "", method: str | None = "GET", times: int | None = 1
    ) -> "Fault":
        """Send a shorter body whose `Content-Length` is right for what is sent."""
        return cls("truncate", path, method, times, count=length)

    @classmethod
    def break_upload(
        cls,
        after_bytes: int,
        *,
        reset: bool = False,
        path: str = "",
        method: str | None = "PUT",
        times: int | None = 1,
    ) -> "Fault":
        """Close the connection after so many bytes of the request's body."""
        return cls("break_upload", path, method, times, count=after_bytes, reset=reset)

    def fits(self, method: str, path: str) -> bool:
        if self.times is not None and self.hits >= self.times:
            return False
        return self.method in (None, method) and re.search(self.path, path) is not None


class Faults:
    """The faults that a server has in store, in the order in which they were added."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._cleared = threading.Event()

    def add(self, *faults: Fault) -> Fault:
        """Add faults; return the last, whose `hits` tells later how often it struck."""
        with self._lock:
            for fault in faults:
                fault.hits = 0
            self._faults.extend(faults)
        return faults[-1]

    def clear(self) -> None:
        """Forget all faults; delays that are under way end."""
        with self._lock:
            self._faults.clear()
            self._cleared.set()
            self._cleared = threading.Event()

    def wait(self, seconds: float) -> None:
        self._cleared.wait(seconds)

    def take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.fits(method, path):
                    fault.hits += 1
                    return fault
        return None
