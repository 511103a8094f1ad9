"""The files that hold an artifact's tensors: safetensors, in shards when large, or zpz."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zoopress.coding.layout import StoredTensor
from zoopress.errors import ArtifactError
from zoopress.models.on_disk import settled

if TYPE_CHECKING:
    from zoopress.coding.zpz import ZpzReader
    from zoopress.plugins import Plugins

MAX_SHARD_BYTES = 5_000_000_000


class Reader(Protocol):
    """An open file of tensors."""

    def names(self) -> list[str]: ...
    def itemsize(self, name: str) -> int: ...
    def stored_bytes(self, name: str) -> int: ...
    def read(self, name: str) -> Tensor: ...


# What safetensors calls the types that are read here; rarer ones it reads itself.
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


class _Safetensors:
    """A file of which safetensors checks the header, and whose data is read, not mapped.

    The pages of a mapped file count as memory beside the tensors that are copied from them, and
    what lies in them is unaligned, which crashes some of torch's kernels, and vanishes with the
    file. The reading backend of safetensors 0.8 aligns to 16 bytes; torch's kernels ask for 64,
    which torch gives what it allocates itself.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")
            self._stream = path.open("rb", buffering=0)
        except (SafetensorError, OSError) as error:
            with path.open("rb") as stream:
                start = stream.read(2)
            what = f"is not a safetensors file ({error})"
            if start == b"PK" or start[:1] == b"\x80":
                what = "is a pickle under another name; it was not opened"
            raise ArtifactError(f"{path.name}: {what}") from error
        self._starts = self._find_starts()

    def __enter__(self) -> _Safetensors:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def names(self) -> list[str]:
        return list(self._file.keys())

    def itemsize(self, name: str) -> int:
        return max(1, self._bits(name) // 8)

    def stored_bytes(self, name: str) -> int:
        shape: list[int] = self._file.get_slice(name).get_shape()
        return math.prod(shape) * self._bits(name) // 8

    def _bits(self, name: str) -> int:
        found = re.match("[A-Z]+(\\d+)", self._file.get_slice(name).get_dtype())
        return int(found[1]) if found else 8

    def _find_starts(self) -> dict[str, int]:
        """Return where each tensor's bytes begin: safetensors let no gap between them pass."""
        at = 8 + int.from_bytes(self._stream.read(8), "little")
        starts: dict[str, int] = {}
        for name in self._file.offset_keys():
            starts[name] = at
            at += self.stored_bytes(name)
        return starts

    def read(self, name: str) -> Tensor:
        try:
            described = self._file.get_slice(name)
            dtype = _DTYPES.get(described.get_dtype())
            if dtype is None or sys.byteorder == "big":
                rare: Tensor = self._file.get_tensor(name).clone()
                return rare
            tensor = torch.empty(described.get_shape(), dtype=dtype)
            self._read_into(tensor, self._starts[name])
        except (SafetensorError, OSError, RuntimeError, TypeError) as error:
            raise ArtifactError(f"tensor {name!r}: {error}") from error
        return tensor

    def _read_into(self, tensor: Tensor, start: int) -> None:
        if not tensor.numel():  # torch cannot view it as bytes
            return
        left = tensor.reshape(-1).view(torch.uint8).numpy().data
        self._stream.seek(start)
        while left:
            count = self._stream.readinto(left)  # at most 2 GiB in one go
            if not count:
                raise OSError("the file became shorter while it was read")
            left = left[count:]


class _Zpz:
    def __init__(self, reader: ZpzReader) -> None:
        self._reader = reader
        self.names = reader.names
        self.read = reader.read
        self.stored_bytes = reader.stored_bytes
        self.expect = reader.expect

    def itemsize(self, name: str) -> int:
        dtype: torch.dtype = getattr(torch, self._reader.info(name)[0])
        return dtype.itemsize


@contextmanager
def open_tensors(
    folder: Path, storage: str, files: list[str], plugins: Plugins | None = None
) -> Iterator[dict[str, Reader]]:
    """Open every tensor file; gives the reader of each stored tensor.

    Args:
        folder: where they are.
        storage: "safetensors" or "zpz".
        files: their names.
        plugins: where coders are found that a file names; everything installed by default.
    """
    with ExitStack() as stack:
        readers: dict[str, Reader] = {}
        for name in files:
            reader: Reader
            if storage == "zpz":
                from zoopress.coding.entropy_coder import finder
                from zoopress.coding.zpz import ZpzReader

                opened = ZpzReader(folder / name, find_coder=finder(plugins))
                reader = _Zpz(stack.enter_context(opened))
            else:
                reader = stack.enter_context(_Safetensors(folder / name))
            for tensor in reader.names():
                if tensor in readers:
                    raise ArtifactError(f"tensor {tensor!r} is stored twice")
                readers[tensor] = reader
        yield readers


def read_ahead(readers: Mapping[str, Reader], names: Iterable[str]) -> None:
    """Begin to decode tensors that are about to be read, in this order, where that takes time."""
    expected: dict[_Zpz, list[str]] = {}
    for name in names:
        reader = readers.get(name)
        if isinstance(reader, _Zpz):
            expected.setdefault(reader, []).append(name)
    for reader, its_names in expected.items():
        reader.expect(its_names)


def write_tensors(
    folder: Path,
    storage: str,
    stored: Mapping[str, StoredTensor],
    max_shard_bytes: int,
    coder: str = "auto",
    plugins: Plugins | None = None,
) -> list[str]:
    """Write tensors into a folder and return the names of the files.

    Args:
        folder: where to.
        storage: "safetensors" or "zpz".
        stored: the tensors by name.
        max_shard_bytes: a safetensors file is split above this size.
        coder: what codes them in zpz: "auto", or a registered name.
        plugins: where that is found; everything installed by default.

    Raises:
        PluginError: if the coder is not registered, or does not give back what it codes.
    """
    if storage == "zpz":
        from zoopress.coding.named import choose_coder
        from zoopress.coding.zpz import write_zpz

        write_zpz(folder / "model.zpz", stored, coder=choose_coder(coder, plugins))
        return ["model.zpz"]
    return _write_safetensors(folder, stored, max_shard_bytes)


def plain_bytes(
    tensors: Mapping[str, Tensor], came_as: Mapping[str, torch.dtype] | None = None
) -> int:
    """Return the bytes of a safetensors file of these tensors, tied ones once, header included.

    Args:
        tensors: by name.
        came_as: types that they have in the file, where those take fewer bytes than in memory.
    """
    came_as = came_as or {}
    offset = 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    seen: set[tuple[int, torch.Size]] = set()
    for name, tensor in tensors.items():
        if (tensor.data_ptr(), tensor.shape) in seen:
            continue
        seen.add((tensor.data_ptr(), tensor.shape))
        itemsize = min(tensor.itemsize, came_as.get(name, tensor.dtype).itemsize)
        end = offset + tensor.numel() * itemsize
        offsets = [offset, end]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + offset


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
            tensor = settled(tensor.clone())
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
