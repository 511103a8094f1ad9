"""Hashes of git objects, as git computes them."""

import hashlib
from collections.abc import Mapping


def _object_id(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def blob_id(content: bytes) -> str:
    return _object_id("blob", content)


def tree_ids(blobs: Mapping[str, str]) -> dict[str, str]:
    """Map every folder to the id of its tree; the root is `""`. `blobs` maps paths to blob ids."""
    children: dict[str, dict[str, str | None]] = {"": {}}
    for path, oid in blobs.items():
        folder, name = _split(path)
        children.setdefault(folder, {})[name] = oid
        while folder:
            parent, name = _split(folder)
            children.setdefault(parent, {})[name] = None  # a folder: its id comes later
            folder = parent
    ids: dict[str, str] = {}
    for folder in sorted(children, key=lambda path: -path.count("/") if path else 1):
        entries = []
        for name, blob in children[folder].items():
            is_folder = blob is None
            oid = blob or ids[f"{folder}/{name}" if folder else name]
            # git sorts folders as if their names ended with a slash.
            key = f"{name}/".encode() if is_folder else name.encode()
            mode = b"40000" if is_folder else b"100644"
            entries.append((key, mode + b" " + name.encode() + b"\0" + bytes.fromhex(oid)))
        ids[folder] = _object_id("tree", b"".join(entry for _, entry in sorted(entries)))
    return ids


def commit_id(tree: str, parent: str | None, author: str, seconds: int, message: str) -> str:
    parents = f"parent {parent}\n" if parent else ""
    who = f"{author} <{author}@users.noreply.huggingface.co> {seconds} +0000"
    text = f"tree {tree}\n{parents}author {who}\ncommitter {who}\n\n{message}\n"
    return _object_id("commit", text.encode())


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the small text file that git keeps in place of a large one."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    ).encode()


def _split(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name
