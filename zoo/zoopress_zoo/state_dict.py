"""Read state dicts without running what is in them, and put them into modules."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.errors import SourceError
from zoopress_zoo.selection import FORMATS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoopress.sources import Architecture

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict: .safetensors, or .pth, .pt and .bin by torch's weights-only loader.

    Raises:
        SourceError: if the file is damaged, in another format, or needs code to be unpickled.
    """
    return read_checkpoint(path)[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], int]:
    """Read a state dict, and how many bytes of other tensors, an optimizer's say, lie beside it.

    Raises:
        SourceError: if the file is damaged, in another format, or needs code to be unpickled.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix not in FORMATS:
        raise SourceError(f"{path}: a state dict must be in one of {list(FORMATS)}.")
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(path)
            return tensors, 0
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path}: holds more than tensors, and opening it could run code. Save it anew as "
            "`torch.save(model.state_dict(), …)` or, better, with safetensors."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{path}: cannot be read: {reason}. Get an undamaged copy.") from error
    whole = data
    for wrapper in _WRAPPERS:
        if isinstance(data, dict) and isinstance(data.get(wrapper), dict):
            data = data[wrapper]
    if not isinstance(data, dict) or not all(isinstance(v, torch.Tensor) for v in data.values()):
        raise SourceError(f"{path}: is not a state dict, a mapping of names to tensors.")
    return data, _storage_bytes(whole) - _storage_bytes(data)


def _storage_bytes(value: Any) -> int:
    """Return the bytes of all tensors in nested mappings and lists, shared memory once."""
    import torch

    sizes: dict[int, int] = {}

    def add(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, dict):
            for each in item.values():
                add(each)
        elif isinstance(item, (list, tuple)):
            for each in item:
                add(each)

    add(value)
    return sum(sizes.values())


def note_origin(
    architecture: Architecture, module: nn.Module, tensors: dict[str, Tensor], unused_bytes: int
) -> None:
    """Tell an architecture what a module was loaded from.

    Args:
        architecture: of the module.
        module: which was loaded.
        tensors: as `load_into` took them.
        unused_bytes: of other tensors in the files.
    """
    given = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    here = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    architecture.came_as = {
        name: tensor.dtype
        for name, tensor in given.items()
        if name in here and tensor.dtype != here[name].dtype
    }
    architecture.unused_bytes = unused_bytes


def load_into(
    module: nn.Module,
    tensors: dict[str, Tensor],
    origin: Path,
    remedy: str = "Check the card's 'factory' and 'factory_arguments'.",
) -> None:
    """Load a state dict into a module, strictly.

    Args:
        module: takes the tensors.
        tensors: by name; a leading `module.`, as of data parallel training, is dropped.
        origin: the file, for the error.
        remedy: what to do about it, a sentence.

    Raises:
        SourceError: naming what is missing, unexpected or of another shape.
    """
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:6]]
        raise SourceError(
            f"{origin}: does not fit the module: {' '.join(lines)[:600]} {remedy}"
        ) from error
