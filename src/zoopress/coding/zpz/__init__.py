"""Keep tensors losslessly in a `.zpz` file, entropy coded, each readable alone.

    model.zpz
    ├── head     5 bytes: magic, version
    ├── data     the chunks of every tensor, in the order of the index, without gaps
    ├── index    per tensor: name, dtype, shape, coding, stored sizes of its chunks, CRC-32
    └── foot     8 bytes: CRC-32 and length of the index

`bands.py` turns a tensor into bands of planes of integers, `zoopress.coding.coder` each plane of a
band into a chunk, and `index.py` says what is where. `docs/zpz.md` specifies every bit, and
`zoopress.coding.reference` is a second reader that follows it line by line.
"""

from __future__ import annotations

from zoopress.coding.layout import StoredTensor
from zoopress.coding.zpz.reader import ZpzReader
from zoopress.coding.zpz.writer import ZpzWriter, write_zpz

__all__ = ["StoredTensor", "ZpzReader", "ZpzWriter", "write_zpz"]
