"""What runs an ONNX file: the libraries that are installed, each as a function of named tensors."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoopress.errors import DeploymentError
from zoopress_plugins.deployment.named_call import Run

THREADS = "ZOOPRESS_THREADS"
"""The environment variable that says how many threads a runtime gets; PyTorch's number if unset."""


def threads() -> int:
    """Return how many threads runtimes get.

    Raises:
        DeploymentError: if the environment variable is no number.
    """
    told = os.environ.get(THREADS)
    if told is None:
        return torch.get_num_threads()
    if not told.isdecimal() or int(told) < 1:
        raise DeploymentError(f"{THREADS} must be a number of threads such as 4, not {told!r}.")
    return int(told)


def open_onnx(file: Path) -> Run:
    """Return what runs a file: ONNX Runtime, else OpenVINO, else ONNX's own reference."""
    if importlib.util.find_spec("onnxruntime"):
        return open_with_onnxruntime(file)
    if importlib.util.find_spec("openvino"):
        return open_with_openvino(file)
    return _open_with_reference(file)


def open_with_onnxruntime(file: Path) -> Run:
    """Return what runs a file in ONNX Runtime on the CPU, with the integers that are in it."""
    session = session_of_onnxruntime(file)

    def run(tensors: dict[str, Tensor]) -> list[Tensor]:
        given = {name: array_of(tensor) for name, tensor in tensors.items()}
        return [torch.from_numpy(np.asarray(each)) for each in session.run(None, given)]

    return run


def session_of_onnxruntime(file: Path, optimized: Path | None = None) -> Any:
    """Return ONNX Runtime's session of a file, that computes what the file says.

    Args:
        file: of ONNX.
        optimized: where it writes the graph that it runs, if it shall.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = 4  # errors are raised
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    # By default, what enters a layer that only has quantized weights is rounded to 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    disabled: list[str] = []
    if _rounds_inputs(file):
        # Joined to a Gemm, what could be a product of integers would be one of floats.
        disabled.append("MatMulAddFusion")
    else:
        # Else weights would be made floats again in every call.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(
        str(file),
        sess_options=options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=disabled,
    )


def open_with_openvino(file: Path, integers: bool = True) -> Run:
    """Return what runs a file, of ONNX or OpenVINO, in OpenVINO on the CPU.

    Args:
        file: the file.
        integers: as `compile_with_openvino` takes it.
    """
    compiled = compile_with_openvino(file, integers=integers)
    request = compiled.create_infer_request()

    def run(tensors: dict[str, Tensor]) -> list[Tensor]:
        given = {name: array_of(tensor) for name, tensor in tensors.items()}
        outputs = request.infer(given, share_inputs=True)
        # The next call writes where these are.
        return [torch.from_numpy(np.array(outputs[each])) for each in compiled.outputs]

    return run


def compile_with_openvino(file: Path, folder: Path | None = None, integers: bool = True) -> Any:
    """Return OpenVINO's compiled model of a file, that computes what the file says.

    Args:
        file: of ONNX or OpenVINO.
        folder: where compiled models are kept, if they are.
        integers: whether products of integers are computed as such, not of the floats they are for.
    """
    import openvino

    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        # Its own rounding of inputs would come on top of that which was evaluated.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "KV_CACHE_PRECISION": "f32",
        "INFERENCE_NUM_THREADS": threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if not integers:
        properties["LP_TRANSFORMS_MODE"] = "NO"
    if folder is not None:
        properties["CACHE_DIR"] = str(folder)
    core = openvino.Core()
    return core.compile_model(core.read_model(str(file)), "CPU", properties)


def array_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor as an array."""
    if tensor.dtype == torch.bfloat16:
        raise DeploymentError("Inputs in bfloat16 are nothing that this runtime takes.")
    array: np.ndarray[Any, Any] = tensor.contiguous().numpy()
    return array


def _open_with_reference(file: Path) -> Run:
    import onnx
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(onnx.load(str(file)))

    def run(tensors: dict[str, Tensor]) -> list[Tensor]:
        given = {name: array_of(tensor) for name, tensor in tensors.items()}
        found: Sequence[Any] = session.run(None, given)
        return [torch.from_numpy(np.asarray(each)) for each in found]

    return run


def _rounds_inputs(file: Path) -> bool:
    """Tell whether a file quantizes what its layers are given."""
    import onnx_ir as ir

    kinds = {node.op_type for node in ir.load(file).graph}
    return "QuantizeLinear" in kinds
