"""Energy of a sample: by the processor's own counters where they can be read, else estimated.

The counters are RAPL's, which Linux shows below /sys/class/powercap, often to the administrator
alone. They count whatever the processor does, so other work on the machine is in them.

The estimate is the energy of arithmetic and of reading the weights once from memory, a sample at a
time, by figures of a 45 nm process. It leaves out activations, which mostly stay in caches, and all
that a machine draws while it does nothing. It is for comparing two models, not for a bill.

Source: Horowitz 2014, "Computing's energy problem", ISSCC, figure 1.1.9; 640 pJ for 32 bits of
DRAM: Han et al. 2016, arXiv:1602.01528, table 1, after the same source.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zoopress.evaluation.macs import count_macs
from zoopress.models.packing import packed_weights
from zoopress.tasks.batches import batch_length, first_samples, typical_batch

if TYPE_CHECKING:
    from zoopress.evaluation.comparison import Comparison
    from zoopress.progress import Progress
    from zoopress.tasks import Task

POWERCAP = Path("/sys/class/powercap")
MAC_PICOJOULES = {32: 4.6, 16: 1.5}
"""A multiplication with its addition, by the bits of the floats: 3.7 + 0.9, 1.1 + 0.4."""
BYTE_PICOJOULES = 160.0
"""A byte from DRAM."""
_ROUNDS, _ROUND_S = 5, 1.0


def measure(
    comparison: Comparison, progress: Progress, powercap: Path = POWERCAP
) -> dict[str, Any]:
    """Measure both models in turns, or estimate.

    Returns:
        "measured"; "original_joules" and "compressed_joules", of a sample; "ratio", original ÷
        compressed; "method", in words; and what the figures rest on: "counters" and "batch_size",
        or "assumptions" and each model's "macs" and "weight_bytes_read".
    """
    counters = find_counters(powercap)
    found = _measured(comparison, counters, progress) if counters else _estimated(comparison)
    before, after = found["original_joules"], found["compressed_joules"]
    return {**found, "ratio": before / after if after else None}


@dataclass(frozen=True)
class Counter:
    """An energy counter of RAPL, in microjoules, which begins again at its range."""

    name: str
    file: Path
    range: int

    def read(self) -> int:
        """Return what it shows now."""
        return int(self.file.read_text(encoding="ascii"))

    def joules(self, before: int, after: int) -> float:
        """Return the energy between two readings, between which it began again once at most."""
        return ((after - before) % self.range) * 1e-6


def find_counters(folder: Path = POWERCAP) -> list[Counter]:
    """Return the counters that can be read and do not overlap: packages and their memory.

    Cores and graphics are parts of their package; "psys" holds everything, but not everywhere.
    """
    found = []
    for zone in sorted(folder.glob("*-rapl:*")):
        try:
            name = (zone / "name").read_text(encoding="ascii").strip()
            # From 0 to the range itself, so that there is one value more.
            most = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
            counter = Counter(name, zone / "energy_uj", most + 1)
            if name.startswith("package") or name == "dram":
                counter.read()
                found.append(counter)
        except (OSError, ValueError):
            continue  # not a zone, or for the administrator alone
    return found


def _measured(
    comparison: Comparison, counters: Sequence[Counter], progress: Progress
) -> dict[str, Any]:
    task = comparison.task
    inputs = typical_batch(task)
    models = {"original": comparison.original, "compressed": comparison.compressed}
    joules, samples = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0)
    for module in models.values():
        task.call(module, inputs)
    for done in range(_ROUNDS):
        progress(f"round {done + 1}", done / _ROUNDS)
        for name, module in models.items():
            before = [counter.read() for counter in counters]
            calls = _repeat(lambda module=module: task.call(module, inputs))  # type: ignore[misc]
            after = [counter.read() for counter in counters]
            triples = zip(counters, before, after, strict=True)
            joules[name] += sum(counter.joules(*readings) for counter, *readings in triples)
            samples[name] += calls * batch_length(inputs)
    return {
        "measured": True,
        "method": "the processor's counters (RAPL), of all that runs on it, both models in turns",
        "counters": [counter.name for counter in counters],
        "batch_size": batch_length(inputs),
        **{f"{name}_joules": joules[name] / samples[name] for name in models},
    }


def _repeat(call: Callable[[], Any], seconds: float = _ROUND_S) -> int:
    """Call something for some time; return how often."""
    until = time.perf_counter() + seconds
    calls = 0
    while not calls or time.perf_counter() < until:
        call()
        calls += 1
    return calls


def _estimated(comparison: Comparison) -> dict[str, Any]:
    inputs = first_samples(typical_batch(comparison.task), 1)
    models = {"original": comparison.original, "compressed": comparison.compressed}
    found: dict[str, Any] = {
        "measured": False,
        "method": "estimate: arithmetic, and the weights read once from memory for each sample, by "
        "figures of a 45 nm process (Horowitz 2014)",
        "assumptions": {
            **{f"picojoules_per_mac_{bits}_bit": pj for bits, pj in MAC_PICOJOULES.items()},
            "picojoules_per_byte": BYTE_PICOJOULES,
        },
    }
    for name, module in models.items():
        macs = {
            path: counted.dense
            for path, counted in count_macs(comparison.task, module, inputs).items()
        }
        read = weight_bytes_read(comparison.task, module, inputs)
        found[f"{name}_macs"] = sum(macs.values())
        found[f"{name}_weight_bytes_read"] = read
        arithmetic = sum(
            count * MAC_PICOJOULES[_float_bits(module.get_submodule(path), module)]
            for path, count in macs.items()
        )
        found[f"{name}_joules"] = (arithmetic + read * BYTE_PICOJOULES) * 1e-12
    return found


def weight_bytes_read(task: Task, module: nn.Module, inputs: Any) -> int:
    """Return the bytes of a model's tensors as they are in memory, packed ones as packed.

    Tied ones count once; of a table in which rows are only looked up, those rows count.
    """
    tables = [m for m in module.modules() if isinstance(m, nn.Embedding)]
    looked_up: dict[nn.Module, int] = dict.fromkeys(tables, 0)

    def count(table: nn.Module, arguments: Any, output: Any) -> None:
        looked_up[table] += arguments[0].numel()

    handles = [table.register_forward_hook(count) for table in tables]
    try:
        task.call(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    of_tables = {child for table in tables for child in table.modules()}
    shares: dict[int, tuple[int, float]] = {}
    for table in tables:
        share = min(1.0, looked_up[table] / table.num_embeddings)
        for tensor in _tensors(table):
            most = max(share, shares.get(tensor.data_ptr(), (0, 0.0))[1])
            shares[tensor.data_ptr()] = (tensor.nbytes, most)
    for other in module.modules():
        if other not in of_tables:
            for tensor in _tensors(other, recurse=False):
                shares[tensor.data_ptr()] = (tensor.nbytes, 1.0)
    return round(sum(size * share for size, share in shares.values()))


def _tensors(module: nn.Module, recurse: bool = True) -> list[Tensor]:
    return [t for t in (*module.parameters(recurse), *module.buffers(recurse)) if t.nbytes]


def _float_bits(layer: nn.Module, model: nn.Module) -> int:
    """Return the bits of the floats that a layer computes with; without weights, the model's."""
    for module in (layer, model):
        types = [p.dtype for p in module.parameters() if p.is_floating_point()]
        types += [packed.dtype for packed in packed_weights(module).values()]
        if types:
            return 16 if all(dtype.itemsize == 2 for dtype in types) else 32
    return 32
