"""OpenVINO on the CPU: the artifact as an ONNX file, kept for the next start.

Source: https://docs.openvino.ai/2026/openvino-workflow/running-inference.html.
"""

from __future__ import annotations

from torch import nn

from zoopress.artifacts.opened import Opened
from zoopress.runtimes import Runtime
from zoopress_plugins.deployment.needs import missing
from zoopress_plugins.deployment.onnx_exporter import Onnx


class OpenVino(Runtime):
    """Runs what the exporter `onnx` writes."""

    needs_example = True
    takes_packed = True
    libraries = ("openvino", "onnxscript")

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse what the exporter refuses, and where OpenVINO is not installed."""
        return missing("openvino", extra="openvino") or Onnx().refusal(artifact)

    def prepare(self, artifact: Opened) -> nn.Module:
        """Write the file, if it is not there, and compile it."""
        from zoopress_plugins.deployment.kept import kept_onnx
        from zoopress_plugins.deployment.onnx_readers import open_with_openvino
        from zoopress_plugins.deployment.program_module import module_of

        return module_of(artifact, open_with_openvino(kept_onnx(artifact)))
