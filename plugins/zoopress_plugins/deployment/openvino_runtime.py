"""OpenVINO on the CPU: the artifact as an ONNX file, kept for the next start.

Source: https://docs.openvino.ai/2026/openvino-workflow/running-inference.html.
"""

from __future__ import annotations

import logging

from torch import nn

from zoopress.artifacts.opened import Opened
from zoopress.models.input_grid import input_grids
from zoopress.models.outputs import largest_difference
from zoopress.runtimes import Runtime
from zoopress_plugins.deployment.needs import missing
from zoopress_plugins.deployment.onnx_exporter import Onnx

log = logging.getLogger("zoopress.runtimes")


class OpenVino(Runtime):
    """Runs what the exporter `onnx` writes."""

    needs_example = True
    takes_packed = True
    libraries = ("openvino", "onnxscript")

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse what the exporter refuses, and where OpenVINO is not installed."""
        return missing("openvino", extra="openvino") or Onnx().refusal(artifact)

    def prepare(self, artifact: Opened) -> nn.Module:
        """Write the file, if it is not there, and compile it.

        In floats where OpenVINO fails on the integers, or computes something else with them.
        """
        from zoopress_plugins.deployment.kept import kept_onnx
        from zoopress_plugins.deployment.onnx_readers import open_with_openvino
        from zoopress_plugins.deployment.program_module import module_of

        file = kept_onnx(artifact)
        if not input_grids(artifact.module):
            return module_of(artifact, open_with_openvino(file))
        call = artifact.call("Outputs are compared")
        expected = call(artifact.module)
        try:
            module = module_of(artifact, open_with_openvino(file))
            found = largest_difference(expected, call(module))
            if found <= self.bound(artifact):
                return module
            reason = f"outputs differ by {found:.2g} of the largest"
        except Exception as error:  # of many kinds, none of them public
            reason = " ".join(str(error).split())[-300:]
        log.warning("OpenVINO computes this model in floats, since with its integers %s", reason)
        return module_of(artifact, open_with_openvino(file, integers=False))
