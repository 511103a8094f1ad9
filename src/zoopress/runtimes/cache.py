"""Files that a runtime makes of an artifact are kept: by content, whole or not at all, checked.

    $ZOOPRESS_CACHE, or the user's cache folder
    └── runtimes/
        └── NAME/
            ├── KEY/            what the runtime wrote
            ├── KEY.json        size and SHA-256 of each of these files
            └── KEY.lock        held while they are made or checked

KEY is the SHA-256 of the artifact's manifest, which names the digest of every file, of the versions
that the runtime gives, and of the types and axes of the example inputs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path
from torch import Tensor

from zoopress.artifacts.manifest import MANIFEST
from zoopress.artifacts.opened import Call, Opened
from zoopress.store import digest, file_digest, write_atomic


def cached(
    artifact: Opened,
    runtime: str,
    versions: Mapping[str, str],
    write: Callable[[Path], None],
) -> Path:
    """Return the folder of what a runtime makes of an artifact, made if it is not there.

    Args:
        artifact: the artifact.
        runtime: the runtime's name.
        versions: all besides the artifact that the files depend on, such as the versions of
            libraries and of the runtime itself.
        write: writes the files into an empty folder; called if they are not there, or damaged.
    """
    root = cache_folder() / "runtimes" / runtime
    root.mkdir(parents=True, exist_ok=True)
    key = digest(
        {
            "artifact": file_digest(artifact.folder / MANIFEST),
            "versions": dict(versions),
            "example": None if artifact.example is None else _signature(artifact.example),
        }
    )
    folder, record = root / key, root / f"{key}.json"
    with FileLock(root / f"{key}.lock"):
        if _is_whole(folder, record):
            return folder
        staging = root / f".{key}"
        for left in (staging, folder):  # of a run that was killed, or damaged
            shutil.rmtree(left, ignore_errors=True)
        staging.mkdir()
        try:
            write(staging)
            os.replace(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        write_atomic(record, json.dumps(_digests(folder), sort_keys=True))
    return folder


def cache_folder() -> Path:
    """Return where caches lie: $ZOOPRESS_CACHE, or a folder of the user's."""
    named = os.environ.get("ZOOPRESS_CACHE")
    return Path(named) if named else user_cache_path("zoopress")


def _is_whole(folder: Path, record: Path) -> bool:
    try:
        expected = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return folder.is_dir() and bool(expected == _digests(folder))


def _digests(folder: Path) -> dict[str, list[object]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): [path.stat().st_size, file_digest(path)]
        for path in files
    }


def _signature(example: Call) -> list[object]:
    """Return types and axes of a call's tensors, without the number of samples."""

    def describe(tensor: Tensor) -> list[object]:
        shape = list(tensor.shape)
        counts_samples = bool(shape) and shape[0] == example.samples
        return [str(tensor.dtype), counts_samples, shape[1:] if counts_samples else shape]

    told = example.map(describe)
    return [list(told.arguments), sorted((name, repr(v)) for name, v in told.named.items())]
