"""Announces runtimes and exporters of other projects' formats; each is imported when it is used."""

from __future__ import annotations

from zoopress.plugins import hookimpl

_PACKAGE = __name__.rpartition(".")[0]


@hookimpl
def zoopress_exporters() -> dict[str, str]:
    """Register what writes models for other programs."""
    return {
        "onnx": f"{_PACKAGE}.onnx_exporter:Onnx",
        "openvino": f"{_PACKAGE}.openvino_exporter:OpenVinoFiles",
    }


@hookimpl
def zoopress_runtimes() -> dict[str, str]:
    """Register what runs models."""
    return {
        "onnxruntime": f"{_PACKAGE}.onnxruntime_runtime:OnnxRuntime",
        "openvino": f"{_PACKAGE}.openvino_runtime:OpenVino",
    }
