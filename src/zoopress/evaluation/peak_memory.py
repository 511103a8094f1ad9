"""The most memory that this process had."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path


def peak_bytes() -> int:
    """Return the most memory that this process had."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
        if found:
            return int(found[1]) << 10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def forget_peak() -> int:
    """Forget how much memory this process once had, and return how much it has."""
    with suppress(OSError):  # Linux alone can
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_bytes()
