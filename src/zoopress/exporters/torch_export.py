"""A program that `torch.export` captures: `model.pt2`, with the structure and the weights in it.

PyTorch opens it without zoopress and without the model's code: `torch.export.load("model.pt2")`.
Weights that say which integers they are stay integers in it.

Source: Ansel et al. 2024, PyTorch 2, doi:10.1145/3620665.3640366.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from zoopress.artifacts.opened import Opened
from zoopress.exporters.exporter import Exporter, Use
from zoopress.exporters.integer_weights import use_integers

FILE = "model.pt2"


class TorchExport(Exporter):
    """Captures a call of the model, for any number of samples."""

    needs_example = True
    fixes_batch = True

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse a call that counts no samples."""
        if artifact.call("torch.export follows a call").samples == 0:
            return "its example inputs have no samples. Give a tensor whose first axis counts them."
        return None

    def write(self, artifact: Opened, folder: Path) -> None:
        """Capture and save the program."""
        example = artifact.call("torch.export follows a call")
        # A program that has seen one sample alone holds for one sample alone.
        example = example.repeated(max(2, example.samples))
        module = copy.deepcopy(artifact.module)
        use_integers(module)
        arguments, named = example.sample_axes()
        with torch.no_grad(), warnings.catch_warnings():
            # Of attributes that a recurrent layer sets; what they do to outputs is compared.
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module,
                example.arguments,
                dict(example.named),
                dynamic_shapes=_by_name(module, _dynamic(arguments), _dynamic(named)),
            )
        torch.export.save(program, folder / FILE)

    def published_names(self, artifact: Opened, name: str) -> list[str]:
        """Publish it in a folder of its own."""
        return [f"torch_export/{name}"]

    def uses(self, artifact: Opened, place: str) -> list[Use]:
        """Open it by PyTorch."""
        code = (
            "import torch\nfrom huggingface_hub import hf_hub_download\n\n"
            f'program = torch.export.load(hf_hub_download("{place}", "torch_export/{FILE}"))\n'
            "model = program.module()"
        )
        return [Use("PyTorch", code)]

    def read(self, artifact: Opened, folder: Path) -> nn.Module:
        """Open the program as its users do."""
        return cast(nn.Module, torch.export.load(folder / FILE).module())


def _dynamic(told: Any) -> Any:
    """Return which axes may vary: the first of each tensor that counts samples."""
    if isinstance(told, bool):
        return {0: torch.export.Dim.AUTO} if told else None
    if isinstance(told, dict):
        return {key: _dynamic(value) for key, value in told.items()}
    if isinstance(told, (tuple, list)):
        return type(told)(_dynamic(value) for value in told)
    return None


def _by_name(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Return the axes by the names of the module's parameters, as torch.export wants them."""
    bound = inspect.signature(module.forward).bind(*arguments, **named)
    return dict(bound.arguments)
