"""Peak memory of inference: each model in a process of its own, loaded as its users load it.

What a process needs before a model comes (Python, torch, the architecture's code, torch's own work
space) is not counted, so that what is left is the model's: weights, packed or not, what its kernels
keep, and activations. Resident memory is counted, pages of mapped files included.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from zoopress.errors import StageError
from zoopress.tasks.batches import batch_length, map_tensors, named_tensors

if TYPE_CHECKING:
    from zoopress.cards import Card
    from zoopress.evaluation.comparison import Comparison
    from zoopress.progress import Progress


def measure(comparison: Comparison, progress: Progress) -> dict[str, Any]:
    """Load and run both models on the largest batch of the test split, and on its first sample.

    Returns:
        By "single" and "batch" the peaks while a model runs, "original_bytes", "compressed_bytes"
        and "ratio", original ÷ compressed; by "loading" those while it is loaded. "inputs" are the
        shapes of the batch.

    Raises:
        StageError: if a process fails or is killed.
    """
    inputs = max(
        comparison.task.batches("test"),
        key=lambda batch: sum(tensor.numel() for tensor in named_tensors(batch).values()),
    )
    card = comparison.task.card
    progress("original", 0.0)
    original = measure_in_process(card, inputs)
    progress("compressed", 0.5)
    compressed = measure_in_process(card, inputs, comparison.artifact)
    return {
        "batch_size": batch_length(inputs),
        "inputs": map_tensors(inputs, lambda _, tensor: list(tensor.shape)),
        **{
            when: {
                "original_bytes": before,
                "compressed_bytes": compressed[when],
                "ratio": before / compressed[when] if compressed[when] else None,
            }
            for when, before in original.items()
        },
    }


def measure_in_process(
    card: Card, inputs: Any, artifact: Path | None = None, runtime: str = "eager"
) -> dict[str, int]:
    """Load and run a model in a new process.

    Args:
        card: how to load and run it.
        inputs: what it is run on.
        artifact: the compressed model; the card's original by default.
        runtime: what runs an artifact.

    Returns:
        Peaks in bytes above what the process had before: while "loading", while running on the
        first sample, "single", and while running on the "batch".

    Raises:
        StageError: if the process fails or is killed.
    """
    what = "the original" if artifact is None else "the compressed model"
    with tempfile.TemporaryDirectory() as folder:
        # By number: a name may be empty.
        tensors = enumerate(named_tensors(inputs).values())
        save_file({str(i): t.contiguous().clone() for i, t in tensors}, f"{folder}/inputs")
        order = {name: i for i, name in enumerate(named_tensors(inputs))}
        request = {
            "card": card.as_dict(),
            "root": str(card.root.resolve()),
            "artifact": None if artifact is None else str(artifact.resolve()),
            "runtime": runtime,
            "tensors": f"{folder}/inputs",
            "inputs": _structure(map_tensors(inputs, lambda name, _: _Numbered(order[name]))),
        }
        done = subprocess.run(
            [sys.executable, "-m", "zoopress.evaluation.memory_process"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise StageError(
            f"Memory could not be measured: the process that runs {what} {_end(done)} Leave "
            "'memory' out of the card's 'measures', or run where there is more memory."
        )
    peaks: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return peaks


class _Numbered(int):
    """The number of a tensor in a file, in the place of the tensor."""


def _structure(inputs: Any) -> Any:
    """Return inputs as JSON that `memory_process` reads: the kind of each part beside it."""
    if isinstance(inputs, _Numbered):
        return ["tensor", int(inputs)]
    if isinstance(inputs, dict):
        return ["dict", {key: _structure(value) for key, value in inputs.items()}]
    if isinstance(inputs, (tuple, list)):
        return [type(inputs).__name__, [_structure(value) for value in inputs]]
    return ["value", inputs]


def _end(done: subprocess.CompletedProcess[str]) -> str:
    """Say how a process failed."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        killed = "was killed, most likely for want of memory" if name == "SIGKILL" else "crashed"
        return f"{killed} ({name})."
    said = done.stderr.strip().splitlines()
    return f"failed: {said[-1] if said else f'status {done.returncode}'}."
