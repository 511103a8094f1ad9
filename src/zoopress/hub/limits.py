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

    The client throws its session away after some failures, so this is asked before each request.
    A session that somebody else made with limits of theirs stays as it is.
    """
    from huggingface_hub import get_session

    session: Any = get_session()
    timeout = session.timeout
    if timeout.connect is timeout.read is timeout.write is timeout.pool is None:
        session.timeout = _seconds()


def _seconds() -> float:
    from huggingface_hub import constants

    if os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT"):
        return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    return SILENCE_S
