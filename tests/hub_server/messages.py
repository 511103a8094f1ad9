"""Requests and answers, apart from sockets."""

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from hub_server.storage import HubError


@dataclass
class Request:
    """A request as it arrived, and how it was answered.

    Attributes:
        site: `hub`, or `cdn`: the other origin, from which large files come and to which they go.
        headers: names in lower case.
        status: of the answer; `None` where there was none.
    """

    site: str
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes = field(default=b"", repr=False)
    status: int | None = None

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def token(self) -> str | None:
        """The bearer token that was sent."""
        return self.headers.get("authorization", "").removeprefix("Bearer ").strip() or None

    def parameters(self, name: str) -> list[str]:
        values = parse_qs(self.query)
        # Some clients write lists as `expand[]=`.
        return values.get(name, []) + values.get(f"{name}[]", [])

    def parameter(self, name: str) -> str | None:
        return next(iter(self.parameters(name)), None)

    def flag(self, name: str) -> bool:
        return (self.parameter(name) or "").lower() in ("1", "true")

    def json(self) -> dict[str, Any]:
        try:
            data = json.loads(self.body or b"{}")
        except ValueError:
            raise HubError(400, "Invalid JSON body") from None
        if not isinstance(data, dict):
            raise HubError(400, "Invalid JSON body")
        return data


@dataclass
class Response:
    """An answer. `offset` is where in the file the body begins."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    offset: int = 0

    @classmethod
    def json(cls, data: Any, status: int = 200, **headers: str) -> "Response":
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = {"Content-Type": "application/json; charset=utf-8", **named}
        return cls(status, json.dumps(data).encode(), content)

    @classmethod
    def error(cls, error: HubError) -> "Response":
        answer = cls.json({"error": error.message}, error.status)
        answer.headers["X-Error-Message"] = " ".join(error.message.split())
        if error.code:
            answer.headers["X-Error-Code"] = error.code
        if error.commit:
            answer.headers["X-Repo-Commit"] = error.commit
        if error.status == 401:
            answer.headers["WWW-Authenticate"] = (
                'Bearer realm="Authentication required", charset="UTF-8"'
            )
        return answer

    @classmethod
    def redirect(cls, location: str, status: int = 307, **headers: str) -> "Response":
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        text = f"Temporary Redirect. Redirecting to {location}"
        content = {"Content-Type": "text/plain; charset=utf-8", "Location": location, **named}
        return cls(status, text.encode(), content)
