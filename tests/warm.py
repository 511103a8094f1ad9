"""Commands in processes of their own that need not import torch first.

A process of zoopress spends most of its time on importing torch. Here one process imports it, and
is copied (forked) for each command: every command still has its own process with arguments,
environment, working folder, standard streams and exit status, and shares no state with any other.

    WarmProcess(folder, imports)   the process that is copied
    folder/zoopress, folder/python programs that let a copy of it do what they were asked; put the
                                   folder first on PATH, and scripts and DVC call them by themselves

Signals to such a program reach the copy, and with the program dies the copy. Where `sys.executable`
is set to `python`, what a command starts in turn is a copy as well, such as workers.

What a copy cannot do as a new process would, a new one does: interpreter options, and variables
that are read as libraries are imported and have other values here. Tests of memory, or of what is
imported when, start new processes.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.metadata
import io
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

PROGRAMS = ("zoopress", "python")
READ_AT_IMPORT = (
    "HF_",
    "HUGGING",
    "NUMBA_",
    "OMP_",
    "PYTHON",
    "TORCH",
    "TRANSFORMERS_",
)
"""Variables whose values matter when libraries are imported, by how their names begin."""
# The last one: torch's compiler, once imported, sets a variable of its own.
READ_LATER = ("PYTHONPATH", "HF_TOKEN", "TORCHINDUCTOR_")
CORE = ("zoopress.commands.cli", "zoopress.pipeline.workbench", "zoopress.coding.zpz")

# No site-packages and nothing of the user's: this has to start within a few milliseconds.
CLIENT = """\
#!{executable} -IS
import json, os, signal, socket, struct, sys
program = os.path.basename(sys.argv[0])
words = sys.argv[1:]
kept = {{k: v for k, v in os.environ.items() if k.startswith({read!r})}}
kept = {{k: v for k, v in kept.items() if not k.startswith({later!r})}}
odd = program == "python" and not (words and words[0] in ("-c", "-m"))
if odd or kept != {kept!r}:
    start = [] if program == "python" else ["-m", "zoopress"]
    os.execv({executable!r}, [{executable!r}, *start, *words])
given = [program, words, os.getcwd(), dict(os.environ)]
data = json.dumps(given).encode()
with socket.socket(socket.AF_UNIX) as link:
    link.connect({address!r})
    socket.send_fds(link, [struct.pack("!I", len(data))], [0, 1, 2])
    link.sendall(data)
    (copy,) = struct.unpack("!I", link.recv(4))
    ends = [signal.SIGKILL]
    def forward(number, frame):
        ends.append(number)
        os.kill(copy, number)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    status = link.recv(1)
if not status:  # a signal ended the copy
    if ends[-1] != signal.SIGKILL:
        signal.signal(ends[-1], signal.SIG_DFL)
    os.kill(os.getpid(), ends[-1])
os._exit(status[0])
"""


def read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables under which libraries were imported."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_IMPORT) and not name.startswith(READ_LATER)
    }


class WarmProcess:
    """A process that has imported modules, and a folder of programs that use it.

    Args:
        imports: modules besides zoopress's own core.
        environment: under which they are imported; by default this process's.
        brief: whether latency is measured for a moment alone, as the fixture `brief_latency` does.
    """

    def __init__(
        self,
        imports: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        brief: bool = True,
    ) -> None:
        given = dict(os.environ if environment is None else environment)
        # A path of a socket may have only about a hundred characters.
        self._home = tempfile.TemporaryDirectory(prefix="warm-")
        self.folder = Path(self._home.name)
        address = str(self.folder / "socket")
        for name in PROGRAMS:
            program = self.folder / name
            program.write_text(
                CLIENT.format(
                    executable=sys.executable,
                    read=READ_AT_IMPORT,
                    later=READ_LATER,
                    kept=read_at_import(given),
                    address=address,
                )
            )
            program.chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, __file__, address, "brief" if brief else "", *imports],
            env=given,
            stdin=subprocess.PIPE,  # it ends when this does, however the tests end
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "it did not start"

    @property
    def python(self) -> str:
        """The program that stands in for `sys.executable`."""
        return str(self.folder / "python")

    def path(self, after: str) -> str:
        """Return a PATH on which its programs come first."""
        return f"{self.folder}{os.pathsep}{after}"

    def close(self) -> None:
        """End it; commands that are running go on."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait(timeout=60)
        self._home.cleanup()


