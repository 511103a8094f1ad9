"""The ONNX file of an artifact that runtimes share, kept by content."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from zoopress.artifacts.opened import Opened
from zoopress.errors import DeploymentError
from zoopress.runtimes import cached
from zoopress_plugins.deployment.onnx_program import FIXED, MODEL, write_onnx

_LIBRARIES = ("zoopress", "torch", "onnxscript", "onnx-ir")
_FORM = "5"
"""Raised whenever the same artifact is written in another way."""


def kept_onnx(artifact: Opened) -> Path:
    """Return an artifact's ONNX file, written if it is not there or was changed.

    Raises:
        DeploymentError: if it cannot be written, or is for one number of samples alone.
    """
    versions = {"form": _FORM, **{name: version(name) for name in _LIBRARIES}}
    folder = cached(artifact, "onnx", versions, lambda folder: write_onnx(artifact, folder))
    if (folder / FIXED).exists():
        raise DeploymentError(
            "Its program is for the example's number of samples alone: "
            f"{(folder / FIXED).read_text(encoding='utf-8')}. Use the runtime 'eager' or 'compile'."
        )
    return folder / MODEL
