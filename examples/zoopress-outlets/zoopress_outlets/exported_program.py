"""Run the program that `torch.export` captures, kept in a cache from one load to the next."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoopress.exporters.torch_export import FILE, TorchExport
from zoopress.runtimes import Opened, Runtime, cached


class ExportedProgram(Runtime):
    """Runs a graph of plain operations; what Python did around them is gone."""

    needs_example = True

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse what cannot be captured."""
        return TorchExport().refusal(artifact)

    def prepare(self, artifact: Opened) -> nn.Module:
        """Capture the model, or find what was captured before, and open it."""
        # Of all that the files depend on: another version of either captures anew.
        versions = {name: version(name) for name in ("torch", "zoopress", "zoopress-outlets")}

        def write(folder: Path) -> None:
            TorchExport().write(artifact, folder)

        folder = cached(artifact, "exported_program", versions, write)
        return Program(torch.export.load(folder / FILE).module())


class Program(nn.Module):
    """The captured module, with the modes of a module that was not captured."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Run it."""
        return self.program(*arguments, **named)

    def train(self, mode: bool = True) -> Program:
        """Stay as it is: a captured program has the mode that it was captured in."""
        return self
