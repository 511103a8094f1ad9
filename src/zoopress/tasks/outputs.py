"""What tasks do with a model: feed it, and find the tensor that it answers with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def feed(module: nn.Module, inputs: Any) -> Tensor:
    """Run a module on a tensor, or a dict of them, and return the first one it answers with.

    transformers' models say what their main input is called; others get it as the first argument.
    """
    name = getattr(module, "main_input_name", None)
    if not isinstance(inputs, dict) and isinstance(name, str):
        inputs = {name: inputs}
    return first_tensor(module(**inputs) if isinstance(inputs, dict) else module(inputs))


def first_tensor(output: Any) -> Tensor:
    """Return the first tensor of what a model returned, the logits where there are some.

    Raises:
        TypeError: if there is none.
    """
    from torch import Tensor

    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for key in ("logits", "last_hidden_state"):
            if isinstance(output.get(key), Tensor):
                found: Tensor = output[key]
                return found
        output = list(output.values())
    if isinstance(output, (tuple, list)):
        for item in output:
            if isinstance(item, Tensor):
                return item
        for item in output:
            return first_tensor(item)
    raise TypeError(f"the model returned {type(output).__name__} without a tensor in it")
