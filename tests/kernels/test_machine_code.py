"""The kernel is compiled once on a machine, by another process, and found again."""

import subprocess
import sys
from pathlib import Path

import pytest

from zoopress.kernels import machine_code

MULTIPLY = """
import sys, torch
from zoopress.kernels.products import CodedRows, multiply
codes = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8)
print(multiply(torch.ones(1, 2), CodedRows(codes, 2, 8, True), None).tolist())
print("numba" in sys.modules, "llvmlite" in sys.modules)
"""


def in_a_process() -> list[str]:
    done = subprocess.run([sys.executable, "-c", MULTIPLY], capture_output=True, check=True)
    return done.stdout.decode().split("\n")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere LLVM loads the object file")
def test_who_computes_needs_no_compiler_in_its_memory() -> None:
    assert in_a_process()[:2] == ["[[-1.0, 7.0]]", "False False"]


def test_a_damaged_file_is_told_from_a_whole_one(tmp_path: Path) -> None:
    machine_code.kernel()
    whole = machine_code._path().read_bytes()
    for name, content in (
        ("cut", whole[:-100]),
        ("changed", whole[:-1] + bytes([whole[-1] ^ 1])),
        ("empty", b""),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            machine_code._opened(path)


@pytest.mark.slow  # it compiles
def test_a_damaged_file_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOOPRESS_CACHE", str(tmp_path))
    path = machine_code._path()
    path.parent.mkdir()
    path.write_bytes(b"nothing")
    assert in_a_process()[0] == "[[-1.0, 7.0]]"
    assert path.stat().st_size > 8192
