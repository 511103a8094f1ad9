"""The ONNX file of an artifact that runtimes share, kept by content."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from zoopress.artifacts.opened import Opened
from zoopress.runtimes import cached
from zoopress_plugins.deployment.onnx_program import MODEL, write_onnx

_LIBRARIES = ("zoopress", "torch", "onnxscript", "onnx-ir")
_FORM = "4"
"""Raised whenever the same artifact is written in another way."""


def kept_onnx(artifact: Opened) -> Path:
    """Return an artifact's ONNX file, written if it is not there or was changed."""
    versions = {"form": _FORM, **{name: version(name) for name in _LIBRARIES}}
    return cached(artifact, "onnx", versions, lambda folder: write_onnx(artifact, folder)) / MODEL
