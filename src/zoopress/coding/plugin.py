"""Register the entropy coders of the format."""

from __future__ import annotations

from zoopress.plugins import hookimpl


@hookimpl
def zoopress_entropy_coders() -> dict[str, str]:
    """Register what codes planes of integers."""
    return {
        "static": "zoopress.coding.built_in:Static",
        "adaptive": "zoopress.coding.built_in:Adaptive",
        "huffman": "zoopress.coding.built_in:Huffman",
    }
