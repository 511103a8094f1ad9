"""Buffers that the architecture's own code makes: no file needs them, so no artifact stores them.

Only buffers outside the state dict count, which no checkpoint holds either, and only those that
come out the same to the last bit when the architecture is built again, as it is when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from zoopress.errors import ZoopressError
from zoopress.models.edits import AnyEdit, Keep, Resize, apply_edit
from zoopress.models.model import Model

LEAST_BYTES = 64
"""Smaller ones are stored: to say that one is not takes about as much."""


def computed_buffers(
    model: Model, edits: list[AnyEdit], build: Callable[[], nn.Module]
) -> set[str]:
    """Return the full names of buffers that loading makes by itself.

    Args:
        model: with the buffers as they are.
        edits: what loading replays on what is built.
        build: builds the architecture as loading does, with values in its buffers.
    """
    tensors = model.tensors()
    wanted = {n for n in model.non_persistent() if tensors[n].nbytes >= LEAST_BYTES}
    if not wanted:
        return set()
    try:
        module = build()
        with torch.device("meta"):
            for edit in edits:
                # Others leave buffers outside the state dict where they are.
                if isinstance(edit, (Keep, Resize)):
                    apply_edit(module, edit, model.layers)
        made = buffers_of(module)
    except (ZoopressError, ValueError, TypeError, AttributeError, RuntimeError):
        return set()  # it cannot be built with values: all are stored
    return {name for name in wanted if name in made and _same(made[name], tensors[name])}


def buffers_of(module: nn.Module) -> Mapping[str, Tensor]:
    """Return the buffers outside the state dict that have values, by full name."""
    made = Model(module)
    found = made.tensors()
    return {n: found[n] for n in made.non_persistent() if n in found and not found[n].is_meta}


def _same(made: Tensor, kept: Tensor) -> bool:
    if made.dtype != kept.dtype or made.shape != kept.shape or made.layout != torch.strided:
        return False
    both = [t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (made, kept)]
    return torch.equal(*both)
