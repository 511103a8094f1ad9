"""Reports of every shape, made by hand, and pictures to stand in them."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

from zoopress.evaluation.runtimes import fastest
from zoopress.results import Fidelity, LayerResult, Report, StageResult
from zoopress.techniques import Claim

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></svg><b onclick=alert(1)>",
    "javascript:alert(1)",
    "</pre></details>|`[x](http://evil.test)",
    "INK & {{ 7 * 7 }} {% raw %}",
    "line\nbreak\x1b[31m\x00end",
]
DIGITS = [str(digit) for digit in range(10)]
MACHINE = {
    "processor": "AMD EPYC",
    "cores": 2,
    "threads": 1,
    "capability": "AVX512",
    "torch": "2.13.0+cpu",
    "python": "3.11.7",
}


def png(size: int = 8) -> str:
    """A real picture: a grey gradient."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(
        b"\0" + bytes(255 * (x + y) // (2 * size) for x in range(size)) for y in range(size)
    )
    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    return "data:image/png;base64," + base64.b64encode(content).decode()


def stage(technique: str, before: int, after: int, cosine: float, **more: Any) -> StageResult:
    values: dict[str, Any] = {
        "technique": technique,
        "config": {"sparsity": 0.5, "kinds": ["linear"]},
        "touched": ["0.weight", "2.weight"],
        "shrinks": True,
        "claims": [Claim("sparsity", 0.5, 0.5)],
        "weight_bytes_before": before,
        "weight_bytes": after,
        "size_bytes": after + 2_000,
        "parameters": 266_610,
        "pruned": 133_000,
        "finite": True,
        "reload_difference": 0.0,
        "fidelity": Fidelity(1_000, cosine, 0.997, 0.97),
        "seconds": 1.5,
    }
    return StageResult(**{**values, **more})


def training_notes() -> dict[str, Any]:
    return {
        "steps": 200,
        "best_step": 150,
        "stopped_early": True,
        "losses": [[step, 2.0 / (1 + step / 30)] for step in range(10, 201, 10)],
        "evaluations": [
            {
                "step": s,
                "loss": 0.3 + abs(150 - s) / 500,
                "metrics": {"accuracy": 0.98 - abs(150 - s) / 5e3},
            }
            for s in (50, 100, 150, 200)
        ],
    }


def confusion(names: list[str] = DIGITS) -> dict[str, Any]:
    count = len(names)
    before = [
        [97 if i == j else int((i * 7 + j) % 11 == 0) for j in range(count)] for i in range(count)
    ]
    after = [row[:] for row in before]
    for i, j, change in ((3, 5, 2), (4, 9, 1), (2, 7, -1)):
        if max(i, j) < count:
            after[i][j] += change
            after[i][i] -= change
    return {"labels": names, "original": before, "compressed": after}


def task(names: list[str] = DIGITS, shown: Any = None) -> dict[str, Any]:
    """What `measure_task` says of a classification."""
    example = {
        "row": 17,
        "kind": "right_to_wrong",
        "target": names[3 % len(names)],
        "original": names[3 % len(names)],
        "compressed": names[5 % len(names)],
        "shown": png() if shown is None else shown,
    }
    other = {**example, "row": 40, "kind": "wrong_to_right", "target": names[-1]}
    return {
        "samples": 1_000,
        "metric": "accuracy",
        "confidence": 0.95,
        "resamples": 1_000,
        "metrics": {
            "macro_f1": {
                "original": 0.988,
                "compressed": 0.985,
                "difference": -0.003,
                "better": "higher",
            },
            "accuracy": {
                "original": 0.989,
                "compressed": 0.986,
                "difference": -0.003,
                "original_interval": [0.982, 0.995],
                "compressed_interval": [0.979, 0.992],
                "difference_interval": [-0.005, -0.001],
                "better": "higher",
            },
            "log_loss": {
                "original": 0.0412,
                "compressed": 0.0533,
                "difference": 0.0121,
                "better": "lower",
            },
        },
        "mcnemar": {"statistic": 1.0, "p_value": 0.25, "only_original": 3, "only_compressed": 0},
        "confusion": confusion(names),
        "changes": {
            "samples": 1_000,
            "flipped": 4,
            "right_to_wrong": 3,
            "wrong_to_right": 1,
            "wrong_to_other_wrong": 0,
            "examples": [example, other],
        },
    }


