"""Settings that keep Prefect quiet and at home; import this before Prefect. A user's own win."""

from __future__ import annotations

import logging
import os

DEFAULTS = {
    # Errors reach the user through zoopress; Prefect's own log still has everything.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # Two fresh temporary servers at once need longer than the default of 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
logging.getLogger("httpx").setLevel(logging.WARNING)
