"""The artifact: a compressed model as a folder that anyone can load without trusting it.

    FOLDER/
        zoopress.json        manifest: schema version, base model, lineage of stages, structure
                             edits, the form of every tensor, size and SHA-256 of every file
        model.safetensors    tensors; model-00001-of-00002.safetensors … when large
          or model.zpz       the same, entropy coded
        config.json, …       what the architecture and its tokenizer need
        README.md            for people; not listed in the manifest, not needed to load

Loading rebuilds the architecture on the meta device, replays the edits with registered layers, and
fills in one tensor after the other. Nothing in the folder is ever executed or unpickled, and every
name, size and shape is checked before it is used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zoopress.bounds import memory_bytes
from zoopress.coding.zpz import StoredTensor, ZpzReader, write_zpz
from zoopress.edits import Edit, apply_edit, set_tensor, submodule
from zoopress.encoding import KEPT, Alias, Expected, TensorEntry, decode, encode
from zoopress.errors import ArtifactError, PluginError, SourceError, nearest
from zoopress.model import Model
from zoopress.source import Architecture, build_on_meta
from zoopress.store import file_digest, write_atomic

if TYPE_CHECKING:
    from zoopress.plugins import Plugins

MANIFEST = "zoopress.json"
MAX_MANIFEST_BYTES = 64 << 20
MAX_SHARD_BYTES = 5_000_000_000
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".npy", ".pickle", ".pkl", ".pt", ".pth"})


def _safe_name(name: str) -> str:
    parts = name.split("/")
    if not _NAME.fullmatch(name) or ".." in parts or len(name) > 255:
        raise ValueError(f"{name!r} is not a plain file name inside the artifact")
    if Path(name).suffix.lower() in _PICKLES:
        raise ValueError(f"{name!r} may hold a pickle, which can run code; artifacts never do")
    return name


FileName = Annotated[str, AfterValidator(_safe_name)]


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
    """The content of zoopress.json, version 1."""

    format: Literal["zoopress"] = "zoopress"
    version: Literal[1] = 1
    base: Base
    architecture: ArchitectureRecord
    lineage: list[dict[str, Any]] = Field(
        default=[], description="each stage in order: technique, its version, config, what it did"
    )
    storage: Literal["safetensors", "zpz"]
    weights: list[FileName] = Field(description="the files that hold the tensors")
    edits: list[Edit] = []
    tensors: dict[str, TensorEntry]
    files: dict[FileName, FileRecord] = Field(description="every file but this and README.md")


def save_artifact(
    folder: Path,
    model: Model,
    architecture: Architecture,
    base: Base,
    others: Mapping[str, Path],
    lineage: list[dict[str, Any]] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Manifest:
    """Write a model into a folder; the manifest comes last, so a folder without it is no artifact.

    Args:
        folder: an existing folder; nothing in it is overwritten but files of the artifact.
        model: the model.
        architecture: how to rebuild its module.
        base: what it was compressed from.
        others: files to carry along, name in the artifact to path.
        lineage: plain data, an item a stage.
        max_shard_bytes: a safetensors file is split above this size.

    Raises:
        StageError: if a weight that is pruned by a mask is not zero.
    """
    entries, stored = encode(model.tensors(), model.masks, model.code_layouts())
    if model.storage == "zpz":
        weights = ["model.zpz"]
        write_zpz(folder / weights[0], stored)
    else:
        weights = _write_safetensors(folder, stored, max_shard_bytes)
    for name, path in others.items():
        target = folder / _safe_name(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.resolve() != target.resolve():
            shutil.copyfile(path, target)
    manifest = Manifest(
        base=base,
        architecture=ArchitectureRecord(name=architecture.name, arguments=architecture.arguments),
        lineage=lineage or [],
        storage="zpz" if model.storage == "zpz" else "safetensors",
        weights=weights,
        edits=list(model.edits),
        tensors=entries,
        files={
            name: FileRecord(
                bytes=(folder / name).stat().st_size, sha256=file_digest(folder / name)
            )
            for name in sorted({*weights, *others})
        },
    )
    content = manifest.model_dump(mode="json", exclude_none=True)
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    write_atomic(folder / MANIFEST, text)
    return manifest


def read_manifest(folder: Path, verify: bool = True) -> Manifest:
    """Read and check an artifact's manifest and files, without loading a tensor.

    Args:
        folder: the artifact.
        verify: whether to compare every file's SHA-256, too.

    Raises:
        ArtifactError: naming file, field and remedy.
    """
    path = folder / MANIFEST
    try:
        if not folder.is_dir():
            raise ArtifactError(f"{folder}: there is no such folder.")
        if not path.is_file():
            raise ArtifactError(
                f"{folder}: has no {MANIFEST}, so it is not a zoopress artifact, or one whose "
                "writing was cut off. Run the recipe again, or download the whole folder."
            )
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes.")
        data = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(
            f"{path}: is not JSON ({error}); it was damaged or cut off. {_AGAIN}"
        ) from error
    manifest = _parse_manifest(path, data)
    _check_files(folder, manifest, verify)
    return manifest


def load_artifact(
    folder: Path,
    plugins: Plugins,
    factory: Callable[..., nn.Module] | None = None,
    verify: bool = True,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[Model, Architecture, Manifest]:
    """Load an artifact.

    Args:
        folder: the artifact.
        plugins: registered layers and architectures.
        factory: the function that builds the module, for a model that came from a Python factory.
        verify: whether to compare every file's SHA-256 first.
        progress: called with each tensor's name.

    Raises:
        ArtifactError: if it is damaged, hostile or needs a plugin that is not installed.
    """
    manifest = read_manifest(folder, verify)
    architecture = _architecture(folder, manifest, plugins, factory)
    try:
        # An edit makes few tensors of one, so a module can have but few that are not listed.
        module = build_on_meta(architecture, 10_000 + 4 * len(manifest.tensors))
    except SourceError as error:
        raise ArtifactError(f"{folder}: {str(error).rstrip('.')}. {_AGAIN}") from error
    except ArtifactError as error:
        if str(folder) in str(error):
            raise
        raise ArtifactError(f"{folder / MANIFEST}: field 'architecture': {error}") from error
    for i, edit in enumerate(manifest.edits):
        try:
            with torch.device("meta"):
                apply_edit(module, edit, plugins.layers)
        # All that a layer's constructor may raise of arguments that it did not expect.
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise ArtifactError(_bad_edit(folder, i, error)) from error
        except (RuntimeError, AssertionError, PluginError) as error:
            raise ArtifactError(_bad_edit(folder, i, error)) from error
    model = Model(module.eval(), plugins.layers, list(manifest.edits), {}, manifest.storage)
    try:
        _fill(folder, model, manifest, progress)
    except ArtifactError as error:
        raise ArtifactError(f"{folder}: {str(error).rstrip('.')}. {_AGAIN}") from error
    return model, architecture, manifest


def size_bytes(folder: Path, manifest: Manifest) -> int:
    """Return the bytes of all files that loading needs: side information, tokenizer and all."""
    return (folder / MANIFEST).stat().st_size + sum(f.bytes for f in manifest.files.values())


def plain_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of a safetensors file of these tensors, tied ones once, header included."""
    offset = 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in tensors.items():
        if (tensor.data_ptr(), tensor.shape) in seen:
            continue
        seen.add((tensor.data_ptr(), tensor.shape))
        end = offset + tensor.numel() * tensor.itemsize
        offsets = [offset, end]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + offset


