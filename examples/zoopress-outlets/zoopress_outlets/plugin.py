"""Register everything. Every `zoopress` command imports this file, so it imports nothing heavy."""

from __future__ import annotations

from zoopress.plugins import Command, hookimpl


@hookimpl
def zoopress_runtimes() -> dict[str, str]:
    """Register what runs models."""
    return {"exported_program": "zoopress_outlets.exported_program:ExportedProgram"}


@hookimpl
def zoopress_exporters() -> dict[str, str]:
    """Register what writes models for other programs."""
    return {"numpy": "zoopress_outlets.numpy_arrays:NumpyArrays"}


@hookimpl
def zoopress_entropy_coders() -> dict[str, str]:
    """Register what codes integers; files name it, so the name stays."""
    return {"lzma": "zoopress_outlets.lzma_coder:Lzma"}


@hookimpl
def zoopress_commands() -> dict[str, Command]:
    """Register a verb of the command line."""
    return {
        "integers": Command(
            "zoopress_outlets.integers:integers",
            "Show which integers and scales a model's packed weights are.",
        )
    }
