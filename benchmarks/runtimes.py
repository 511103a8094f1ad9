"""Time a card's original and a recipe's artifact in every runtime, with the peers' own integers.

All take turns in one process on the same sentences; the order moves on by one in each round. Size
is that of the file that the runtime opens (of the artifact or the original for PyTorch). Label
loyalty is that of the outputs which the runtime gives, on the card's evaluation sentences.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results_files import table, write
from torch import nn

from zoopress.artifacts.opened import Call, Opened, open_artifact
from zoopress.cards import load_card
from zoopress.cells.cell import open_original
from zoopress.errors import DeploymentError
from zoopress.evaluation.fidelity import compare_outputs, run_all
from zoopress.evaluation.machine import describe_machine
from zoopress.models.model import Model
from zoopress.pipeline.compress import compress
from zoopress.plugins import load_plugins
from zoopress.progress import terminal
from zoopress.recipes import load_recipe
from zoopress.runtimes import start
from zoopress.store import Store
from zoopress.tasks.batches import first_samples, typical_batch
from zoopress_plugins.deployment.kept import kept_onnx
from zoopress_plugins.deployment.onnx_program import MODEL, write_onnx
from zoopress_plugins.deployment.onnx_readers import (
    open_with_onnxruntime,
    open_with_openvino,
)
from zoopress_plugins.deployment.program_module import module_of

BATCH_SIZES = (1, 32)
PEERS = ("onnxruntime_dynamic", "onnxruntime_static", "nncf_openvino", "nncf_onnxruntime")
TITLES = {"minilm": "all-MiniLM-L6-v2", "efficientnet-lite0": "EfficientNet-lite0"}


def calls_of(task: Any, module: nn.Module, split: str, batches: int) -> list[Call]:
    """Return how a task calls a module on the first batches of a split."""
    found = []
    for batch, _ in zip(task.batches(split), range(batches), strict=False):
        inputs = first_samples(batch, 16)
        found.append(Call.caught(module, lambda inputs=inputs: task.call(module, inputs)))
    return found


def with_onnxruntime(file: Path, folder: Path) -> Path:
    """Return ONNX Runtime's own dynamic quantization of a file."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(file), str(folder / "dynamic.onnx"), weight_type=QuantType.QInt8)
    return folder / "dynamic.onnx"


def arrays_of(names: list[str], calibration: list[Call]) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Return calls as arrays by the names of a program's inputs."""
    data: list[dict[str, np.ndarray[Any, Any]]] = []
    for each in calibration:
        tensors = [*each.arguments, *each.named.values()]
        arrays = [t.numpy() for t in tensors if isinstance(t, torch.Tensor)]
        if set(names) <= set(each.named):
            arrays = [each.named[name].numpy() for name in names]
        data.append(dict(zip(names, arrays, strict=True)))
    return data


def input_names(file: Path) -> list[str]:
    """Return what an ONNX file's inputs are called."""
    import openvino

    return [each.get_any_name() for each in openvino.Core().read_model(str(file)).inputs]


