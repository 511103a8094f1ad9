"""ONNX Runtime on the CPU: the artifact as an ONNX file, kept for the next start.

Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
"""

from __future__ import annotations

from torch import nn

from zoopress.artifacts.opened import Opened
from zoopress.runtimes import Runtime
from zoopress_plugins.deployment.needs import missing
from zoopress_plugins.deployment.onnx_exporter import Onnx


class OnnxRuntime(Runtime):
    """Runs what the exporter `onnx` writes."""

    needs_example = True
    takes_packed = True
    libraries = ("onnxruntime", "onnxscript")

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse what the exporter refuses, and where ONNX Runtime is not installed."""
        return missing("onnxruntime", extra="onnxruntime") or Onnx().refusal(artifact)

    def prepare(self, artifact: Opened) -> nn.Module:
        """Write the file, if it is not there, and open it."""
        from zoopress_plugins.deployment.kept import kept_onnx
        from zoopress_plugins.deployment.onnx_readers import open_with_onnxruntime
        from zoopress_plugins.deployment.program_module import module_of

        return module_of(artifact, open_with_onnxruntime(kept_onnx(artifact)))