def measure_briefly() -> None:
    """Let runs of this process measure latency for a moment, and compile nothing for it."""
    import functools

    from zoopress.evaluation import runtimes
    from zoopress.evaluation.latency import measure_latency
    from zoopress.pipeline import artifact_evaluation, workbench

    brief = functools.partial(measure_latency, seconds=0.01)
    for module in (artifact_evaluation, workbench):
        setattr(module, "measure_latency", brief)  # noqa: B010  (it is no public name of theirs)
    vars(runtimes)["_SECONDS"] = 0.01
    vars(runtimes)["_thread_counts"] = lambda: [1]
    names = runtimes._Bench._names
    runtimes._Bench._names = lambda self: [n for n in names(self) if n != "compile"]  # type: ignore[method-assign]


def serve(address: str) -> NoReturn:
    """Fork for each command that is asked for."""
    threads = Path("/proc/self/task")
    assert not threads.exists() or len(list(threads.iterdir())) == 1, "a copy would lack threads"
    paths = sys.path[1:]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        gc.collect()
        gc.freeze()
        print("ready", flush=True)
        while select.select([listener, sys.stdin], [], [])[0] == [listener]:
            link, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                with suppress(BrokenPipeError, ConnectionError):
                    link.sendall(bytes([_do(link, paths)]))
                os._exit(0)
            link.close()
            with suppress(ChildProcessError):  # so that their time counts as this process's
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    sys.exit()


def _do(link: socket.socket, paths: list[str]) -> int:
    """Take a command from its client, do it, and return its exit status."""
    head, streams, _, _ = socket.recv_fds(link, 4, 3)
    data, (length,) = b"", struct.unpack("!I", head)
    while len(data) < length:
        data += link.recv(length - len(data))
    program, words, folder, environment = json.loads(data)
    link.sendall(struct.pack("!I", os.getpid()))
    threading.Thread(target=_die_with, args=(link,), daemon=True).start()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (_stream(n, old) for n, old in enumerate(_streams()))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    first = str(Path(sys.executable).parent) if program == "zoopress" else ""
    if words[:1] == ["-m"]:
        first = folder
    more = environment.get("PYTHONPATH", "")
    sys.path[:] = [first, *(more.split(os.pathsep) if more else ()), *paths]
    importlib.invalidate_caches()
    try:
        return _status(program, words)
    finally:
        atexit._run_exitfuncs()
        for written in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                written.flush()


def _die_with(link: socket.socket) -> None:
    with suppress(ConnectionError):
        link.recv(1)  # a client says nothing more: this returns when it is gone
    os.kill(os.getpid(), signal.SIGKILL)


def _status(program: str, words: list[str]) -> int:
    try:
        _run(program, words)
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _run(program: str, words: list[str]) -> None:
    """Do what the interpreter, or zoopress's own script, does with its arguments."""
    if program == "zoopress":
        from zoopress.commands.cli import main

        sys.argv = [str(Path(sys.executable).parent / "zoopress"), *words]
        main()
        return
    import runpy

    option, what, *rest = words
    sys.argv = [option, *rest]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
        return
    main_module = sys.modules["__main__"] = type(sys)("__main__")
    main_module.__dict__["__builtins__"] = __builtins__
    exec(compile(what, "<string>", "exec"), main_module.__dict__)


def _streams() -> tuple[Any, Any, Any]:
    return sys.stdin, sys.stdout, sys.stderr


def _stream(number: int, old: io.TextIOWrapper) -> io.TextIOWrapper:
    """Return a standard stream as the interpreter makes it, over what the client has given."""
    if number == 0:
        return io.TextIOWrapper(open(0, "rb", closefd=False), old.encoding, old.errors)
    raw = open(number, "wb", closefd=False)  # noqa: SIM115  (as long as the process lives)
    line_buffering = number == 2 or os.isatty(number)
    return io.TextIOWrapper(raw, old.encoding, old.errors, line_buffering=line_buffering)


def warm_up(modules: Sequence[str]) -> None:
    """Import what commands import, and have the coders' machine code read from its cache."""
    for module in (*CORE, *modules):
        importlib.import_module(module)
    for point in importlib.metadata.entry_points(group="zoopress"):
        if point.dist is not None and point.dist.name == "zoopress":
            point.load()
    import numpy as np

    from zoopress.coding.coder import decode_plane, encode_plane

    for spread in (1, 40):
        plane = (np.arange(4096).reshape(64, 64) % 97 % spread).astype(np.uint8)
        for coder in ("auto", "static", "adaptive", "huffman"):
            decode_plane(encode_plane(plane, coder=coder), np.empty_like(plane))


if __name__ == "__main__":
    warm_up(sys.argv[3:])
    if sys.argv[2]:
        measure_briefly()
    serve(sys.argv[1])
