"""The fastest runtime on this machine, found by timing all of them on the model, and remembered.

    $ZOOPRESS_CACHE, or the user's cache folder
    └── runtimes/auto/KEY/choice.json      which one, and how much faster than eager each was

KEY says the artifact's content, the example's form, the machine, threads and versions of libraries.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import statistics
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from zoopress.artifacts.opened import Call, Opened
from zoopress.errors import DeploymentError, ZoopressError
from zoopress.runtimes.cache import cached
from zoopress.runtimes.runtime import Runtime, packed_first, start

log = logging.getLogger("zoopress.runtimes")

AUTO, EAGER = "auto", "eager"
LARGE = 32
"""Samples of the larger batch, if the example has no more."""
_SECONDS = 2.0
"""How long a batch size is timed, over all runtimes; each gets `_ROUNDS` in any case."""
_ROUNDS, _MOST_ROUNDS = 6, 100
_MARGIN = 0.03
"""How much less time a runtime must take: what is as fast as eager PyTorch is not worth it."""
_CHOICE = "choice.json"

Ratios = Mapping[str, Mapping[int, list[float]]]
"""By runtime and batch size: the time of a call, of that of eager PyTorch in the same round."""


class Auto(Runtime):
    """Times every registered runtime that takes the model, at two batch sizes, and uses one.

    That is the fastest of those that are slower than eager PyTorch at neither; else eager PyTorch.
    """

    needs_example = True
    takes_packed = True

    def refusal(self, artifact: Opened) -> str | None:
        """Refuse nothing but a call whose samples cannot be counted."""
        if artifact.call("Runtimes are timed on a call").samples == 0:
            return "its example inputs have no samples. Give a tensor whose first axis counts them."
        return None

    def prepare(self, artifact: Opened) -> nn.Module:
        """Time the runtimes, unless it is remembered which was best here, and start that one."""
        modules: dict[str, nn.Module] = {}

        def write(folder: Path) -> None:
            found = self._timed(artifact, modules)
            (folder / _CHOICE).write_text(json.dumps(found, indent=2), encoding="utf-8")

        folder = cached(artifact, AUTO, self._versions(artifact), write)
        found = json.loads((folder / _CHOICE).read_text(encoding="utf-8"))
        name = found["runtime"]
        self.chosen = name
        log.info("The runtime %r runs this model; compared with eager: %s", name, found["ratios"])
        if name not in modules:
            modules[name] = start(name, artifact, self.plugins).module
        return modules[name]

    def _timed(self, artifact: Opened, modules: dict[str, nn.Module]) -> dict[str, object]:
        refused: dict[str, str] = {}
        for name in packed_first(self._names(), self.plugins):
            try:
                modules[name] = start(name, artifact, self.plugins).module
            except ZoopressError as error:
                refused[name] = str(error)
        call = artifact.call("Runtimes are timed on a call")
        ratios: dict[str, dict[int, list[float]]] = {name: {} for name in modules}
        for samples in (1, max(LARGE, call.samples)):
            for name, values in _compared(modules, call.repeated(samples)).items():
                ratios[name][samples] = values
        return {
            "runtime": fastest(ratios),
            "ratios": {
                name: {samples: round(statistics.median(v), 4) for samples, v in by.items()}
                for name, by in ratios.items()
            },
            "refused": refused,
        }

    def _names(self) -> list[str]:
        others = sorted(set(self.plugins.references["runtimes"]) - {AUTO, EAGER})
        return [EAGER, *others]

    def _versions(self, artifact: Opened) -> dict[str, str]:
        """Return all that the choice depends on, besides the artifact."""
        tensors = artifact.model.tensors().values()
        told = {
            "samples": str(max(LARGE, artifact.call("Runtimes are timed on a call").samples)),
            "device": str(next((tensor.device for tensor in tensors), "cpu")),
            "machine": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores",
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": f"{torch.get_num_threads()}, {os.environ.get('ZOOPRESS_THREADS')}",
        }
        libraries = {"zoopress", "torch"}
        for name in self._names():
            told[name] = self.plugins.references["runtimes"][name]
            try:
                libraries.update(self.plugins.resolve("runtimes", name).libraries)
            except ZoopressError:  # it is broken, and refused when it is timed
                told[name] = "broken"
        return told | {f"version of {name}": _version(name) for name in libraries}


def fastest(ratios: Ratios) -> str:
    """Return the runtime to use: the fastest of those that eager PyTorch is faster than nowhere.

    A runtime counts as faster if the median of its rounds says so by `_MARGIN`, and those of the
    first and of the second half of the rounds do not deny it. Single rounds say little: on a busy
    machine any call may have to wait.
    """
    allowed = {
        name: math.exp(statistics.fmean(math.log(statistics.median(v)) for v in by.values()))
        for name, by in ratios.items()
        if name != EAGER and all(map(_is_faster, by.values()))
    }
    return min(allowed, key=lambda name: allowed[name], default=EAGER)


def _is_faster(values: list[float]) -> bool:
    if len(values) < 2:
        return False
    middle = len(values) // 2
    halves = (statistics.median(values[:middle]), statistics.median(values[middle:]))
    return statistics.median(values) <= 1 - _MARGIN and max(halves) <= 1


def _compared(modules: dict[str, nn.Module], call: Call) -> dict[str, list[float]]:
    """Return each runtime's times of a call, of eager PyTorch's; none of what fails on it."""
    running = dict(modules)
    for name, module in modules.items():
        try:
            for _ in range(2):  # the second is not the first of its sizes any more
                call(module)
        except Exception as error:  # whatever the library behind it raises
            if name == EAGER:
                raise DeploymentError(
                    f"The model cannot be timed on {call.samples} samples: {error}"
                ) from error
            log.info("The runtime %r fails on %d samples: %s", name, call.samples, error)
            del running[name]
    found: dict[str, list[float]] = {name: [] for name in modules}
    end = time.perf_counter() + _SECONDS
    order = list(running)
    for done in range(_MOST_ROUNDS):
        if done >= _ROUNDS and time.perf_counter() > end:
            break
        times = {name: _seconds(call, running[name]) for name in order}
        order = order[1:] + order[:1]  # nobody always comes after the same one
        for name, seconds in times.items():
            found[name].append(seconds / times[EAGER])
    return found


def _seconds(call: Call, module: nn.Module) -> float:
    begin = time.perf_counter()
    call(module)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"