def layers(name: str = "layers") -> list[LayerResult]:
    sizes = [784 * 300, 300 * 100, 100 * 10]
    return [
        LayerResult(f"{name}.{i}.weight", "linear", n, 4 * n, n // 2, 0.05 * (i + 1), 1e-4 * 8**i)
        for i, n in enumerate(sizes)
    ]


def labelled(recipe: str = "small", **more: Any) -> Report:
    """A classifier that was pruned and taught again, quantized and coded."""
    accuracy: dict[str, Any] = {"metric": "accuracy"}
    values: dict[str, Any] = {
        "card": {
            "name": "lenet",
            "source": "path:lenet.safetensors",
            "description": "LeNet-300-100 on MNIST",
            "task": "image-classification",
            "data": {"dataset": "idx:mnist", "evaluation_samples": 1000},
        },
        "recipe": {
            "name": recipe,
            "description": "prune half, quantize to 4 bits, entropy code",
            "seed": 0,
            "stages": [{"technique": "magnitude_pruning", "sparsity": 0.5, "targets": {}}],
            "targets": {},
        },
        "revision": "local",
        "original_size_bytes": 1_070_000,
        "original_weight_bytes": 1_066_440,
        "original_parameters": 266_610,
        "stages": [
            stage(
                "magnitude_pruning",
                1_066_440,
                1_080_000,
                0.991,
                metrics={"accuracy": 0.987},
                metric_drop=0.002,
                recovery={"technique": "distillation", "epochs": 1},
                notes={"recovery": [training_notes()]},
                **accuracy,
            ),
            stage(
                "weight_quantization",
                1_080_000,
                300_000,
                0.986,
                metrics={"accuracy": 0.986},
                metric_drop=0.003,
                **accuracy,
            ),
            stage(
                "entropy_coding",
                300_000,
                198_000,
                0.986,
                metrics={"accuracy": 0.986},
                metric_drop=0.003,
                **accuracy,
            ),
        ],
        "latency": [
            {
                "batch_size": size,
                "original_ms_p50": ms,
                "original_ms_p95": 1.2 * ms,
                "compressed_ms_p50": ms / 1.14,
                "compressed_ms_p95": ms,
                "speed_up": 1.14,
                "runs": 200,
            }
            for size, ms in ((1, 0.2), (32, 1.6))
        ],
        "machine": MACHINE,
        "kernels": {"dense once loaded": 3},
        "loads_as": {"architecture": "factory"},
        "artifact_sha256": "0" * 64,
        "made_with": {"zoopress": "0.1.0", "torch": "2.13.0"},
        "layers": layers(),
        "evaluation": {
            "task": task(),
            "computation": {
                "original_macs": 266_200,
                "compressed_macs": 266_200,
                "effective_macs": 133_100,
                "reduction": 1.0,
            },
            "robustness": {
                "score": "accuracy",
                "clean": {"original": 0.989, "compressed": 0.986},
                "fgsm": {"original": 0.61, "compressed": 0.58},
                "pgd": {"original": 0.4, "compressed": 0.41},
                "corruptions": [
                    {"name": name, "severity": s, "original": a - s / 50, "compressed": b - s / 50}
                    for name, a, b in (("blur", 0.95, 0.94), ("shot_noise", 0.99, 0.96))
                    for s in (1, 3, 5)
                ],
                "settings": {"epsilon": 0.1, "pgd_steps": 10},
            },
            "energy": {"skipped": "this machine has no counters"},
        },
    }
    return Report(**{**values, **more})


def runtimes() -> dict[str, Any]:
    """What the measure of that name finds."""

    def row(runtime: str, threads: int, size: int, before: float, after: float) -> dict[str, Any]:
        figures = {
            f"{which}_{figure}": value
            for which, ms in (("original", before), ("compressed", after))
            for figure, value in (
                ("ms_p50", ms),
                ("ms_p95", 1.5 * ms),
                ("samples_per_second", 1e3 * size / ms),
            )
        }
        return {"runtime": runtime, "threads": threads, "batch_size": size, "runs": 9, **figures}

    rows = [
        row(name, threads, size, before * size / threads, after * size / threads)
        for threads in (2, 1)
        for size in (1, 32)
        for name, before, after in (("eager", 8.0, 10.0), ("openvino", 6.0, 2.0))
    ]
    return {
        "rows": [*rows, {"runtime": "onnxruntime", "threads": 2, "batch_size": 1, "runs": 9}],
        "fastest": fastest(rows),
        "memory": [{"runtime": "openvino", "original_bytes": 8_000_000}],
        "refused": {"onnxruntime": {"compressed": "no operator <b>x</b>"}},
    }


def unlabelled(recipe: str = "bare") -> Report:
    """The least that a run leaves: no labels, no latency, no layers, one stage."""
    return labelled(
        recipe,
        card={"name": "net", "source": "path:net.safetensors"},
        stages=[stage("entropy_coding", 1_066_440, 700_000, 0.99, fidelity=Fidelity(16, 0.99))],
        latency=[],
        layers=[],
        kernels={},
        evaluation={},
    )


def hostile() -> Report:
    """Names, labels and texts that want to be more than text."""
    names = [*HOSTILE, *(f"{text}2" for text in HOSTILE[:3])]
    report = labelled(
        HOSTILE[0],
        card={
            "name": HOSTILE[1],
            "source": "path:net.safetensors",
            "description": HOSTILE[2],
            "data": {"text": HOSTILE[4]},
        },
        layers=[
            LayerResult(text, "linear", 100, 400, 50, 0.1, 1e-3 * (i + 1))
            for i, text in enumerate(HOSTILE)
        ],
        machine={**MACHINE, "processor": HOSTILE[0]},
        kernels={HOSTILE[0]: 1},
        evaluation={
            "task": task(names, shown=HOSTILE[1]),
            HOSTILE[0]: {HOSTILE[1]: HOSTILE[2], "list": [{HOSTILE[3]: HOSTILE[4]}]},
        },
        made_with={"zoopress": HOSTILE[0]},
    )
    report.stages[0].notes["recovery"][0]["evaluations"][0]["metrics"] = {HOSTILE[0]: 0.5}
    return report
