"""NNCodec, the reference of ISO/IEC 15938-17, beside ours: in a process and environment of its own.

It needs another numpy than ours, so it is built from its source package into a virtual environment
below benchmarks/data/, which takes a C++ compiler and a minute, once. `--nncodec-python` names one
that is there already. Of what it asks for, numpy is all that coding needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from data import DATA
from numpy.typing import NDArray

VERSION = "2.1.3"
RUNNER = Path(__file__).with_name("nncodec_runner.py")
DEFAULTS = {"qp": -32, "nonweight_qp": -75, "use_dq": True, "param_opt": True, "row_skipping": True}
"""What `nncodec.nn.encode` passes on by default."""


@dataclass(frozen=True)
class Coded:
    """What coding something took.

    Attributes:
        size_bytes: of all that a decoder needs.
        encode_seconds: CPU seconds.
        decode_seconds: CPU seconds.
        peak_bytes: largest resident memory of the coding process so far.
    """

    size_bytes: int
    encode_seconds: float
    decode_seconds: float
    peak_bytes: int


def environment() -> Path:
    """Return the interpreter of an environment with NNCodec, made if it is not there.

    Raises:
        SystemExit: if it cannot be built.
    """
    folder = DATA / f"nncodec-{VERSION}"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    print(f"building NNCodec {VERSION} in {folder}", flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, "numpy<2", "pybind11", "setuptools", "wheel"],
        [*pip, "--no-deps", "--no-build-isolation", f"nncodec=={VERSION}"],
    ):
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(
                f"NNCodec {VERSION} could not be built; see above. It needs a C++ compiler. "
                "Name an environment that has it with --nncodec-python, or leave it out with "
                "--no-nncodec."
            )
    (folder / "complete").touch()
    return python


class Nncodec:
    """A process that codes with NNCodec; a context manager.

    Args:
        python: the interpreter of an environment with NNCodec; `environment()` by default.
    """

    def __init__(self, python: Path | None = None) -> None:
        self.python = python or environment()
        self._folder = tempfile.TemporaryDirectory()
        self._path = Path(self._folder.name)
        self._process = subprocess.Popen(
            [str(self.python), str(RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Nncodec:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def code_model(
        self, tensors: Mapping[str, NDArray[np.float32]], **options: Any
    ) -> tuple[Coded, dict[str, NDArray[np.float32]]]:
        """Code a state dict; return what that took, and what a decoder gets.

        Args:
            tensors: float32.
            options: of `nncodec.nnc.compress`, where they differ from `DEFAULTS`.
        """
        source, decoded = self._path / "tensors.npz", self._path / "decoded.npz"
        np.savez(source, **dict(tensors))  # type: ignore[arg-type]
        request = {"do": "model", "tensors": str(source), "decoded": str(decoded)}
        coded = self._ask({**request, "options": {**DEFAULTS, **options}})
        with np.load(decoded) as file:
            return coded, {name: file[name] for name in file.files}

    def code_plane(self, plane: NDArray[Any], *, search: bool = False) -> Coded:
        """Code integers [rows, columns] without loss.

        Args:
            plane: integers.
            search: whether the encoder tries several adaptation rates for each context.
        """
        path = self._path / "plane.npy"
        np.save(path, plane.astype(np.int32))
        return self._ask({"do": "codes", "plane": str(path), "search": search})

    def _ask(self, request: dict[str, Any]) -> Coded:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("NNCodec stopped; see above.")
        answer = json.loads(line)
        return Coded(answer["bytes"], answer["encode"], answer["decode"], answer["peak_bytes"])
