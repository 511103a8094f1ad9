"""Which runtime is the fastest: both models in every one that is installed, in turns.

A compressed model that is compared with an original in eager PyTorch looks faster than it is to
whoever runs the original elsewhere: so each is also compared in its own fastest runtime.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoopress.artifacts.opened import Call, open_artifact
from zoopress.cells.cell import open_original
from zoopress.cells.save import save_original
from zoopress.errors import ZoopressError
from zoopress.evaluation.latency import times_in_turns, timing
from zoopress.evaluation.memory import measure_in_process
from zoopress.runtimes import start
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
        "refused": by runtime, why it does not run a model.
    """
    card, plugins = comparison.task.card, comparison.plugins
    original = open_original(card, plugins)
    factory = getattr(original.architecture, "factory", None)
    batch = typical_batch(comparison.task)
    sizes = sorted({1, min(LARGE, batch_length(batch))})
    batches = [first_samples(batch, size) for size in sizes]
    rows: list[dict[str, Any]] = []
    refused: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        before = save_original(original, plugins, Path(temporary) / "original")
        folders = {"original": before, "compressed": comparison.artifact}
        caches = {"original": str(Path(temporary) / "cache"), "compressed": None}
        for threads in _thread_counts():
            with _environment(_THREADS, str(threads)), _threads(threads):
                running: dict[Key, nn.Module] = {}
                for which, folder in folders.items():
                    progress(f"starting the {which} with {threads} threads")
                    opened = open_artifact(folder, plugins, factory, verify=False)
                    example = Call.of_task(comparison.task, opened.module)
                    opened = replace(opened, example=example)
                    with _environment(_CACHE, caches[which]):
                        for name in _names(plugins):
                            try:
                                running[which, name] = start(name, opened, plugins).module
                            except ZoopressError as error:
                                _note(refused, which, name, error)
                progress(f"timing with {threads} threads")
                for inputs in batches:
                    rows += _rows(comparison.task, running, inputs, threads, refused)
        memory = []
        for name in dict.fromkeys(row["runtime"] for row in rows):
            peaks: dict[str, Any] = {"runtime": name}
            for which, folder in folders.items():
                if any(f"{which}_ms_p50" in row for row in rows if row["runtime"] == name):
                    progress(f"measuring memory in {name}")
                    with _environment(_CACHE, caches[which]):
                        found = measure_in_process(card, batches[-1], folder, name)
                    peaks[f"{which}_bytes"] = found["batch"]
            memory.append(peaks)
    return {
        "rows": rows,
        "fastest": fastest(rows),
        "memory": memory,
        **({"refused": refused} if refused else {}),
    }


def fastest(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each number of threads and batch size, where each model is the fastest."""
    found = []
    for threads, size in dict.fromkeys((row["threads"], row["batch_size"]) for row in rows):
        here = [row for row in rows if (row["threads"], row["batch_size"]) == (threads, size)]
        line: dict[str, Any] = {"threads": threads, "batch_size": size}
        for which in MODELS:
            times = {r["runtime"]: r[f"{which}_ms_p50"] for r in here if f"{which}_ms_p50" in r}
            line[f"{which}_runtime"] = min(times, key=lambda name: times[name])
            line[f"{which}_ms_p50"] = times[line[f"{which}_runtime"]]
        line["speed_up"] = line["original_ms_p50"] / line["compressed_ms_p50"]
        found.append(line)
    return found


def _rows(
    task: Task,
    running: dict[Key, nn.Module],
    inputs: Any,
    threads: int,
    refused: dict[str, dict[str, str]],
) -> list[dict[str, Any]]:
    """Time modules on a batch; what fails on it is left out, and why is noted."""
    samples = batch_length(inputs)
    able = {}
    for (which, name), module in running.items():
        try:
            task.call(module, inputs)
        except Exception as error:  # whatever the library behind it raises
            _note(refused, which, name, error)
        else:
            able[f"{which} {name}"] = module
    times = times_in_turns(task, able, inputs, _SECONDS * len(able), untimed=2)
    rows: dict[str, dict[str, Any]] = {}
    for key, values in times.items():
        which, _, name = key.partition(" ")
        row = {"runtime": name, "threads": threads, "batch_size": samples, "runs": len(values)}
        for figure, value in timing(values, samples).items():
            rows.setdefault(name, row)[f"{which}_{figure}"] = value
    return list(rows.values())


def _names(plugins: Plugins) -> list[str]:
    """Return the runtimes, those first that want weights as they are stored."""

    def key(name: str) -> bool:
        try:
            return not plugins.resolve("runtimes", name).takes_packed
        except ZoopressError:  # it is broken, and refused when it is started
            return True

    return sorted((n for n in plugins.references["runtimes"] if n != _CHOOSES), key=key)


def _note(refused: dict[str, dict[str, str]], which: str, name: str, error: Exception) -> None:
    refused.setdefault(name, {})[which] = " ".join(str(error).split())[:_WORDS]


def _thread_counts() -> list[int]:
    """Return with how many threads to run: one and all, or as many as the environment says."""
    told = os.environ.get(_THREADS, "")
    return [int(told)] if told.isdecimal() else sorted({1, torch.get_num_threads()})


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
