"""The manifest of an artifact, zoopress.json: what it says, and its checks before it is used.

It counts as part of the compressed model, so it is short: edits and forms of tensors are written in
groups (`manifest_groups.py`), and a tensor that is stored as it is has no entry. `Manifest` holds
them one by one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from zoopress.artifacts.forms import TensorEntry
from zoopress.artifacts.manifest_groups import (
    group_edits,
    group_tensors,
    ungroup_edits,
    ungroup_tensors,
)
from zoopress.artifacts.requirements import Requirement
from zoopress.errors import ArtifactError
from zoopress.models.edit_records import Edit, layers_of
from zoopress.plugins import Registry
from zoopress.store import file_digest

MANIFEST = "zoopress.json"
AGAIN = "Download or build it again."
VERSION = 2
MAX_MANIFEST_BYTES = 16 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".npy", ".pickle", ".pkl", ".pt", ".pth"})


def safe_name(name: str) -> str:
    """Return a file's name if it stays inside the artifact and cannot be a pickle.

    Raises:
        ValueError: if not.
    """
    parts = name.split("/")
    if not _NAME.fullmatch(name) or ".." in parts or len(name) > 255:
        raise ValueError(f"{name!r} is not a plain file name inside the artifact")
    if Path(name).suffix.lower() in PICKLES:
        raise ValueError(f"{name!r} may hold a pickle, which can run code; artifacts never do")
    return name


FileName = Annotated[str, AfterValidator(safe_name)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Part):
    """Size and digest of a file."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Base(_Part):
    """The model that this one was compressed from."""

    name: str
    source: str
    revision: str
    size_bytes: int = Field(ge=0, description="all its files together")
    task: str
    base_model: str | None = None
    license: str | None = None


class ArchitectureRecord(_Part):
    """How to rebuild the module without weights."""

    name: str
    arguments: dict[str, Any] = {}


class Manifest(_Part):
    """The content of zoopress.json, version 2."""

    format: Literal["zoopress"] = "zoopress"
    version: Literal[2] = 2
    base: Base
    architecture: ArchitectureRecord
    lineage: list[dict[str, Any]] = Field(
        default=[], description="each stage in order: technique, its version, config, what it did"
    )
    storage: Literal["safetensors", "zpz"]
    coder: str | None = Field(
        default=None,
        pattern=r"^[a-z][a-z0-9_]{0,63}$",
        description="what zpz is coded by, where that was not left to the format",
    )
    weights: list[FileName] = Field(description="the files that hold the tensors")
    edits: list[Edit] = []
    tensors: dict[str, TensorEntry] = Field(
        default={}, description="forms of tensors that are not stored as they are"
    )
    files: dict[FileName, FileRecord] = Field(description="every file but this and README.md")
    requires: list[Requirement] = Field(
        default=[], description="what loading needs of other distributions than zoopress"
    )
    native: Literal[True] | None = Field(
        default=None, description="set if the library that the model comes from can load it, too"
    )

    def to_json(self) -> str:
        """Return the text of zoopress.json."""
        data = {
            **self.model_dump(mode="json", exclude_none=True),
            "edits": group_edits(self.edits),
            "tensors": group_tensors(self.tensors),
        }
        for field in ("lineage", "edits", "tensors", "requires"):
            if not data[field]:
                del data[field]
        return json.dumps(data, separators=(",", ":"), allow_nan=False)

    def weight_bytes(self) -> int:
        """Return the bytes of the tensor files."""
        return sum(self.files[name].bytes for name in self.weights)

    def loads_as(self) -> dict[str, Any]:
        """Return what people need to know to load the model."""
        name = self.architecture.arguments.get("class")
        known = {"class": name} if isinstance(name, str) else {}
        needed = [each.model_dump() for each in self.requires]
        return {
            "architecture": self.architecture.name,
            **known,
            "native": bool(self.native),
            **({"requires": needed} if needed else {}),
        }

    def uses(self) -> dict[Registry, list[str]]:
        """Return what loading looks up by name, by registry."""
        return {
            "architectures": [self.architecture.name],
            "layers": layers_of(self.edits),
            "entropy_coders": [self.coder] if self.coder is not None else [],
        }


