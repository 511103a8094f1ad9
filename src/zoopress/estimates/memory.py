"""How much memory a cell takes at most: a claim on what runs share, without loading anything.

    start      Python, torch and plugins, as measured here or 256 MiB
    libraries  what a model that no factory builds needs, such as transformers: 256 MiB
    slack      tracing, meta tensors, heap that is not given back: 224 MiB, and for each run up to
               128 MiB in blocks below 32 MiB, which glibc keeps
    compiling  the coders' kernels, which the first run after an installation does: 64 MiB
    models     the original and the one that is worked on
    work       the larger of saving and loading again, and of what the technique takes
    running    a batch's activations, and all outputs of both models with their comparison

The constants bound what `benchmarks/estimates.py` measures; see docs/plan.md.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoopress.artifacts.manifest import Manifest
from zoopress.cards import Card
from zoopress.cells.cell import Cell
from zoopress.estimates.measurements import Calibration, MachineSpeed, ModelProfile, selected
from zoopress.recipes import Recipe
from zoopress.sources import Architecture
from zoopress.store import Store
from zoopress.techniques import Technique
from zoopress.training.config import TrainingConfig

MIB = 1 << 20
_START = 256 * MIB
_LIBRARIES = 256 * MIB
_SLACK = 224 * MIB
_COMPILING = 64 * MIB
_KEPT_HEAP = 128 * MIB
_KEPT_BLOCKS = 8
_SAVING = 1.5
_OUTPUT_BYTES = 28
"""Of each number that the original puts out: both models' outputs, and copies to compare them."""
_ACTIVATIONS = 24
"""How many of a layer's float32 outputs are alive at once; for models that were not run here."""
_TOKENS = 64
_KEPT_OUTPUTS = 3
"""How many numbers training keeps for each that a layer puts out; for models not run here."""
_MOST_OUTPUTS = 50_000_000
"""As `evaluation.MAX_OUTPUT_ELEMENTS`, which cannot be had without torch."""
_LARGEST_HEADER = 100_000_000
_DEQUANTIZED = 8
"""Bytes in float32 of a byte in a file of 4-bit numbers."""


@dataclass(frozen=True)
class TensorSizes:
    """Sizes of a model's tensors.

    Attributes:
        bytes: of all tensors as the model holds them.
        numbers: in all tensors.
        largest: numbers in the largest one.
        width: of the rows of the largest one.
    """

    bytes: int
    numbers: int
    largest: int
    width: int


def memory_bytes(cell: Cell) -> int:
    """Return the most memory that computing a cell takes, in bytes; nothing is loaded for that.

    What was measured of the model on this machine is used if it is there.
    """
    calibration = calibration_of(cell.store, cell)
    files, manifest = cell.original.files, cell.original.model.manifest
    sizes = (
        tensor_sizes(files.folder, files.weights)
        if manifest is None
        else sizes_of_compressed(manifest)
    )
    return memory_of(
        cell.original.card,
        cell.recipe,
        sizes,
        calibration.machine(),
        calibration.model(cell.source_key),
        says_words(cell.original.architecture),
    )


def calibration_of(store: Store, cell: Cell) -> Calibration:
    """Return what is known of this machine."""
    return Calibration(store.root / "calibration", cell.plugins)


def memory_of(
    card: Card,
    recipe: Recipe,
    sizes: TensorSizes,
    machine: MachineSpeed | None = None,
    profile: ModelProfile | None = None,
    words: bool = False,
) -> int:
    """Return the most memory that a card and a recipe take, in bytes.

    Args:
        card: which model.
        recipe: which stages.
        sizes: of its tensors.
        machine: what is known of the machine.
        profile: what is known of the model here.
        words: whether it puts out a score for each word, for where that is not known.
    """
    start = machine.start_bytes if machine else _START
    libraries = 0 if card.factory else _LIBRARIES
    heap = _SLACK + _COMPILING + min(_KEPT_BLOCKS * 4 * sizes.largest, _KEPT_HEAP)
    techniques = [technique for stage in recipe.stages for technique in stage.techniques]
    work = max(
        int(_SAVING * sizes.bytes),
        *(_working_bytes(technique, sizes, profile) for technique in techniques),
    )
    running = max(
        _running_bytes(card, sizes, profile, words),
        *(_training_bytes(card, technique, sizes, profile) for technique in techniques),
    )
    return start + libraries + heap + 2 * sizes.bytes + work + running