_AGAIN = "Download or build it again."


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _bad_edit(folder: Path, position: int, error: Exception) -> str:
    reason = str(error).rstrip(".") or type(error).__name__
    return f"{folder / MANIFEST}: edits[{position}]: {reason}. {_AGAIN}"


def _parse_manifest(path: Path, data: Any) -> Manifest:
    if not isinstance(data, dict) or data.get("format") != "zoopress":
        raise ArtifactError(f"{path}: field 'format' is not 'zoopress'; this is another's file.")
    if data.get("version") != 1:
        raise ArtifactError(
            f"{path}: field 'version' is {data.get('version')!r}; this zoopress reads version 1. "
            "Update zoopress, or compress the model again."
        )
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ArtifactError(f"{path}: field {field!r}: {message}. {_AGAIN}") from None


def _check_files(folder: Path, manifest: Manifest, verify: bool) -> None:
    root = folder.resolve()
    for stray in folder.rglob("*"):
        if stray.is_symlink() and not _stays(stray, root):
            raise ArtifactError(
                f"{stray}: is a link out of the artifact; nothing was opened. Copy the file that "
                "it should be into its place."
            )
        if stray.suffix.lower() in _PICKLES:
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
            raise ArtifactError(f"{path}: is missing. {_AGAIN}")
        size = path.stat().st_size
        if size != record.bytes:
            raise ArtifactError(
                f"{path}: has {size} bytes, not {record.bytes}; it was cut off. {_AGAIN}"
            )
        if verify and file_digest(path) != record.sha256:
            raise ArtifactError(f"{path}: its SHA-256 differs; it was changed. {_AGAIN}")


