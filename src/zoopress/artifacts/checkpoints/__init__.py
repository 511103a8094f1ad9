"""Checkpoints of any size, to `.zpz` and back, without holding a tensor in memory."""

from zoopress.artifacts.checkpoints.decode import Decoded, decode_checkpoint, is_sharded, open_zpz
from zoopress.artifacts.checkpoints.describe import describe
from zoopress.artifacts.checkpoints.encode import Encoded, encode_checkpoint

__all__ = [
    "Decoded",
    "Encoded",
    "decode_checkpoint",
    "describe",
    "encode_checkpoint",
    "is_sharded",
    "open_zpz",
]
