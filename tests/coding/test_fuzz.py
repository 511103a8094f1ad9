"""More than a million damaged chunks and files do no harm; see fuzz_zpz.py for what harm is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent / "fuzz_zpz.py"


def _fuzz(mode: str, runs: int, folder: Path, **environment: str) -> None:
    pytest.importorskip("atheris")
    done = subprocess.run(
        [sys.executable, HARNESS, mode, f"-runs={runs}", "-seed=1"],
        cwd=folder,  # where it leaves the input that did harm
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {runs} runs" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("mode", "runs"), [("chunk", 900_000), ("file", 200_000)])
def test_damaged_input_does_no_harm(mode: str, runs: int, tmp_path: Path) -> None:
    _fuzz(mode, runs, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_kernels_never_leave_their_arrays(tmp_path: Path) -> None:
    cache = str(tmp_path / "kernels")
    _fuzz("chunk", 100_000, tmp_path, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=cache)
