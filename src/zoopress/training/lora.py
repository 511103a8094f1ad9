"""Low-rank updates of linear layers, learned in place of their weights, through peft.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.edits import submodule
from zoopress.models.packing import packed_weights
from zoopress.models.weights import kind_of
from zoopress.optional import import_optional
from zoopress.training.config import LoraConfig
from zoopress.training.optimization import parameter_names

_ADAPTER = "default"


def updated_layers(
    module: nn.Module, include: Collection[str], besides: Collection[nn.Parameter]
) -> list[str]:
    """Return the paths of the linear layers that can be updated.

    Left out are packed weights, weights that are tied, whose update would have to serve in two
    places, and the output layer inside attention, whose weight is read without calling the layer.

    Args:
        module: the model.
        include: shell patterns, of which a path must match one.
        besides: weights that are trained, or frozen, by a learning rate of their own.

    Raises:
        StageError: if there is none.
    """
    names = parameter_names(module)
    apart = set(map(id, besides))
    paths = [
        path
        for path, layer in module.named_modules()
        if path
        and (weight := layer._parameters.get("weight")) is not None
        and kind_of(layer, "weight", weight.ndim)[0] == "linear"
        and not isinstance(layer, (nn.Bilinear, nn.modules.linear.NonDynamicallyQuantizableLinear))
        and len(names.get(weight, ())) == 1
        and id(weight) not in apart
        and any(fnmatchcase(path, pattern) for pattern in include)
    ]
    if not paths:
        packed = len(packed_weights(module))
        raise StageError(
            f"'lora': no linear layer with a float weight of its own matches {list(include)}. "
            + (
                f"The model has {packed} packed weights, which cannot be updated: train before the "
                "stage that quantizes."
                if packed
                else "Leave 'lora' out to train the weights themselves."
            )
        )
    return paths


@contextmanager
def low_rank_updates(
    module: nn.Module, config: LoraConfig, paths: Collection[str], masks: Mapping[str, Tensor]
) -> Iterator[None]:
    """Add updates to layers; when the context is left without an error, merge them.

    Afterwards the module has the structure that it had before.

    Args:
        module: the model; inside, the updates are parameters with `requires_grad` set.
        config: of the updates.
        paths: see `updated_layers`.
        masks: by name of a tensor; updates of pruned weights are 0 from the start.

    Raises:
        StageError: if peft is not installed.
    """
    install = "pip install 'zoopress[lora]'"
    library = import_optional("peft", "'lora' needs peft", install, StageError)
    PeftConfig, LoraModel = library.LoraConfig, library.LoraModel
    before = {path: submodule(module, path) for path in paths}
    attributes = set(vars(module))
    peft = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="|".join(map(re.escape, paths)),  # one pattern that a whole path matches
    )
    try:
        with warnings.catch_warnings():  # of settings that it finds out itself, layer by layer
            warnings.simplefilter("ignore")
            LoraModel(module, peft, _ADAPTER)
        for path in paths:
            layer: Any = submodule(module, path)
            for matrix in (layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]):
                matrix.float().requires_grad_(True)  # of a 16-bit layer they would be 16-bit, too
            if f"{path}.weight" in masks:
                _mask_update(layer, masks[f"{path}.weight"])
        yield
        for path in paths:
            layer = submodule(module, path)
            with torch.no_grad():
                before[path].weight.add_(layer.get_delta_weight(_ADAPTER))  # type: ignore[operator]
    finally:
        for path, layer in before.items():
            parent, _, name = path.rpartition(".")
            submodule(module, parent)._modules[name] = layer
        for attribute in set(vars(module)) - attributes:
            delattr(module, attribute)


def _mask_update(layer: Any, keep: Tensor) -> None:
    """Make a layer of peft update only the weights that are kept.

    Otherwise training would see what merging, and the mask after it, takes away again.
    """
    plain = layer.get_delta_weight

    def update(adapter: str) -> Tensor:
        change: Tensor = plain(adapter)
        return torch.where(keep.to(change.device), change, 0.0)

    def forward(input: Tensor) -> Tensor:
        change = update(_ADAPTER)
        matrix = change.T if layer.fan_in_fan_out else change
        output: Tensor = layer.base_layer(input)
        dropped = layer.lora_dropout[_ADAPTER](input.to(matrix.dtype))
        return (output + F.linear(dropped, matrix)).to(output.dtype)

    layer.get_delta_weight, layer.forward = update, forward
