"""Names that tell repositories apart on one Prefect server."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from zoopress.provenance import ask_git
from zoopress_flows.watching import artifact_key


def repository_name(folder: Path) -> str:
    """Return a name for a folder with a zoo: its own, and a short digest.

    The digest is of where it lies, of its remote "origin" and of its first commit: two clones on
    one machine differ, and so do two repositories of one name on two machines. What is not under
    git goes by its path.
    """
    root = folder.expanduser().resolve()
    first = ask_git(root, "rev-list", "--max-parents=0", "HEAD").split()
    remote = ask_git(root, "config", "--get", "remote.origin.url")
    identity = "\n".join([str(root), remote, *sorted(first)])
    name = artifact_key(root.name)[:30] or "zoo"
    return f"{name}-{sha256(identity.encode()).hexdigest()[:8]}"
