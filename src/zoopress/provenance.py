"""Where a run happened: the commit that reproduces it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

COMMIT_KEYS = frozenset({"commit", "repository", "changed"})
"""What `git_state` returns."""
LOCK = "dvc.lock"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def git_state(folder: Path) -> dict[str, str]:
    """Return `commit`, and `repository` and `changed` where they apply, of a folder under git.

    `repository` is the address of the remote "origin" without user and password. `changed` says
    that tracked files differ from the commit. Empty if there is no git or no commit.
    """
    commit = ask_git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    state = {"commit": commit, **_origin(folder)}
    if ask_git(folder, "status", "--porcelain", "--untracked-files=no"):
        state["changed"] = "yes"
    return state


def versioned_state(run: Path, artifact_sha256: str) -> dict[str, str]:
    """Return `commit` and `repository` of a commit that has a run's report and its DVC lock.

    Args:
        run: a folder with `report.json`.
        artifact_sha256: of the artifact that the report is about.

    Returns:
        The commit that last changed the report, else the newest one; empty if in neither the lock
        names this artifact and the report is the one on disk.
    """
    report = run / "report.json"
    blob = ask_git(run, "hash-object", "--", str(report.absolute()))
    inside = ask_git(run, "rev-parse", "--show-prefix") + report.name
    for commit in (
        ask_git(run, "log", "-1", "--format=%H", "--", report.name),
        ask_git(run, "rev-parse", "HEAD"),
    ):
        same = commit and blob and ask_git(run, "rev-parse", f"{commit}:{inside}") == blob
        if same and lock_names(run, commit, artifact_sha256):
            return {"commit": commit, **_origin(run)}
    return {}


def lock_names(folder: Path, commit: str, artifact_sha256: str) -> bool | None:
    """Tell whether DVC's lock at a commit names an artifact.

    The lock knows outputs by MD5; which of them is the artifact, the report beside it says, which
    is in git and, where the lock has it, compared with that.

    Args:
        folder: in a repository.
        commit: of that repository.
        artifact_sha256: of the artifact's zoopress.json.

    Returns:
        None if there is no such commit here.
    """
    # The name of a commit may come from a stranger's page, and must not be an option of git's.
    if not _COMMIT.fullmatch(commit) or not ask_git(folder, "cat-file", "-t", commit):
        return None
    options = ("-l", "--full-name", "-F", artifact_sha256)
    found = ask_git(folder, "grep", *options, commit, "--", ":(top,glob)**/report.json")
    reports = [PurePosixPath(line.partition(":")[2]) for line in found.splitlines()]
    return any(_is_locked(folder, commit, report, artifact_sha256) for report in reports)


def _is_locked(folder: Path, commit: str, report: PurePosixPath, artifact_sha256: str) -> bool:
    text = _run_git(folder, "show", f"{commit}:{report}")
    try:
        if json.loads(text)["artifact_sha256"] != artifact_sha256:
            return False  # the digest stands elsewhere in it
    except (ValueError, LookupError, TypeError):
        return False
    for place in report.parents:
        outputs = _locked_outputs(_run_git(folder, "show", f"{commit}:{place / LOCK}"), place)
        if outputs:
            known = outputs.get(report)
            intact = known is None or known == hashlib.md5(text, usedforsecurity=False).hexdigest()
            return report.parent / "artifact" in outputs and intact
    return False


def _locked_outputs(lock: bytes, place: PurePosixPath) -> dict[PurePosixPath, str]:
    """Return the MD5 of every output that a lock names, by its path in the repository."""
    import yaml

    try:
        stages: Mapping[str, Any] = yaml.safe_load(lock)["stages"]
        outputs = [output for stage in stages.values() for output in stage.get("outs", ())]
        return {place / output["path"]: str(output.get("md5", "")) for output in outputs}
    except (yaml.YAMLError, LookupError, TypeError, AttributeError):
        return {}


def shared_address(repository: str | None) -> str | None:
    """Return a git remote without user and password if others can reach it, not one on a disk."""
    address = _without_credentials(repository or "")
    if re.fullmatch(r"https?://[\w.-]+(:\d+)?/\S*", address):
        return address
    over_ssh = re.fullmatch(r"(?:ssh://(?:[^@/\s]+@)?|[^@/\s]+@)([\w.-]+[:/][\w.~/-]+)", address)
    return over_ssh[1] if over_ssh else None


def install_place(distribution: str) -> str | None:
    """Return what pip takes to install a distribution again as it is installed here.

    Returns:
        "git+https://…@COMMIT" or "https://…" where it came from such a place; the address of its
        git remote for a folder; its bare name where an installer took it from an index. None if no
        place is known that others can reach.

    Source: PEP 610, `direct_url.json`.
    """
    try:
        found = metadata.distribution(distribution)
        recorded = found.read_text("direct_url.json")
        installer = (found.read_text("INSTALLER") or "").strip()
        origin = json.loads(recorded) if recorded else None
    except (metadata.PackageNotFoundError, OSError, ValueError):
        return None
    if origin is None:
        return distribution if installer else None
    url = str(origin.get("url", "")) if isinstance(origin, dict) else ""
    if isinstance(version := origin.get("vcs_info"), dict):
        address = shared_address(url)
        commit = version.get("commit_id")
        at = f"@{commit}" if commit and _COMMIT.fullmatch(str(commit)) else ""
        return f"{version.get('vcs', 'git')}+{_as_url(url)}{at}" if address else None
    if url.startswith("file://"):
        folder = Path(unquote(urlsplit(url).path))
        remote = ask_git(folder, "remote", "get-url", "origin") if folder.is_dir() else ""
        return f"git+{_as_url(remote)}" if shared_address(remote) else None
    return _without_credentials(url) if url.startswith(("https://", "http://")) else None


def update_line(distribution: str) -> str:
    """Return what updates a distribution, from where it was installed here."""
    place = install_place(distribution)
    if place is None:
        return "install it again from where it came"
    if place == distribution:
        return f"pip install --upgrade {distribution}"
    newest = re.sub(r"@[0-9a-f]{40,64}$", "", place)
    return f"pip install --upgrade '{distribution} @ {newest}'"


def _as_url(address: str) -> str:
    """Return a git remote as pip takes it, without user and password."""
    if "://" in address:
        kept = "git@" if address.startswith("ssh://") else ""
        parts = urlsplit(_without_credentials(address))
        return urlunsplit((parts.scheme, kept + parts.netloc, parts.path, "", ""))
    host, _, path = address.partition(":")
    return f"ssh://git@{host.rpartition('@')[2]}/{path}"


def ask_git(folder: Path, *arguments: str) -> str:
    """Return what git answers, "" if it fails or is not there."""
    return _run_git(folder, *arguments).decode(errors="replace").strip()


def _run_git(folder: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""


def _origin(folder: Path) -> dict[str, str]:
    origin = ask_git(folder, "remote", "get-url", "origin")
    return {"repository": _without_credentials(origin)} if origin else {}


def _without_credentials(address: str) -> str:
    parts = urlsplit(address)
    if not parts.scheme or not parts.hostname:
        return address
    host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
