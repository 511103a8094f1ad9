"""Time limits for requests of the Hub's client, which gives many of its own none."""

from __future__ import annotations

import os
from typing import Any

SILENCE_S = 30.0
"""How long a server may say nothing, and a connection take nothing, before a request is given up.

HF_HUB_DOWNLOAD_TIMEOUT, the client's own setting for downloads, sets it for every request.
"""


def limit_requests() -> None:
    """Give the client's requests a limit wherever they have none; it holds for the process.

    The client throws its session away after some failures, so this is asked before each call.
    Limits that somebody gave stay as they are.
    """
    from huggingface_hub import get_session

    session: Any = get_session()
    hooks = session.event_hooks
    if _limit not in hooks.get("request", []):
        session.event_hooks = {**hooks, "request": [*hooks.get("request", []), _limit]}


def _limit(request: Any) -> None:
    # On the request, since many of the client's functions ask for no limit in so many words.
    given = request.extensions.get("timeout") or {}
    if all(given.get(kind) is None for kind in ("connect", "read", "write", "pool")):
        seconds = _seconds()
        limits = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
        request.extensions = {**request.extensions, "timeout": limits}


def _seconds() -> float:
    from huggingface_hub import constants

    if os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT"):
        return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    return SILENCE_S
