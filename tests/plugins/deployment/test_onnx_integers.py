"""Layers whose weights and inputs are integers are computed in integers by the runtimes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import zoopress
from zoopress.artifacts.opened import Call, Opened, open_artifact
from zoopress.models.outputs import largest_difference
from zoopress.plugins import load_plugins
from zoopress.testing import models as testing_models, run_chain, tiny_card

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from zoopress_plugins.deployment.onnx_program import MODEL, write_onnx  # noqa: E402
from zoopress_plugins.deployment.onnx_readers import (  # noqa: E402
    compile_with_openvino,
    open_with_onnxruntime,
    open_with_openvino,
    session_of_onnxruntime,
)

PLUGINS = load_plugins()
INPUTS = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def normalized(tensors: dict[str, Tensor]) -> None:
    """Give batch normalizations numbers as training would, gains of both signs among them."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        if name.endswith("running_var"):
            tensor.uniform_(0.2, 2.0, generator=generator)
            tensors[name.replace("running_var", "weight")].uniform_(-1, 1.5, generator=generator)
        elif name.endswith("running_mean"):
            tensor.normal_(generator=generator)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp("cnn")
    settings: dict[str, dict[str, Any]] = {
        "weight_quantization": {"bits": 8, "symmetric": True},
        "activation_quantization": {"mode": "static", "per": "tensor"},
    }
    kinds = [(PLUGINS.technique(name), given) for name, given in settings.items()]
    chain = [kind(kind.config_type.model_validate(given)) for kind, given in kinds]
    made = run_chain(chain, tiny_card("cnn", folder, normalized), folder / "run", PLUGINS)
    return open_artifact(made.artifact, PLUGINS, testing_models.cnn, example=Call.of(INPUTS))


@pytest.fixture(scope="module")
def file(artifact: Opened, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    write_onnx(artifact, folder)
    return folder / MODEL


def test_normalizations_become_scales_of_integers(artifact: Opened, file: Path) -> None:
    kinds = Counter(node.op_type for node in ir.load(file).graph)
    assert kinds["Conv"] == 4
    assert kinds["BatchNormalization"] == 0
    expected = artifact.module(INPUTS)
    for reader in (open_with_onnxruntime, open_with_openvino):
        (got,) = reader(file)({"input": INPUTS})
        # Only what falls between two codes may go to the other one.
        assert largest_difference(expected, got) < 0.02


def test_onnxruntime_multiplies_integers(file: Path, tmp_path: Path) -> None:
    session_of_onnxruntime(file, tmp_path / "optimized.onnx")
    kinds = Counter(node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph)
    assert kinds["MatMulIntegerToFloat"] == 2
    # Of the four, the one whose result goes through a ReLU to the next grid and nowhere else.
    assert kinds["QLinearConv"] == 1
    assert kinds["Gemm"] == kinds["MatMul"] == 0


def test_openvino_multiplies_integers(file: Path) -> None:
    found: Counter[tuple[str, str]] = Counter()
    for node in compile_with_openvino(file).get_runtime_model().get_ops():
        told = node.get_rt_info()
        found[told["layerType"].astype(str), told["runtimePrecision"].astype(str)] += 1
    assert found["Convolution", "u8"] == 4
    assert found["FullyConnected", "u8"] == 2


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "auto"])
def test_loading_gives_a_runtime_weights_as_they_are_stored(
    artifact: Opened, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOPRESS_CACHE", str(tmp_path))
    loaded = zoopress.load(
        artifact.folder, factory=testing_models.cnn, runtime=runtime, example_inputs=INPUTS
    )
    (written,) = tmp_path.glob(f"runtimes/onnx/*/{MODEL}")
    initializers = ir.load(written).graph.initializers.values()
    floats = [v for v in initializers if v.dtype == ir.DataType.FLOAT and len(v.shape) > 1]
    assert not floats
    assert largest_difference(artifact.module(INPUTS), loaded(INPUTS)) < 0.02