def _working_bytes(
    technique: Technique[Any], sizes: TensorSizes, profile: ModelProfile | None
) -> int:
    """Return what a technique takes besides the model; all compute in float32."""
    if profile is None:
        return technique.working_bytes(4 * sizes.numbers, 4 * sizes.largest)
    counts = [profile.weights[i].count for i in selected(technique, profile.weights)]
    return technique.working_bytes(4 * sum(counts), 4 * max(counts, default=0))


def _training_bytes(
    card: Card, technique: Technique[Any], sizes: TensorSizes, profile: ModelProfile | None
) -> int:
    """Return what a batch takes forward and backward: what each layer puts out is kept."""
    config, data = technique.config, card.data
    if data is None:
        return 0
    if isinstance(config, TrainingConfig):
        batch_size = config.batch_size
    elif technique.gradient_passes():
        batch_size = data.batch_size
    else:
        return 0
    if profile is not None and profile.training_bytes:
        share = batch_size / data.batch_size
        return int(profile.training_bytes * max(1.0, share) * 5 // 4)
    matrices = sizes.numbers // max(1, sizes.width**2)
    return 4 * _KEPT_OUTPUTS * batch_size * _TOKENS * sizes.width * matrices


def says_words(architecture: Architecture) -> bool:
    """Tell whether a model scores every word of its vocabulary, by its class or its purpose."""
    named = " ".join(map(str, architecture.arguments.values()))
    return re.search("LM|Generation|generation", named) is not None


def _running_bytes(
    card: Card, sizes: TensorSizes, profile: ModelProfile | None, words: bool
) -> int:
    if profile is not None and profile.measured:
        return profile.run_bytes * 5 // 4 + _OUTPUT_BYTES * profile.output_elements
    if card.data is None:
        return 0
    if card.data.random is None:
        numbers = _TOKENS * sizes.width
    else:
        numbers = sum(
            math.prod(item.shape) * (sizes.width if item.dtype == "int64" else 1)
            for item in card.data.random.values()
        )
    outputs = profile.output_elements if profile is not None else 0
    if words and not outputs:
        vocabulary = sizes.largest // max(1, sizes.width)
        outputs = card.data.batch_size * _TOKENS * vocabulary + _MOST_OUTPUTS
    return 4 * _ACTIVATIONS * card.data.batch_size * numbers + _OUTPUT_BYTES * outputs


def tensor_sizes(folder: Path, names: Iterable[str]) -> TensorSizes:
    """Return the sizes of the tensors in weight files: exact for safetensors, else a bound."""
    found = []
    for name in names:
        path = folder / name
        if name.endswith(".safetensors"):
            found += _safetensors_sizes(path)
        elif not name.endswith(".json"):
            size = path.stat().st_size * (_DEQUANTIZED if name.endswith(".gguf") else 1)
            found.append((size, size // 4, size // 4))
    return sizes_of(found)


def sizes_of_compressed(manifest: Manifest) -> TensorSizes:
    """Return bounds of the sizes of a compressed model's tensors: those of its first original.

    It has no more numbers than that had, and what is packed may become dense to compute with.
    """
    size = max(manifest.base.size_bytes, manifest.weight_bytes())
    return sizes_of([(size, size // 4, math.isqrt(size // 4))])


def sizes_of(tensors: Iterable[tuple[int, int, int]]) -> TensorSizes:
    """Sum tensors up, each given as bytes, numbers, and numbers in a row."""
    items = list(tensors) or [(0, 0, 0)]
    largest = max(items, key=lambda item: item[1])
    return TensorSizes(
        bytes=sum(item[0] for item in items),
        numbers=sum(item[1] for item in items),
        largest=largest[1],
        width=min(largest[2], math.isqrt(max(1, largest[1]))),
    )


def _safetensors_sizes(path: Path) -> list[tuple[int, int, int]]:
    """Read a header; a damaged file is for who loads it to report."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _LARGEST_HEADER:
            return []
        try:
            header = json.loads(stream.read(length))
            return [
                (end - start, math.prod(item["shape"]), (item["shape"] or [1])[-1])
                for name, item in header.items()
                if name != "__metadata__"
                for start, end in [item["data_offsets"]]
            ]
        except (ValueError, LookupError, TypeError, AttributeError):
            return []
