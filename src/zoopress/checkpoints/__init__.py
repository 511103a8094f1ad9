"""Checkpoints of any size, to `.zpz` and back, without holding a tensor in memory."""

from zoopress.checkpoints.decode import Decoded, decode_checkpoint, is_sharded, open_zpz
from zoopress.checkpoints.describe import describe
from zoopress.checkpoints.encode import Encoded, encode_checkpoint

__all__ = [
    "Decoded",
    "Encoded",
    "decode_checkpoint",
    "describe",
    "encode_checkpoint",
    "is_sharded",
    "open_zpz",
]
