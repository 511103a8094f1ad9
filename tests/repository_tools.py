"""Run git, DVC and zoopress in a folder as a user's shell would, with settings of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOOLS = (str(Path(sys.executable).parent),)
"""Folders that are first on PATH."""
IDENTITY = {
    "GIT_AUTHOR_NAME": "me",
    "GIT_AUTHOR_EMAIL": "me@example.org",
    "GIT_COMMITTER_NAME": "me",
    "GIT_COMMITTER_EMAIL": "me@example.org",
}


def environment(store: Path) -> dict[str, str]:
    """Return the variables under which commands find the tools, a store and nothing of the user."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ZOOPRESS_", "PREFECT_"))}
    return {
        **kept,
        "PATH": os.pathsep.join((*TOOLS, os.environ["PATH"])),
        "ZOOPRESS_STORE": str(store),
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        **IDENTITY,
    }


def attempt(
    folder: Path, *words: str, store: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        words,
        cwd=folder,
        env=environment(store or folder.parent / "store"),
        capture_output=True,
        text=True,
        check=False,
    )


def command(folder: Path, *words: str, store: Path | None = None) -> str:
    """Run a command that must succeed, and return all that it prints."""
    done = attempt(folder, *words, store=store)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def commit_all(folder: Path) -> None:
    """Commit everything there is."""
    command(folder, "git", "add", ".")
    command(folder, "git", "commit", "--quiet", "-m", "all")
