"""Run NNCodec on request; started by nncodec_client.py in an environment of NNCodec's own.

A request is a line of JSON on standard input, its answer a line on standard output. Arrays travel
as files. Seconds are CPU seconds of this process without reading and writing those files.

    {"do": "model", "tensors": NPZ, "decoded": NPZ, "options": {…}}    code a state dict, lossy
    {"do": "codes", "plane": NPY, "search": false}   code integers, lossless

`nncodec.nnc.compress` with the options is what `nncodec.nn.encode` calls. What it imports for
training and for TensorFlow is left out, since coding needs none of it.
"""

from __future__ import annotations

import json
import sys
import time
import types
from typing import Any

import numpy as np

FRAMEWORKS = ("tensorflow_model", "pytorch_model", "use_case_init")

package = types.ModuleType("nncodec.framework")
for name in FRAMEWORKS:
    module = types.ModuleType(f"nncodec.framework.{name}")
    setattr(package, name, module)
    sys.modules[module.__name__] = module
sys.modules[package.__name__] = package

from nncodec import nnc  # noqa: E402
from nncodec.extensions import deepCABAC  # noqa: E402
from nncodec.nnc_core.hdsp.hdsp_tool import HDSP_OPTS_OFF  # noqa: E402

UNARY_LENGTH = 10
"""What nncodec.nnc.compress takes by default."""
NO_CODEBOOK = (0, 0)


def code_model(request: dict[str, Any]) -> dict[str, Any]:
    with np.load(request["tensors"]) as file:
        tensors = {name: np.ascontiguousarray(file[name]) for name in file.files}
    start = time.process_time()
    stream = nnc.compress(tensors, bitstream_path=None, return_bitstream=True, **request["options"])
    encoded = time.process_time()
    decoded = nnc.decompress(stream)
    seconds = time.process_time() - encoded
    np.savez(request["decoded"], **decoded)
    return {"bytes": len(stream), "encode": encoded - start, "decode": seconds}


def code_plane(request: dict[str, Any]) -> dict[str, Any]:
    plane = np.ascontiguousarray(np.load(request["plane"]), np.int32)
    search, profile = int(request["search"]), 1
    start = time.process_time()
    empty = (~plane.any(1)).astype(np.int32)
    encoder = deepCABAC.Encoder()
    encoder.initCtxModels(UNARY_LENGTH + 1, search)
    encoder.encodeLayer(plane, 0, 0, profile, 0, 1, empty, *HDSP_OPTS_OFF(), *NO_CODEBOOK)
    stream = encoder.finish()
    encoded = time.process_time()
    found = np.zeros_like(plane)
    decoder = deepCABAC.Decoder()
    decoder.setStream(stream)
    decoder.initCtxModels(UNARY_LENGTH + 1)
    decoder.decodeLayer(found, 0, 0, profile, 0, *HDSP_OPTS_OFF(), *NO_CODEBOOK)
    decoder.finish()
    seconds = time.process_time() - encoded
    if not np.array_equal(found, plane):
        raise ValueError("NNCodec decodes something else than was encoded.")
    return {"bytes": len(stream), "encode": encoded - start, "decode": seconds}


def peak_bytes() -> int:
    """Return what Linux says; ru_maxrss would count what the parent had when it forked."""
    with open("/proc/self/status", encoding="ascii") as status:
        (line,) = (line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # NNCodec prints what it does
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"model": code_model, "codes": code_plane}[request["do"]](request)
        answer["peak_bytes"] = peak_bytes()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
