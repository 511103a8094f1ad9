"""Run a script as somebody does who has the other libraries, and not zoopress."""

from __future__ import annotations

import os
import subprocess
import sys

_BLOCK = """
import sys

sys.meta_path[:] = [
    finder for finder in sys.meta_path
    if not str(getattr(finder, "__module__", "")).startswith("zoopress")
]
for name in [name for name in sys.modules if name.startswith("zoopress")]:
    del sys.modules[name]
for name in ("zoopress", "zoopress_plugins", "zoopress_zoo", "zoopress_flows"):
    sys.modules[name] = None  # importing it fails
"""


def run_without_zoopress(script: str, *arguments: object, **environment: str) -> str:
    """Return what a script prints that cannot import zoopress.

    Args:
        script: Python; it finds the arguments in `sys.argv[1:]`.
        arguments: of the script.
        environment: variables besides those of this process.
    """
    done = subprocess.run(
        [sys.executable, "-c", _BLOCK + script, *map(str, arguments)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
