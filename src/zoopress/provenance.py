"""Where a run happened: the commit that reproduces it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

COMMIT_KEYS = frozenset({"commit", "repository", "changed"})
"""What `git_state` returns."""


def git_state(folder: Path) -> dict[str, str]:
    """Return `commit`, and `repository` and `changed` where they apply, of a folder under git.

    `repository` is the address of the remote "origin" without user and password. `changed` says
    that tracked files differ from the commit. Empty if there is no git or no commit.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    state = {"commit": commit}
    if origin := _git(folder, "remote", "get-url", "origin"):
        state["repository"] = _without_credentials(origin)
    if _git(folder, "status", "--porcelain", "--untracked-files=no"):
        state["changed"] = "yes"
    return state


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _without_credentials(address: str) -> str:
    parts = urlsplit(address)
    if not parts.scheme or not parts.hostname:
        return address
    host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