def _stays(link: Path, root: Path) -> bool:
    """Tell whether a link leads to a place inside the artifact, or is one of the Hub's cache.

    There SNAPSHOT/model.safetensors leads to ../../blobs/DIGEST.
    """
    try:
        target = link.resolve()
    except (OSError, RuntimeError):  # it leads to itself
        return False
    cached = root.parent.name == "snapshots" and target.parent == root.parent.parent / "blobs"
    return cached or target.is_relative_to(root)


def _architecture(
    folder: Path,
    manifest: Manifest,
    plugins: Plugins,
    factory: Callable[..., nn.Module] | None,
) -> Architecture:
    record = manifest.architecture
    try:
        builder = plugins.resolve("architectures", record.name)
    except PluginError as error:
        raise ArtifactError(f"{folder / MANIFEST}: field 'architecture': {error}") from error
    arguments = dict(record.arguments)
    architecture: Architecture = builder(folder, arguments)
    if factory is not None:
        try:
            architecture.use_factory(factory)
        except SourceError as error:
            raise ArtifactError(f"{folder}: {error}") from error
    return architecture


class _Reader(Protocol):
    def names(self) -> list[str]: ...
    def itemsize(self, name: str) -> int: ...
    def read(self, name: str) -> Tensor: ...


class _Safetensors:
    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            with path.open("rb") as stream:
                start = stream.read(2)
            what = f"is not a safetensors file ({error})"
            if start == b"PK" or start[:1] == b"\x80":
                what = "is a pickle under another name; it was not opened"
            raise ArtifactError(f"{path.name}: {what}") from error

    def names(self) -> list[str]:
        return list(self._file.keys())

    def itemsize(self, name: str) -> int:
        bits = re.match("[A-Z]+(\\d+)", self._file.get_slice(name).get_dtype())
        return max(1, int(bits[1]) // 8) if bits else 1

    def read(self, name: str) -> Tensor:
        try:
            # A copy: what safetensors gives lies in the mapped file, unaligned, which crashes
            # some of torch's kernels, and would vanish with the file.
            tensor: Tensor = self._file.get_tensor(name).clone()
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ArtifactError(f"tensor {name!r}: {error}") from error
        return tensor


class _Zpz:
    def __init__(self, reader: ZpzReader) -> None:
        self._reader = reader
        self.names = reader.names
        self.read = reader.read

    def itemsize(self, name: str) -> int:
        dtype: torch.dtype = getattr(torch, self._reader.info(name)[0])
        return dtype.itemsize


@contextmanager
def _open_weights(folder: Path, manifest: Manifest) -> Iterator[dict[str, _Reader]]:
    """Open every tensor file; gives the reader of each stored tensor."""
    with ExitStack() as stack:
        readers: dict[str, _Reader] = {}
        for name in manifest.weights:
            reader: _Reader
            if manifest.storage == "zpz":
                reader = _Zpz(stack.enter_context(ZpzReader(folder / name)))
            else:
                reader = _Safetensors(folder / name)
            for tensor in reader.names():
                if tensor in readers:
                    raise ArtifactError(f"tensor {tensor!r} is stored twice")
                readers[tensor] = reader
        yield readers


def _fill(folder: Path, model: Model, manifest: Manifest, progress: Callable[[str], None]) -> None:
    """Read every tensor into the rebuilt model."""
    expected = {n: Expected(t.shape, t.dtype) for n, t in model.tensors().items()}
    missing = sorted(expected.keys() - manifest.tensors.keys())
    if missing:
        raise ArtifactError(f"the manifest lacks the tensor {missing[0]!r} of the architecture")
    unknown = sorted(manifest.tensors.keys() - expected.keys())
    if unknown:
        raise ArtifactError(
            f"the manifest has a tensor {unknown[0]!r} that the architecture has not."
            f"{nearest(unknown[0], missing or expected)}"
        )
    layouts = model.code_layouts()
    done: dict[str, Tensor] = {}
    with _open_weights(folder, manifest) as readers:
        _check_memory(expected, readers)

        def read(name: str) -> Tensor:
            if name not in readers:
                raise ArtifactError(f"tensor {name!r} is not in {', '.join(manifest.weights)}")
            return readers[name].read(name)

        def get(name: str, depth: int = 0) -> Tensor:
            if name in done:
                return done[name]
            entry = manifest.tensors.get(name)
            if entry is None or depth > 3:
                raise ArtifactError(f"tensor {name!r} is referred to, but not stored")
            if isinstance(entry, Alias):
                tensor = get(entry.of, depth + 1)
                if not expected[name].fits(tensor):
                    raise ArtifactError(f"tensor {name!r} cannot be the same as {entry.of!r}")
                if entry.tied:
                    _set(model.module, name, _get(model.module, entry.of))
                else:
                    _set(model.module, name, tensor.clone())
                if entry.of in model.masks and not entry.tied:  # tied weights share one mask
                    model.masks[name] = model.masks[entry.of]
            else:
                tensor, mask = decode(
                    name,
                    entry,
                    expected[name],
                    layouts.get(name),
                    read,
                    lambda other: get(other, depth + 1),
                )
                _set(model.module, name, tensor)
                if mask is not None:
                    model.masks[name] = mask
            done[name] = tensor
            progress(name)
            return tensor

        for name in expected:
            get(name)


def _check_memory(expected: Mapping[str, Expected], readers: Mapping[str, _Reader]) -> None:
    """Refuse a model that this machine cannot hold, before anything is allocated."""
    needed = 0
    for name, item in expected.items():
        # A float may be stored in a smaller type than the one that its architecture is built in.
        stored = name + KEPT if name + KEPT in readers else name
        small = item.dtype.is_floating_point and stored in readers
        itemsize = readers[stored].itemsize(stored) if small else item.dtype.itemsize
        needed += item.shape.numel() * itemsize
    available = memory_bytes()
    if needed > available:
        raise ArtifactError(
            f"its tensors would take {needed / 1e9:.1f} GB, more than this machine's "
            f"{available / 1e9:.1f} GB of memory; nothing was allocated"
        )


def _get(module: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    owner = submodule(module, path)
    found = owner._parameters.get(attribute)
    tensor = found if found is not None else owner._buffers[attribute]
    assert tensor is not None
    return tensor


def _set(module: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    set_tensor(submodule(module, path), attribute, tensor)


def _write_safetensors(
    folder: Path, stored: Mapping[str, StoredTensor], max_shard_bytes: int
) -> list[str]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, item in stored.items():
        # safetensors refuses tensors that share memory; those that do here are equal in content
        # and were made aliases, so what is left is views, which are copied.
        tensor = item.tensor.detach().contiguous()
        if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.itemsize:
            tensor = tensor.clone()
        if shards[-1] and size + tensor.numel() * tensor.itemsize > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.numel() * tensor.itemsize
    count = len(shards)
    names = ["model.safetensors"]
    if count > 1:
        names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for name, shard in zip(names, shards, strict=True):
        try:
            save_file(shard, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            if code is None:
                raise
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(folder / name)) from error
    return names
