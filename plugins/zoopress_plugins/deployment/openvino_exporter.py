"""OpenVINO's own files: `openvino_model.xml` and `.bin`, integer weights and quantizers kept.

Source: https://docs.openvino.ai/2026/documentation/openvino-ir-format.html.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from zoopress.artifacts.opened import Opened
from zoopress_plugins.deployment.needs import missing
from zoopress_plugins.deployment.onnx_exporter import Onnx

FILE = "openvino_model.xml"


class OpenVinoFiles(Onnx):
    """Writes what OpenVINO makes of the ONNX file."""

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse what the exporter `onnx` refuses, and where OpenVINO is not installed."""
        return missing("openvino", extra="openvino") or super().refusal(artifact)

    def write(self, artifact: Opened, folder: Path) -> None:
        """Write the ONNX file elsewhere, and convert it."""
        import openvino

        from zoopress_plugins.deployment.onnx_program import MODEL, write_onnx

        with tempfile.TemporaryDirectory() as between:
            write_onnx(artifact, Path(between))
            model = openvino.Core().read_model(str(Path(between) / MODEL))
            openvino.save_model(model, str(folder / FILE), compress_to_fp16=False)

    def read(self, artifact: Opened, folder: Path) -> nn.Module:
        """Open the files in OpenVINO."""
        from zoopress_plugins.deployment.onnx_readers import open_with_openvino
        from zoopress_plugins.deployment.program_module import module_of

        return module_of(artifact, open_with_openvino(folder / FILE))
