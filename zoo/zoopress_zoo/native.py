"""What a compressed model needs so that transformers opens it: with zoopress, or without.

Without, where config.json can say all that was done: fewer layers, every layer of a kind pruned to
one smaller size, weights in a smaller float type. Else config.json names zoopress as the quantizer,
and an index of "shards" lists all files of the artifact: so transformers itself fetches them, as
its caller said (token, cache, sub-folder, offline, …). The quantizer reads them, and gives
transformers an empty file of tensors to begin with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.models.edits import Edit, Keep, Resize
from zoopress.sources import Companions
from zoopress_zoo.config_sizes import Expression, alike, shapes
from zoopress_zoo.opening import opens_alike
from zoopress_zoo.transformers_config import make_config, read_config, without_fetching

if TYPE_CHECKING:
    from torch import nn

    from zoopress.models.model import Model

QUANTIZER = "zoopress"
EMPTY = "empty.safetensors"
LISTING = "zoopress.safetensors.index.json"
"""The index that lists all files; its name must end as an index of safetensors does."""
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
    config: _Config = without_fetching(found)
    config["architectures"] = [type(core).__name__]
    dtype = _float_type(core)
    if dtype is not None or not (config.get("dtype") or config.get("torch_dtype")):
        config.pop("torch_dtype", None)
        config["dtype"] = dtype or _main_type(core)
    edits: Sequence[Edit] = model.edits
    if edits and all(isinstance(edit, (Resize, Keep)) for edit in edits):

        def build(changed: _Config) -> nn.Module:
            import torch

            with torch.device("meta"):
                made: nn.Module = type(core)(make_config(type(core), changed, config_file))
            return made

        counted = _counted(core, config, config_file)
        search = Expression(core, edits, counted, _all_fields(core, counted, config_file), build)
        expressed = search.find()
        if expressed is not None and opens_alike(core, expressed, config_file, search.sizes):
            config, edits = expressed, []
    native = not edits and not model.masks and model.storage == "safetensors" and dtype is not None
    own = (EMPTY, LISTING)
    files: dict[str, Path | bytes] = {n: c for n, c in others.items() if n not in own}
    if not native:
        config["quantization_config"] = {"quant_method": QUANTIZER, "files": LISTING}
        files[EMPTY] = _empty_safetensors()
    files["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return Companions(files, edits, native, listing=None if native else _listing)


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
    return shapes(made) == shapes(core) and alike(made, core, ())


def _float_type(core: nn.Module) -> str | None:
    """Return the type that all float parameters share, None if they do not."""
    types = {p.dtype for p in core.parameters() if p.is_floating_point()}
    return str(types.pop()).removeprefix("torch.") if len(types) == 1 else None


def _main_type(core: nn.Module) -> str:
    """Return the float type that most of a model's numbers are of, packed ones included."""
    from zoopress.models.packing import packed_weights

    counts: dict[str, int] = {}
    held: list[Any] = [*core.parameters(), *packed_weights(core).values()]
    for each in held:
        if each.dtype.is_floating_point:
            name = str(each.dtype).removeprefix("torch.")
            counts[name] = counts.get(name, 0) + each.shape.numel()
    return max(counts, key=lambda name: counts[name], default="float32")


def _listing(names: Sequence[str]) -> Mapping[str, bytes]:
    """Return the index that lists an artifact's files, in the form of one of shards."""
    index = {"metadata": {}, "weight_map": {name: name for name in sorted(names)}}
    return {LISTING: (json.dumps(index, indent=2) + "\n").encode()}


def _counted(core: nn.Module, config: _Config, config_file: Path) -> _Config:
    """Return a config with what removed layers changed in the model's own, their number above all.

    Narrower layers change nothing there.
    """
    model: Any = core
    before = make_config(type(core), config, config_file).to_dict()
    return config | _changes(before, model.config.to_dict(), config)


def _all_fields(core: nn.Module, config: _Config, config_file: Path) -> _Config:
    """Return a config with the fields that it leaves to their defaults."""
    made: _Config = make_config(type(core), config, config_file).to_dict()
    return made if made.get("model_type") == config.get("model_type") else config


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


def _empty_safetensors() -> bytes:
    header = b'{"__metadata__":{"format":"pt"}}'
    return len(header).to_bytes(8, "little") + header
