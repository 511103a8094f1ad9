"""Whether packed weights compute what they stand for, on the inputs that their layers get."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.evaluation.fidelity import call
from zoopress.models.agreement import ROWS, disagreement, products
from zoopress.tasks import Task


def products_disagree(task: Task, module: nn.Module) -> str | None:
    """Say which packed layer computes something else than its dense weight, None if none does.

    Outputs of a model are compared for one batch size and one float type. Users have others, and
    kernels are chosen by them: so each layer is compared on some of its own inputs for several
    numbers of rows, memory layouts and types, see `disagreement`.

    Args:
        task: whose test split gives the inputs.
        module: the model.

    Raises:
        StageError: if the module fails in its forward pass.
    """
    layers = products(module)
    if not layers:
        return None
    inputs: dict[str, Tensor] = {}

    def note(name: str, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = arguments[0] if arguments else named.get("input")
        if name not in inputs and isinstance(given, Tensor) and given.numel():
            inputs[name] = given.detach().reshape(-1, given.shape[-1])[: max(ROWS)].clone()

    hooks = [
        layer.register_forward_pre_hook(partial(note, name), with_kwargs=True)
        for name, (layer, _) in layers.items()
    ]
    try:
        call(task, module, task.batches("test")[0])
    finally:
        for hook in hooks:
            hook.remove()
    for name, given in inputs.items():
        layer, packed = layers[name]
        bias = getattr(layer, "bias", None)
        # What 16-bit models are called with, too: many are cast once they are loaded.
        dtypes = tuple({given.dtype: None, torch.bfloat16: None})
        problem = disagreement(packed, given, bias, dtypes)
        if problem is not None:
            return f"{name} ({type(packed).__name__}): {problem}"
    return None
