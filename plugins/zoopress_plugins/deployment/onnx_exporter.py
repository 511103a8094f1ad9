"""An ONNX model: `model.onnx`, weights that are integers behind DequantizeLinear.

    FOLDER/
        model.onnx
        model.onnx.data      weights, where they are more than 1 GB

ONNX Runtime, OpenVINO and whatever else reads ONNX open it. Names of inputs are those of the
model's arguments, names of outputs those of its outputs.

Source: https://onnx.ai/onnx/operators/, operator set 21.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from zoopress.artifacts.opened import Opened
from zoopress.exporters import Exporter
from zoopress_plugins.deployment.needs import missing


class Onnx(Exporter):
    """Writes the program that `torch.export` captures as operators of ONNX."""

    needs_example = True
    fixes_batch = True

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse where the libraries are not installed, and a call that counts no samples."""
        if reason := missing("onnx", "onnxscript", extra="onnx"):
            return reason
        if artifact.call("A program follows a call").samples == 0:
            return "its example inputs have no samples. Give a tensor whose first axis counts them."
        return None

    def write(self, artifact: Opened, folder: Path) -> None:
        """Capture the program, and write it."""
        from zoopress_plugins.deployment.onnx_program import write_onnx

        write_onnx(artifact, folder)

    def read(self, artifact: Opened, folder: Path) -> nn.Module:
        """Open the file in ONNX Runtime, or what else there is."""
        from zoopress_plugins.deployment.onnx_program import MODEL
        from zoopress_plugins.deployment.onnx_readers import open_onnx
        from zoopress_plugins.deployment.program_module import module_of

        return module_of(artifact, open_onnx(folder / MODEL))
