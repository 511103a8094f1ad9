"""What a compressed model needs so that transformers opens it: with zoopress, or without.

Without, where config.json can say all that was done: fewer layers, every layer of a kind pruned to
one smaller size, weights in a smaller float type. Else config.json names zoopress as the quantizer,
and an empty file of tensors lets transformers begin, which then leaves the rest to the quantizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.models.edits import Edit, Keep, Resize
from zoopress.models.stacks import POSITIONS
from zoopress.sources import Companions
from zoopress_zoo.transformers_config import make_config, read_config

if TYPE_CHECKING:
    import torch
    from torch import nn

    from zoopress.models.model import Model

QUANTIZER = "zoopress"
EMPTY = "empty.safetensors"
_MOST_TRIES = 24
_OF_NO_MATTER = frozenset({"training", "name_or_path"})
_Config = dict[str, Any]


def companions(
    model: Model,
    core: nn.Module,
    prefix: str,
    config_file: Path,
    others: Mapping[str, Path],
) -> Companions:
    """Return the files beside the tensors of a transformers model.

    Args:
        model: the compressed model.
        core: its transformers model.
        prefix: of the core's tensors among the model's, "" or "transformer.".
        config_file: the config.json that it was built from.
        others: the files that came with what it was made from.
    """
    found = read_config(config_file.parent)
    config = {key: value for key, value in found.items() if key != "quantization_config"}
    config["architectures"] = [type(core).__name__]
    dtype = _float_type(core)
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    edits: Sequence[Edit] = model.edits
    if edits and all(isinstance(edit, (Resize, Keep)) for edit in edits):

        def build(changed: _Config) -> nn.Module:
            import torch

            with torch.device("meta"):
                made: nn.Module = type(core)(make_config(type(core), changed, config_file))
            return made

        expressed = _expressed(core, edits, _counted(core, config, config_file), build)
        if expressed is not None:
            config, edits = expressed, []
    native = not edits and not model.masks and model.storage == "safetensors" and dtype is not None
    files: dict[str, Path | bytes] = {n: c for n, c in others.items() if n != EMPTY}
    if not native:
        config["quantization_config"] = {"quant_method": QUANTIZER}
        files[EMPTY] = _empty_safetensors()
    files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return Companions(files, edits, native)


def describes(core: nn.Module) -> bool:
    """Tell whether a transformers model's own config says all of how it is built."""
    import torch

    model: Any = core
    if _float_type(core) is None:
        return False
    try:
        with torch.device("meta"):
            made: nn.Module = type(core)(model.config)
    except Exception:  # a config that builds nothing any more
        return False
    return _shapes(made) == _shapes(core) and _alike(made, core, ())


def _float_type(core: nn.Module) -> str | None:
    """Return the type that all float parameters share, None if they do not."""
    types = {p.dtype for p in core.parameters() if p.is_floating_point()}
    return str(types.pop()).removeprefix("torch.") if len(types) == 1 else None


def _counted(core: nn.Module, config: _Config, config_file: Path) -> _Config:
    """Return a config with what removed layers changed in the model's own, their number above all.

    Narrower layers change nothing there.
    """
    model: Any = core
    before = make_config(type(core), config, config_file).to_dict()
    return config | _changes(before, model.config.to_dict(), config)


def _changes(before: _Config, after: _Config, config: _Config) -> _Config:
    """Return what differs, the parts of a composed model's config within."""
    found: _Config = {}
    for key in after.keys() & before.keys():
        old, new, part = before[key], after[key], config.get(key)
        if isinstance(old, dict) and isinstance(new, dict) and isinstance(part, dict):
            found[key] = part | _changes(old, new, part)
        elif type(new) in (int, list, tuple) and old != new:
            found[key] = new
    return found


def _expressed(
    core: nn.Module, edits: Sequence[Edit], config: _Config, build: Callable[[_Config], nn.Module]
) -> _Config | None:
    """Return a config that builds the edited architecture, None if there is none.

    It is found by trying: numbers of the config that equal a size before get the size after.
    """
    wanted = _shapes(core)
    try:
        before = _shapes(build(config))
    except Exception:  # fewer layers make no sense to it, such as none with full attention
        return None
    if wanted.keys() != before.keys():
        return None
    sizes: dict[int, set[int]] = {}
    for name, shape in wanted.items():
        if len(shape) != len(before[name]):
            return None
        for old, new in zip(before[name], shape, strict=True):
            if old != new:
                sizes.setdefault(old, set()).add(new)
    if any(len(after) > 1 for after in sizes.values()):
        return None  # layers of one kind differ in size, and a config has one number for all
    # What a config leaves open follows from something else, as GPT-2's inner size does.
    choices = [
        [(place, after) for value in (old, None) for place in _places(config, value)]
        for old, (after,) in sizes.items()
    ]
    for chosen in islice(product(*choices), _MOST_TRIES):
        candidate = json.loads(json.dumps(config))
        for place, value in chosen:
            _set(candidate, place, value)
        try:
            built = build(candidate)
        except Exception:  # a config that is no model's: another number is meant
            continue
        if _shapes(built) == wanted and _alike(built, core, edits):
            return dict(candidate)
    return None


def _alike(built: nn.Module, core: nn.Module, edits: Sequence[Edit]) -> bool:
    """Tell whether modules have the same attributes: those that edits change, words and flags."""
    sizes = {name for edit in edits if isinstance(edit, Resize) for name in edit.attributes}
    modules = dict(core.named_modules(remove_duplicate=False))
    return all(
        vars(modules[path]).get(name) == value
        for path, module in built.named_modules(remove_duplicate=False)
        for name, value in vars(module).items()
        if name in sizes | POSITIONS
        or (isinstance(value, (bool, str, float)) and name not in _OF_NO_MATTER)
    )


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    named = (*module.named_parameters(remove_duplicate=False), *module.named_buffers())
    return {name: tensor.shape for name, tensor in named}


def _places(config: Any, wanted: int | None, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield where a config holds a value."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _places(value, wanted, (*at, key))
    elif type(config) is type(wanted) and config == wanted:
        yield at


def _set(config: _Config, place: tuple[str, ...], value: int) -> None:
    for key in place[:-1]:
        config = config[key]
    config[place[-1]] = value


def _empty_safetensors() -> bytes:
    header = b'{"__metadata__":{"format":"pt"}}'
    return len(header).to_bytes(8, "little") + header
