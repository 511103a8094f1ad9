"""Which runtime is the fastest: both models in every one that is installed, in turns.

A compressed model that is compared with an original in eager PyTorch looks faster than it is to
whoever runs the original elsewhere: so each is also compared in its own fastest runtime.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoopress.artifacts.opened import Call, open_artifact
from zoopress.cells.cell import open_original
from zoopress.cells.save import save_original
from zoopress.errors import InputError, StageError, ZoopressError
from zoopress.evaluation.latency import times_in_turns, timing
from zoopress.evaluation.memory import measure_in_process
from zoopress.runtimes.runtime import packed_first, start
from zoopress.tasks.batches import batch_length, first_samples, typical_batch

if TYPE_CHECKING:
    from zoopress.evaluation.comparison import Comparison
    from zoopress.plugins import Plugins
    from zoopress.progress import Progress
    from zoopress.tasks import Task

MODELS = ("original", "compressed")
LARGE = 32
"""Samples of the larger batch, if the test split has as many in one."""
_SECONDS = 0.5
"""How long each model in each runtime is timed, for each batch size and number of threads."""
_THREADS = "ZOOPRESS_THREADS"
_CACHE = "ZOOPRESS_CACHE"
_CHOOSES = "auto"
_WORDS = 300

Key = tuple[str, str]
"""Which model, and the runtime."""


def measure(comparison: Comparison, progress: Progress) -> dict[str, Any]:
    """Time both models in each runtime, with one thread and with all, and measure their memory.

    Returns:
        "rows": for each runtime, number of threads and batch size, of each model that runs there
        the median and 95th percentile in milliseconds and the samples a second.
        "fastest": for each number of threads and batch size the fastest runtime of each model, its
        median, and the speed-up: that of the original ÷ that of the compressed model.
        "memory": by runtime, peaks of each model in bytes while it runs on the larger batch, in a
        process of its own, as the measure `memory` counts them.
            A runtime that compiles anew for each size is timed with all threads alone, and its
            memory is not measured.
        "refused": by runtime, why it does not run a model.
        "skipped": why, if a task never calls the model as a whole.
    """
    card, plugins = comparison.task.card, comparison.plugins
    original = open_original(card, plugins)
    factory = getattr(original.architecture, "factory", None)
    batch = typical_batch(comparison.task)
    sizes = sorted({1, min(LARGE, batch_length(batch))})
    batches = [first_samples(batch, size) for size in sizes]
    try:
        Call.of_task(comparison.task, comparison.original)
    except InputError as error:
        return {"skipped": str(error)}
    bench = _Bench(comparison.task, plugins, batches)
    with tempfile.TemporaryDirectory() as temporary:
        before = save_original(original, plugins, Path(temporary) / "original")
        places = {
            "original": _Place(before, factory, str(Path(temporary) / "cache")),
            "compressed": _Place(comparison.artifact, factory),
        }
        counts = _thread_counts()
        with _room_for_compiled():
            for threads in counts:
                with _environment(_THREADS, str(threads)), _threads(threads):
                    bench.time(places, threads, threads == counts[0], progress)
        memory = []
        for name in dict.fromkeys(row["runtime"] for row in bench.rows):
            if bench.recompiles(name):
                continue
            peaks: dict[str, Any] = {"runtime": name}
            for which, place in places.items():
                if bench.has_run(which, name):
                    progress(f"measuring memory in {name}")
                    try:
                        with _environment(_CACHE, place.cache):
                            found = measure_in_process(card, batches[-1], place.folder, name)
                        peaks[f"{which}_bytes"] = found["batch"]
                    except StageError as error:  # the times are there all the same
                        peaks[f"{which}_problem"] = str(error)
            memory.append(peaks)
    return {
        "rows": bench.rows,
        "fastest": fastest(bench.rows),
        "memory": memory,
        **({"refused": bench.refused} if bench.refused else {}),
    }


@dataclass(frozen=True)
class _Place:
    """Where a model is.

    Attributes:
        folder: an artifact.
        factory: builds its module, if one is needed.
        cache: where runtimes keep files that are made of it; None for the user's own cache.
    """

    folder: Path
    factory: Any = None
    cache: str | None = None


class _Bench:
    """Times models in runtimes, and notes what does not run."""

    def __init__(self, task: Task, plugins: Plugins, batches: Sequence[Any]) -> None:
        self._task, self._plugins, self._batches = task, plugins, batches
        self.rows: list[dict[str, Any]] = []
        self.refused: dict[str, dict[str, str]] = {}

    def has_run(self, which: str, name: str) -> bool:
        """Tell whether a model has been timed in a runtime."""
        return any(row["runtime"] == name and f"{which}_ms_p50" in row for row in self.rows)

    def recompiles(self, name: str) -> bool:
        """Tell whether a runtime compiles anew for each size."""
        return bool(self._plugins.resolve("runtimes", name).recompiles)

    def time(
        self, places: Mapping[str, _Place], threads: int, compiled: bool, progress: Progress
    ) -> None:
        """Time all models in all runtimes, or in those alone that do not compile for each size."""
        running: dict[Key, nn.Module] = {}
        for which, place in places.items():
            opened = open_artifact(place.folder, self._plugins, place.factory, verify=False)
            opened = replace(opened, example=Call.of_task(self._task, opened.module))
            with _environment(_CACHE, place.cache):
                for name in self._names():
                    progress(f"starting the {which} in {name}")
                    try:
                        if compiled or not self.recompiles(name):
                            running[which, name] = start(name, opened, self._plugins).module
                    except ZoopressError as error:
                        self._note(which, name, error)
        progress(f"timing with {threads} threads")
        for inputs in self._batches:
            self.rows += self._rows(running, inputs, threads)

    def _rows(
        self, running: Mapping[Key, nn.Module], inputs: Any, threads: int
    ) -> list[dict[str, Any]]:
        """Time modules on a batch; what fails on it is left out, and why is noted."""
        samples = batch_length(inputs)
        able = {}
        for (which, name), module in running.items():
            try:
                self._task.call(module, inputs)
            except Exception as error:  # whatever the library behind it raises
                self._note(which, name, error)
            else:
                able[f"{which} {name}"] = module
        times = times_in_turns(self._task, able, inputs, _SECONDS * len(able), untimed=2)
        rows: dict[str, dict[str, Any]] = {}
        for key, values in times.items():
            which, _, name = key.partition(" ")
            row = {"runtime": name, "threads": threads, "batch_size": samples, "runs": len(values)}
            for figure, value in timing(values, samples).items():
                rows.setdefault(name, row)[f"{which}_{figure}"] = value
        return list(rows.values())

    def _names(self) -> list[str]:
        """Return the runtimes that run a model themselves."""
        names = (n for n in self._plugins.references["runtimes"] if n != _CHOOSES)
        return packed_first(names, self._plugins)

    def _note(self, which: str, name: str, error: Exception) -> None:
        self.refused.setdefault(name, {})[which] = " ".join(str(error).split())[:_WORDS]


def fastest(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each number of threads and batch size, where each model is the fastest."""
    found = []
    for threads, size in dict.fromkeys((row["threads"], row["batch_size"]) for row in rows):
        here = [row for row in rows if (row["threads"], row["batch_size"]) == (threads, size)]
        line: dict[str, Any] = {"threads": threads, "batch_size": size}
        for which in MODELS:
            times = {r["runtime"]: r[f"{which}_ms_p50"] for r in here if f"{which}_ms_p50" in r}
            if not times:
                break
            line[f"{which}_runtime"] = min(times, key=lambda name: times[name])
            line[f"{which}_ms_p50"] = times[line[f"{which}_runtime"]]
        else:
            line["speed_up"] = line["original_ms_p50"] / line["compressed_ms_p50"]
            found.append(line)
    return found


def _thread_counts() -> list[int]:
    """Return with how many threads to run: all, then one; or as many as the environment says."""
    told = os.environ.get(_THREADS, "")
    return [int(told)] if told.isdecimal() else sorted({1, torch.get_num_threads()}, reverse=True)


@contextmanager
def _room_for_compiled() -> Iterator[None]:
    """Let `torch.compile` keep as many forms of a model's code as two models and all sizes need.

    By default there are eight; what comes after runs in eager PyTorch, with a warning.
    """
    from torch._dynamo import config

    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    before = getattr(config, name)
    setattr(config, name, max(64, before))
    try:
        yield
    finally:
        setattr(config, name, before)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Give an environment variable another value for a while; None leaves it."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before