def read_manifest(folder: Path, verify: bool = True) -> Manifest:
    """Read and check an artifact's manifest and files, without loading a tensor.

    Args:
        folder: the artifact.
        verify: whether to compare every file's SHA-256, too.

    Raises:
        ArtifactError: naming file, field and remedy.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: there is no such folder.")
    if not path.is_file():
        raise ArtifactError(
            f"{folder}: has no {MANIFEST}, so it is not a zoopress artifact, or one whose "
            "writing was cut off. Run the recipe again, or download the whole folder."
        )
    manifest = parse_manifest(path)
    _check_files(folder, manifest, verify)
    return manifest


def parse_manifest(path: Path) -> Manifest:
    """Read and check a manifest alone.

    Raises:
        ArtifactError: naming file, field and remedy.
    """
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes.")
        data = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(
            f"{path}: is not JSON ({error}); it was damaged or cut off. {AGAIN}"
        ) from error
    return _validate(path, data)


def size_bytes(folder: Path, manifest: Manifest) -> int:
    """Return the bytes of all files that loading needs: side information, tokenizer and all."""
    return (folder / MANIFEST).stat().st_size + sum(f.bytes for f in manifest.files.values())


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _validate(path: Path, data: Any) -> Manifest:
    if not isinstance(data, dict) or data.get("format") != "zoopress":
        raise ArtifactError(f"{path}: field 'format' is not 'zoopress'; this is another's file.")
    if data.get("version") != VERSION:
        raise ArtifactError(
            f"{path}: field 'version' is {data.get('version')!r}; this zoopress reads version "
            f"{VERSION}. Update zoopress, or compress the model again."
        )
    for field, ungroup in (("edits", ungroup_edits), ("tensors", ungroup_tensors)):
        try:
            data = {**data, field: ungroup(data.get(field, []))}
        except ValueError as error:
            raise _bad_field(path, field, str(error)) from None
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise _bad_field(path, field, first["msg"].removeprefix("Value error, ")) from None


def _bad_field(path: Path, field: str, message: str) -> ArtifactError:
    return ArtifactError(f"{path}: field {field!r}: {message}. {AGAIN}")


def _check_files(folder: Path, manifest: Manifest, verify: bool) -> None:
    root = folder.resolve()
    # In the Hub's cache lies whatever other programs fetched of the repository, too.
    cached = any(parent.name == "snapshots" for parent in root.parents)
    for stray in (folder / name for name in manifest.files) if cached else folder.rglob("*"):
        if stray.is_symlink() and not _stays(stray, root):
            raise ArtifactError(
                f"{stray}: is a link out of the artifact; nothing was opened. Copy the file that "
                "it should be into its place."
            )
        if stray.suffix.lower() in PICKLES:
            raise ArtifactError(
                f"{stray}: may hold a pickle, which can run code when it is opened. zoopress "
                "never writes one; nothing was opened. Remove the file if you trust the rest."
            )
    suffix = f".{manifest.storage}"
    for name in manifest.weights:
        if name not in manifest.files or not name.endswith(suffix) or "/" in name:
            raise ArtifactError(
                f"{folder / MANIFEST}: field 'weights': {name!r} must be a listed {suffix} file."
            )
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path}: is missing. {AGAIN}")
        size = path.stat().st_size
        if size != record.bytes:
            raise ArtifactError(
                f"{path}: has {size} bytes, not {record.bytes}; it was cut off. {AGAIN}"
            )
        if verify and file_digest(path) != record.sha256:
            raise ArtifactError(f"{path}: its SHA-256 differs; it was changed. {AGAIN}")


def _stays(link: Path, root: Path) -> bool:
    """Tell whether a link leads to a place inside the artifact, or is one of the Hub's cache.

    There SNAPSHOT/model.safetensors leads to ../../blobs/DIGEST.
    """
    try:
        target = link.resolve()
    except (OSError, RuntimeError):  # it leads to itself
        return False
    snapshots = next((p for p in root.parents if p.name == "snapshots"), None)
    cached = snapshots is not None and target.parent == snapshots.parent / "blobs"
    return cached or target.is_relative_to(root)
