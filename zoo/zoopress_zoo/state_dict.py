"""Read state dicts without running what is in them, and put them into modules."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.errors import SourceError, cautious
from zoopress_zoo.checkpoint_names import UnclearError, flatten, select
from zoopress_zoo.selection import FORMATS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoopress.sources import Architecture


def read_state_dict(path: Path) -> dict[str, Any]:
    """Read a state dict: .safetensors, or .pth, .pt and .bin by torch's weights-only loader.

    Returns:
        Tensors by dotted names, of dicts within dicts too, and what modules keep besides.

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
            tensors: dict[str, Any] = load_file(path)
            return tensors
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # how to open a program, for one
            data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # Not "from error", here and below: that tells how to open it all the same.
        raise SourceError(f"{path}: {cautious('pickle')}.") from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        if (safe := cautious(str(error))) != str(error):
            raise SourceError(f"{path}: {safe}.") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{path}: cannot be read: {reason}. Get an undamaged copy.") from error
    flat = dict(flatten(data)) if isinstance(data, dict) else {}
    if not any(isinstance(value, torch.Tensor) for value in flat.values()):
        raise SourceError(f"{path}: is not a state dict, a mapping of names to tensors.")
    return flat


def note_origin(
    architecture: Architecture,
    module: nn.Module,
    chosen: Mapping[str, Any],
    stored: Mapping[str, Any],
) -> None:
    """Tell an architecture what a module was loaded from.

    Args:
        architecture: of the module.
        module: which was loaded.
        chosen: what it took, as `load_into` returns it.
        stored: all that the files hold.
    """
    from torch import Tensor

    here = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    architecture.came_as = {
        name: value.dtype
        for name, value in chosen.items()
        if isinstance(value, Tensor) and name in here and value.dtype != here[name].dtype
    }
    architecture.unused_bytes = _storage_bytes(stored) - _storage_bytes(chosen)


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


def load_into(
    module: nn.Module,
    tensors: Mapping[str, Any],
    origin: Path,
    remedy: str = "Check the card's 'factory' and 'factory_arguments'.",
    key: str | None = None,
    rebuild: Callable[[], nn.Module] | None = None,
) -> dict[str, Any]:
    """Load a state dict into a module, strictly.

    Args:
        module: takes the tensors.
        tensors: what `read_state_dict` returns; what has wrapped the module does not matter.
        origin: the file, for the error.
        remedy: what to do about it, a sentence.
        key: which part of the checkpoint to take, if the user says so.
        rebuild: makes the module once more, so that a buffer which the file lacks and the module
            makes itself, such as a table of positions, can be told from one that is learned.

    Returns:
        What the module took, by its own names.

    Raises:
        SourceError: naming what is missing, unexpected or of another shape.
    """
    has = module.state_dict()
    try:
        chosen = select(tensors, has, key)
        left = module.load_state_dict(chosen, strict=False)
        lacking = _not_made(module, left.missing_keys, rebuild)
        unknown = _not_remade(module, chosen, left.unexpected_keys)
    except UnclearError as error:
        raise SourceError(f"{origin}: {error}") from error
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:6]]
        raise SourceError(
            f"{origin}: does not fit the module: {' '.join(lines)[:600]} {remedy}"
        ) from error
    except Exception as error:  # a module's own set_extra_state, or hook on loading
        raise SourceError(
            f"{origin}: does not fit the module: {type(error).__name__}: {error}. {remedy}"
        ) from error
    problems = [
        f"{what} key(s) in state_dict: {_shown(names)}."
        for what, names in (("Missing", lacking), ("Unexpected", unknown))
        if names
    ]
    if problems:
        raise SourceError(f"{origin}: does not fit the module: {' '.join(problems)} {remedy}")
    return chosen


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(f'"{name}"' for name in names[:8]) + more


def _not_made(
    module: nn.Module, missing: Sequence[str], rebuild: Callable[[], nn.Module] | None
) -> list[str]:
    """Return the missing names but for buffers that the module makes itself.

    A buffer that starts as zeros or ones may be what training fills, and a random one is not what
    was trained with.
    """
    from torch import equal

    buffers = dict(module.named_buffers())
    maybe = [name for name in missing if name in buffers and _is_table(buffers[name])]
    again = dict(rebuild().named_buffers()) if maybe and rebuild is not None else {}
    made = {name for name in maybe if name in again and equal(buffers[name], again[name])}
    return [name for name in missing if name not in made]


def _is_table(tensor: Tensor) -> bool:
    """Tell whether values cannot be where learning begins: others than zeros or ones alone."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return len(tensor.unique()) > 1  # a mask, or positions
    return bool(((tensor != 0) & (tensor != 1)).any())


def _not_remade(
    module: nn.Module, chosen: Mapping[str, Any], unexpected: Sequence[str]
) -> list[str]:
    """Return the unexpected names but for buffers that the module makes itself, and equally."""
    from torch import equal

    buffers = dict(module.named_buffers())
    return [
        name
        for name in unexpected
        if name not in buffers
        or buffers[name].shape != chosen[name].shape
        or not equal(buffers[name], chosen[name].to(buffers[name].dtype))
    ]
