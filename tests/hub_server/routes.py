"""The table of endpoints: which function answers which method and path."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from hub_server.messages import Request, Response
from hub_server.state import User
from hub_server.storage import HubError

if TYPE_CHECKING:
    from hub_server.server import HubServer


@dataclass
class Call:
    """What an endpoint works with. `parts` are pieces of the path, unquoted."""

    hub: "HubServer"
    request: Request
    user: User | None
    parts: dict[str, str]

    @property
    def repo_id(self) -> str:
        return self.parts["repo"]


Endpoint = Callable[[Call], Response]

# Lazy: `gpt2/tree/main` is the tree of `gpt2`, not something of `gpt2/tree`.
REPO = r"(?P<repo>[^/]+(?:/[^/]+)??)"
_PLACES = {
    "{repo}": REPO,
    "{revision}": r"(?P<revision>[^/]+)",
    "{name}": r"(?P<name>[^/]+)",
    "{path}": r"(?P<path>.+)",
    "{slug}": r"(?P<slug>[^/]+/[^/]+)",
    "{oid}": r"(?P<oid>[0-9a-f]{64})",
}


@dataclass(frozen=True)
class Route:
    """One line of the table."""

    site: str
    methods: tuple[str, ...]
    pattern: re.Pattern[str]
    endpoint: Endpoint


ROUTES: list[Route] = []


def route(methods: str, path: str, site: str = "hub") -> Callable[[Endpoint], Endpoint]:
    """Register an endpoint. The first that fits answers, so the order of modules counts."""
    expression = re.escape(path).replace(r"\{", "{").replace(r"\}", "}")
    for place, group in _PLACES.items():
        expression = expression.replace(place, group)

    def register(endpoint: Endpoint) -> Endpoint:
        ROUTES.append(Route(site, tuple(methods.split()), re.compile(expression), endpoint))
        return endpoint

    return register


def answer(hub: "HubServer", request: Request) -> Response:
    """Find the endpoint and call it."""
    try:
        for entry in ROUTES:
            match = entry.pattern.fullmatch(request.path)
            if entry.site != request.site or request.method not in entry.methods or not match:
                continue
            parts = {name: unquote(value) for name, value in match.groupdict().items()}
            repo = parts.get("repo")
            with hub.lock:
                user = hub.user_of(request) if request.site == "hub" else None
                if repo in hub.moved and repo not in hub.repos:
                    return _moved(request, match.span("repo"), hub.moved[repo])
                return entry.endpoint(Call(hub, request, user, parts))
        raise HubError(404, "Sorry, we can't find the page you are looking for.")
    except HubError as error:
        return Response.error(error)


def _moved(request: Request, span: tuple[int, int], new: str) -> Response:
    path = request.path[: span[0]] + quote(new) + request.path[span[1] :]
    return Response.redirect(f"{path}?{request.query}" if request.query else path)
