"""Encode codes.npz into codes.zpz, or decode it, and print this process' largest resident memory.

    python benchmarks/coding_memory.py nothing|encode|decode FOLDER

A process of its own for each, since memory that was once resident counts for good.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from zoopress.coding.layout import Integers, StoredTensor
from zoopress.coding.zpz import ZpzReader, write_zpz


def peak_bytes() -> int:
    """Return what Linux says; ru_maxrss would count what the parent had when it forked."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    path = folder / "codes.zpz"
    if what == "encode":
        with np.load(folder / "codes.npz") as file:
            codes = {name: torch.from_numpy(file[name]) for name in file.files}
        write_zpz(path, {name: StoredTensor(plane, Integers()) for name, plane in codes.items()})
    if what == "decode":
        with ZpzReader(path) as reader:
            for name in reader.names():
                reader.read(name)
    print(peak_bytes())


if __name__ == "__main__":
    main()
