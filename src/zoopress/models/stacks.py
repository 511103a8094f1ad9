"""Stacks: lists of equal blocks, such as the layers of a transformer, and what knows their number.

Blocks may hold their own position (`layer_idx`, by which caches of keys and values are found), and
what they belong to may hold how many there are (`config.num_hidden_layers`), or something of each
(`config.layer_types`). All of that follows when blocks go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from torch import Tensor, nn

Key = TypeVar("Key", bound=Hashable)

COUNTS = frozenset(
    {
        *("num_hidden_layers", "num_layers", "n_layers", "n_layer", "depth"),
        *("num_encoder_layers", "encoder_layers", "num_decoder_layers", "decoder_layers"),
    }
)
"""Names under which modules and configs hold the number of blocks."""
POSITIONS = frozenset({"layer_idx", "layer_index", "layer_id", "block_idx", "block_index"})
"""Names under which modules inside a block hold its position."""
_OF_EACH = re.compile("layer|block")


@dataclass(frozen=True)
class Stack:
    """A list of blocks of one class.

    Attributes:
        path: of the list, "" for the root.
        blocks: its modules, in order.
    """

    path: str
    blocks: tuple[nn.Module, ...]

    def block_path(self, position: int) -> str:
        """Return the path of a block, by the name that it has in the list."""
        return f"{self.path}.{position}" if self.path else str(position)


def find_stacks(module: nn.Module) -> list[Stack]:
    """Return every list of two or more blocks of one class, in the order of the module tree.

    A block is made of several modules: a list of plain layers, or of tables, is no stack.
    """
    return [
        Stack(path, tuple(child.children()))
        for path, child in module.named_modules()
        if is_stack(child) and len(set(map(type, child.children()))) == 1 < len(list(child))
        if all(any(block.children()) and _has_tensors(block) for block in child.children())
    ]


def outermost(stacks: Sequence[Stack]) -> list[Stack]:
    """Leave out the stacks that are part of another one's blocks."""
    return [
        stack
        for stack in stacks
        if not any(_inside(stack.path, other.path) for other in stacks if other is not stack)
    ]


def is_stack(module: nn.Module) -> bool:
    """Tell whether a module is a list whose children are called 0, 1, 2, …."""
    known = isinstance(module, (nn.ModuleList, nn.Sequential))
    return known and list(module._modules) == list(map(str, range(len(module._modules))))


def keep_blocks(
    owners: Sequence[nn.Module], stack: nn.Module, path: str, indices: Sequence[int]
) -> None:
    """Remove all other blocks of a list, and let what knows their number or position follow.

    Args:
        owners: the modules around the list, the root first.
        stack: the list.
        path: of the list; tells a decoder's layers from an encoder's.
        indices: which blocks to keep.

    Raises:
        ValueError: if the module is no list, or the indices are not some of its positions in order.
    """
    if not is_stack(stack):
        raise ValueError(f"{path!r} is no list of blocks called 0, 1, 2, …")
    before = len(stack._modules)
    rising = all(a < b for a, b in pairwise(indices))
    if not indices or not rising or indices[0] < 0 or indices[-1] >= before:
        raise ValueError(
            f"{path!r} has {before} blocks; to keep are some of 0 to {before - 1} in rising "
            f"order, not {list(indices)}"
        )
    blocks = list(stack._modules.values())
    holders = _positions(blocks)
    stack._modules.clear()
    for position, index in enumerate(indices):
        stack._modules[str(position)] = blocks[index]
        for module, name in holders[index]:
            setattr(module, name, position)
    for settings in _settings(owners):
        _follow(settings, path, before, indices)


def _positions(blocks: Sequence[nn.Module | None]) -> list[list[tuple[nn.Module, str]]]:
    """Return, for each block, the modules within that hold its position, and the name there."""
    return [
        [
            (module, name)
            for module in (block.modules() if block is not None else ())
            for name in POSITIONS & vars(module).keys()
            if type(vars(module)[name]) is int and vars(module)[name] == index
        ]
        for index, block in enumerate(blocks)
    ]


def _settings(owners: Sequence[nn.Module]) -> Iterator[dict[str, Any]]:
    """Yield the attributes of modules, and of the configs that they hold, each once."""
    seen: set[int] = set()
    for owner in owners:
        for item in (owner, vars(owner).get("config")):
            if hasattr(item, "__dict__") and id(item) not in seen:
                seen.add(id(item))
                yield vars(item)


def _follow(settings: dict[str, Any], path: str, before: int, indices: Sequence[int]) -> None:
    """Set what counts the blocks, and shorten what lists something of each."""
    counts = {n for n in COUNTS & settings.keys() if settings[n] == before}
    # One config may count an encoder's layers and a decoder's.
    of_decoder = {name for name in counts if "decoder" in name}
    counts = of_decoder if "decoder" in path and of_decoder else counts - of_decoder
    for name in counts:
        settings[name] = len(indices)
    for name, value in settings.items():
        if isinstance(value, (list, tuple)) and len(value) == before and _OF_EACH.search(name):
            settings[name] = type(value)(value[index] for index in indices)


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _inside(path: str, other: str) -> bool:
    return path.startswith(f"{other}.") if other else path != ""


@contextmanager
def watched(
    modules: Mapping[Key, nn.Module], look: Callable[[Key, Tensor | None, Tensor | None], None]
) -> Iterator[None]:
    """Report the hidden state that goes into modules and the one that comes out, at each run.

    It is the first tensor of what a module takes and returns.
    """

    def hook(key: Key) -> Callable[..., None]:
        def watch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            look(key, _first_tensor((*args, kwargs)), _first_tensor(output))

        return watch

    with ExitStack() as hooks:
        for key, module in modules.items():
            handle = module.register_forward_hook(hook(key), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        return next((t for t in map(_first_tensor, value) if t is not None), None)
    return value if isinstance(value, Tensor) else None
