"""Compile the kernel, in a process of its own: `python -m zoopress.kernels.build FILE`.

numba and LLVM take over a hundred megabytes of memory, more than a small model. So processes that
compute map a file with nothing but machine code, and only where that cannot be made do they compile
themselves.

    FILE
    ├── one page: JSON, padded with spaces
    └── the code, followed by its constants; or an object file, where `entry` is −1
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

PAGE = 4096
_ENTRY = "zoopress_entry"


def compiled_object() -> bytes:
    """Return the kernel as an object file of this machine."""
    import llvmlite.binding as llvm
    import numba

    from zoopress.kernels.coded_rows import SIGNATURE, work

    options = {"nogil": True, "error_model": "numpy"}
    bare = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    function = numba.njit(SIGNATURE, **options, **bare)(work)
    (overload,) = function.overloads.values()
    text = str(overload.library._final_module)
    # What numba calls takes places for its result and for an exception first.
    entry = (
        f"define void @{_ENTRY}(i64 %task) {{\n"
        "  %result = alloca ptr\n  %raised = alloca ptr\n"
        f'  %status = call i32 @"{overload.fndesc.mangled_name}"'
        "(ptr %result, ptr %raised, i64 %task)\n  ret void\n}\n"
    )
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="small",
    )
    found: bytes = machine.emit_object(llvm.parse_assembly(f"{text}\n{entry}"))
    return found


def sizes() -> dict[str, int]:
    """Return what callers must know of the kernel of this machine."""
    from zoopress.kernels.vector_code import LANES, TILE_OUTPUTS, TILE_ROWS

    return {"lanes": LANES, "tile_outputs": TILE_OUTPUTS, "tile_rows": TILE_ROWS}


def start(code: bytes) -> int:
    """Bring an object file to life in this process, by LLVM, and return the kernel's address."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _KEPT.append(engine)  # the machine code lives as long as this does
    return int(engine.get_function_address(_ENTRY))


_KEPT: list[Any] = []


def write(path: Path) -> None:
    """Write the kernel as a file, whole or not at all.

    It can be mapped where object files are x86-64's in ELF; elsewhere it is an object file.
    """
    from zoopress.kernels.linking import linked

    code = compiled_object()
    try:
        image, entry = linked(code, _ENTRY)
    except ValueError:
        image, entry = code, -1
    digest = hashlib.sha256(image).hexdigest()
    head = json.dumps({"sha256": digest, "entry": entry, **sizes()}).encode().ljust(PAGE)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(head + image)
    os.replace(file.name, path)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
