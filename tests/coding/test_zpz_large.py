"""A tensor of more than 2**31 elements, which is nowhere in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zoopress.artifacts.checkpoints.safetensors_file import build_header

COUNT = (1 << 31) + 12_345

CODE = """
import json, resource, sys, zlib
from pathlib import Path
from zoopress.artifacts.checkpoints import encode_checkpoint, open_zpz
encode_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]))
size = crc = 0
last = b""
with open_zpz(sys.argv[2]) as reader:
    for piece in reader.pieces("mask"):
        size += piece.size
        last = bytes(piece[-3:])
        if size == piece.size:
            first = bytes(piece[:3])
    shape = reader.info("mask")[1]
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)
print(json.dumps({"size": size, "shape": shape, "ends": [*first, *last], "peak": 1024 * peak}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells peak memory")
@pytest.mark.parametrize("shape", [(COUNT,), (3, COUNT // 3)])
def test_more_than_two_billion_bools_go_through_little_memory(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    count = COUNT if len(shape) == 1 else 3 * shape[1]
    header = build_header({"mask": ("bool", shape)})
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:  # a sparse file: zeros that take no disk
        file.write(len(header).to_bytes(8, "little") + header + b"\1\0\1")
        file.truncate(8 + len(header) + count)
        file.seek(-2, 2)
        file.write(b"\1\1")
    out = tmp_path / "model.zpz"
    command = [sys.executable, "-c", CODE, str(path), str(out)]
    done = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert done["size"] == count
    assert done["shape"] == list(shape)
    assert done["ends"] == [1, 0, 1, 0, 1, 1]
    assert done["peak"] < 500_000_000
    # Zeros would take almost nothing; raw chunks pay for what the format lets a file decode to.
    assert out.stat().st_size < 8_000_000
