"""Commands that need not import torch first do what commands in new processes do."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from warm import WarmProcess

WARM = "import sys; print('torch' in sys.modules)"


def said(warm: WarmProcess, *words: str, **variables: str) -> str:
    given = {**os.environ, **variables}
    done = subprocess.run([warm.python, *words], env=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_has_imported_torch_whatever_the_compiler_sets(warm: WarmProcess) -> None:
    assert said(warm, "-c", WARM) == "True"
    assert said(warm, "-c", WARM, TORCHINDUCTOR_CACHE_DIR="/tmp/x", PYTHONPATH="/tmp") == "True"


def test_what_is_read_at_import_starts_a_new_process(warm: WarmProcess) -> None:
    assert said(warm, "-c", WARM, HF_HOME="/tmp/another") == "False"


def test_folder_variables_arguments_and_streams_are_the_commands_own(
    warm: WarmProcess, tmp_path: Path
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "brought.py").write_text("value = 'brought'")
    code = "import brought, os, sys; print(os.getcwd(), os.environ['A'], sys.argv[1], input())"
    code += "; print(brought.value, file=sys.stderr); sys.exit(3)"
    done = subprocess.run(
        [warm.python, "-c", code, "word"],
        cwd=tmp_path,
        env={**os.environ, "A": "a", "PYTHONPATH": "site"},
        input="given",
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(tmp_path), "a", "word", "given"]
    assert (done.stderr, done.returncode) == ("brought\n", 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_copy_with_its_program(warm: WarmProcess, number: int) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    with subprocess.Popen([warm.python, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        copy = int(process.stdout.readline())
        assert copy != process.pid
        process.send_signal(number)
        assert process.stdout.read() == ""  # until the last who holds the pipe is gone
    assert process.returncode == -number