def with_onnxruntime_static(file: Path, folder: Path, calibration: list[Call]) -> Path:
    """Return ONNX Runtime's static quantization of a file: QDQ, a scale for each channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(arrays_of(input_names(file), calibration))

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            return next(self._left, None)

    quant_pre_process(str(file), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    quantize_static(
        str(folder / "prepared.onnx"),
        str(folder / "static.onnx"),
        Reader(),
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )
    return folder / "static.onnx"


def with_nncf(file: Path, folder: Path, calibration: list[Call], text: bool, runtime: str) -> Path:
    """Return NNCF's post-training quantization of a file, in OpenVINO's files or as ONNX."""
    import nncf
    import onnx
    import openvino

    data = arrays_of(input_names(file), calibration)
    in_openvino = runtime == "openvino"
    model = nncf.quantize(
        openvino.Core().read_model(str(file)) if in_openvino else onnx.load(str(file)),
        nncf.Dataset(data),
        model_type=nncf.ModelType.TRANSFORMER if text else None,
        subset_size=len(data),
    )
    if in_openvino:
        openvino.save_model(model, str(folder / "nncf.xml"), compress_to_fp16=False)
        return folder / "nncf.xml"
    onnx.save(model, str(folder / "onnx-nncf.onnx"))
    return folder / "onnx-nncf.onnx"


def with_defaults(file: Path) -> Any:
    """Return what runs a peer's file in ONNX Runtime as everybody opens it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])

    def run(tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        given = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
        return [torch.from_numpy(np.asarray(each)) for each in session.run(None, given)]

    return run


def bytes_of(file: Path) -> int:
    """Return the size of a file and of those beside it that have its name."""
    return sum(path.stat().st_size for path in file.parent.glob(f"{file.stem}*"))


def timed(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def measured(
    task: Any, modules: dict[str, nn.Module], batch: Any, seconds: float
) -> dict[str, list[float]]:
    """Return the times of each module's calls in milliseconds, in turns."""
    for module in modules.values():
        for _ in range(2):
            task.call(module, batch)
    order, found = list(modules), {name: [] for name in modules}  # type: ignore[var-annotated]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found[order[0]]) < 5:
        for name in order:
            found[name].append(1e3 * timed(lambda name=name: task.call(modules[name], batch)))  # type: ignore[misc]
        order = order[1:] + order[:1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--card", default="minilm", help="a card's name or file (%(default)s)")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--runtimes", nargs="+", default=["compile", "onnxruntime", "openvino"])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--store", type=Path, help="where stage results are kept")
    parser.add_argument("--seconds", type=float, default=20, help="for each batch size")
    parser.add_argument("--threads", type=int, default=1, help="of each runtime (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    plugins = load_plugins()
    card = load_card(options.card, plugins)
    original = open_original(card, plugins)
    task, module = original.task, original.model.load().eval()
    example = calls_of(task, module, "test", 1)[0].repeated(8)
    modules: dict[str, nn.Module] = {"original, eager": module}
    sizes = {"original, eager": original.files.size_bytes()}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = load_recipe(options.recipe, plugins)
        store = Store(options.store)
        made = compress(card, recipe, folder / "run", store, plugins, terminal())
        factory = getattr(original.architecture, "factory", None)
        artifact = replace(open_artifact(made.artifact, plugins, factory), example=example)
        modules[f"{recipe.name}, eager"] = artifact.module
        sizes[f"{recipe.name}, eager"] = made.report.metrics()["size_bytes"]
        for name in options.runtimes:
            try:
                modules[f"{recipe.name}, {name}"] = start(name, artifact, plugins).module
            except DeploymentError as error:
                failed[f"{recipe.name}, {name}"] = str(error)
                continue
            kept = name in ("onnxruntime", "openvino")
            stored = sizes[f"{recipe.name}, eager"]
            sizes[f"{recipe.name}, {name}"] = bytes_of(kept_onnx(artifact)) if kept else stored

        floats = Opened(
            Model(module, plugins.layers), artifact.architecture, artifact.manifest, folder, example
        )
        write_onnx(floats, folder)
        files: dict[str, Path] = {}
        opened = {"onnxruntime": open_with_onnxruntime, "openvino": open_with_openvino}
        for name in set(options.runtimes) & set(opened):
            files[f"original, {name}"] = folder / MODEL
        if "onnxruntime_dynamic" in options.peers:
            files["ONNX Runtime dynamic int8, onnxruntime"] = with_onnxruntime(
                folder / MODEL, folder
            )
        calibration = calls_of(task, module, "calibration", 16)
        text = card.data is not None and card.data.text is not None
        if "onnxruntime_static" in options.peers:
            files["ONNX Runtime static int8, onnxruntime"] = with_onnxruntime_static(
                folder / MODEL, folder, calibration
            )
        for name in ("openvino", "onnxruntime"):
            if f"nncf_{name}" in options.peers:
                try:
                    files[f"NNCF int8, {name}"] = with_nncf(
                        folder / MODEL, folder, calibration, text, name
                    )
                except Exception as error:  # whatever it says of the file
                    failed[f"NNCF int8, {name}"] = " ".join(str(error).split())[:300]
        for name, file in files.items():
            where = name.rpartition(", ")[2]
            plain = where == "onnxruntime" and not name.startswith("original")
            try:
                run = with_defaults(file) if plain else opened[where](file)
            except Exception as error:  # whatever the library says of a peer's file
                failed[name] = " ".join(str(error).split())[:300]
                continue
            modules[name], sizes[name] = module_of(floats, run), bytes_of(file)

        reference = run_all(task, module).outputs
        fidelity = {
            name: compare_outputs(task, reference, run_all(task, each).outputs)
            for name, each in modules.items()
        }
        times = {
            size: measured(task, modules, first_samples(typical_batch(task), size), options.seconds)
            for size in BATCH_SIZES
        }
    report(options, card, modules, sizes, fidelity, times, failed)


def report(
    options: argparse.Namespace,
    card: Any,
    modules: dict[str, nn.Module],
    sizes: dict[str, int],
    fidelity: dict[str, Any],
    times: dict[int, dict[str, list[float]]],
    failed: dict[str, str],
) -> None:
    """Write the page of results."""
    rows, figures = [], []
    for name in modules:
        row = [name, f"{sizes[name]:,}", f"{fidelity[name].label_loyalty:.3f}"]
        figure: dict[str, Any] = {
            "what": name,
            "size_bytes": sizes[name],
            "label_loyalty": fidelity[name].label_loyalty,
            "cosine": fidelity[name].cosine,
        }
        for size, by_name in times.items():
            values = sorted(by_name[name])
            p50, p95 = statistics.median(values), values[int(0.95 * (len(values) - 1))]
            base = statistics.median(by_name["original, eager"])
            row += [f"{base / p50:.2f}×", f"{p50:.1f}", f"{p95:.1f}"]
            figure[f"batch_{size}"] = {
                "calls": len(values),
                "p50_ms": p50,
                "p95_ms": p95,
                "speed_up": base / p50,
            }
        rows.append(row)
        figures.append(figure)
    header = ["what, where it runs", "bytes", "label loyalty"]
    for size in BATCH_SIZES:
        header += [f"speed-up, batch {size}", "p50 ms", "p95 ms"]
    calls = min(len(values) for by_name in times.values() for values in by_name.values())
    lines = [
        f"Card `{card.name}`. Speed-up: median of the original in eager PyTorch ÷ median, in turns "
        f"in one process, at least {calls} calls each. Measured on a machine that others used at "
        "the same time: ratios are rough, and milliseconds say little.",
        "",
        *table(header, rows),
        *(f"\n{name}: {reason}" for name, reason in failed.items()),
    ]
    arguments = f" --runtimes {' '.join(options.runtimes)} --seconds {options.seconds:g}"
    others = [f"--card {options.card}"] if card.name != "minilm" else []
    arguments = " ".join(["", *others]) + arguments
    write(
        "runtimes" if card.name == "minilm" else f"runtimes-{card.name}",
        f"Runtimes on {TITLES.get(card.name, card.name)}",
        lines,
        {
            "command": f"python benchmarks/runtimes.py{arguments}",
            "machine": describe_machine(),
            "card": card.name,
            "shared_machine": True,
            "failed": failed,
            "results": figures,
        },
    )


if __name__ == "__main__":
    main()
