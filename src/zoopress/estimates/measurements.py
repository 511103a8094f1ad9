"""What was measured on this machine for estimates, and how it is measured and kept.

    STORE/calibration/KEY.json      one measurement; worthless for another machine or other code

`probe.py` measures, in processes of its own: so torch is imported only if something is missing, and
what a probe allocates or breaks is gone with it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from zoopress.cards import Card
from zoopress.cells.cell import LIBRARIES, installed_version
from zoopress.identity import Parts, core_code
from zoopress.plugins import Plugins
from zoopress.progress import Reporter
from zoopress.recipes import Stage
from zoopress.store import digest, write_atomic
from zoopress.techniques import Technique, WeightSelection

Clock = Literal["wall", "cpu"]
LARGE_WEIGHT = 1 << 23
"""Weights. glibc gives blocks of 32 MiB and more back at once, so that whatever works on a float32
weight of this size or on a copy of it waits for the kernel's fresh pages, several times as long."""
_LONGEST_PROBE_S = 300.0


@dataclass(frozen=True)
class MachineSpeed:
    """Seconds that a run's own steps take here.

    Attributes:
        start: to start Python and import torch and plugins, and to end.
        start_bytes: memory that a process has then.
        save: to encode, write, hash and force to disk a byte of tensors.
        load: to read a byte of tensors into a model.
        code: to entropy code a symbol.
        decode: to decode one.
        flop: for one floating point operation of a matrix product.
    """

    start: float
    start_bytes: int
    save: float
    load: float
    code: float
    decode: float
    flop: float


@dataclass(frozen=True)
class StageSpeed:
    """How a technique with its config behaves on small models.

    Attributes:
        once: seconds that a process takes to do it for the first time, such as imports.
        weight: seconds for each weight.
        work: seconds for each unit of `Technique.work`.
        large_work: the same for weights of `LARGE_WEIGHT` and more.
        calls: how often it runs the model, besides `batch_calls`.
        batch_calls: how often it runs the model on each calibration batch.
        bits: stored for each selected number that is left afterwards.
        coded: whether tensors are entropy coded from then on.
    """

    once: float
    weight: float
    work: float
    large_work: float
    calls: int
    batch_calls: int
    bits: float
    coded: bool


_UNTIMED = StageSpeed(0.0, 0.0, 0.0, 0.0, calls=2, batch_calls=0, bits=32.0, coded=False)
"""Of a technique that trains, or only looks at the model: before the work, and after it."""


@dataclass(frozen=True)
class WeightShape:
    """A float weight of a model: its names, its kind, and its matrix [rows, columns]."""

    names: tuple[str, ...]
    kind: str
    rows: int
    columns: int

    @property
    def count(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class ModelProfile:
    """What a card's model is made of, and how fast it runs here.

    Attributes:
        measured: whether it was run; else the times follow from its operations.
        weights: what techniques work on.
        tensor_bytes: of all tensors, tied ones once.
        open: seconds to load it for the first time in a process, its libraries included, to make
            its batches and to warm up.
        load: seconds to load it again.
        build: seconds to build it without weights.
        evaluation: seconds for all evaluation batches.
        batch: seconds for one batch, on average.
        single: seconds for one sample.
        sensitivity: seconds to measure the sensitivity of all weights.
        calibration_batches: how many there are.
        output_elements: numbers that it puts out for all evaluation batches.
        run_bytes: memory that running a batch takes besides the model.
        training_samples: in the training split; 0 if the task cannot give any.
        validation_samples: in the validation split.
        training_batch: seconds for one batch forward and backward.
        training_bytes: memory that this takes besides the model.
    """

    measured: bool
    weights: tuple[WeightShape, ...]
    tensor_bytes: int
    open: float
    load: float
    build: float
    evaluation: float
    batch: float
    single: float
    sensitivity: float
    calibration_batches: int
    output_elements: int
    run_bytes: int
    training_samples: int = 0
    validation_samples: int = 0
    training_batch: float = 0.0
    training_bytes: int = 0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelProfile:
        """Rebuild from plain data."""
        weights = tuple(
            WeightShape(tuple(names), kind, rows, columns)
            for names, kind, rows, columns in (weight.values() for weight in data["weights"])
        )
        return cls(**{**data, "weights": weights})


def selected(technique: Technique[Any], weights: Sequence[WeightShape]) -> list[int]:
    """Return which weights a technique selects, as `WeightSelection` does; others take all."""
    config = technique.config
    if not isinstance(config, WeightSelection):
        return list(range(len(weights)))

    def matches(weight: WeightShape, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for name in weight.names for pattern in patterns)

    return [
        i
        for i, weight in enumerate(weights)
        if weight.kind in config.kinds
        and matches(weight, config.include)
        and not matches(weight, config.exclude)
    ]


AnswerT = TypeVar("AnswerT")


@dataclass
class Calibration:
    """What is known of this machine.

    Args:
        folder: where measurements are kept.
        plugins: what is registered.
        clock: "wall"; "cpu" counts CPU seconds, for benchmarks on a busy machine.
    """

    folder: Path
    plugins: Plugins
    clock: Clock = "wall"
    seconds: float = 0.0
    """How long measuring took, by this object."""
    problems: dict[str, None] = field(default_factory=dict)
    """What could not be measured, and why; a set in order."""
    _known: dict[Path, dict[str, Any]] = field(default_factory=dict)

    def machine(self) -> MachineSpeed | None:
        """Return what was measured of the machine."""
        return self._read(self._path("machine"), lambda data: MachineSpeed(**data))

    def stage(self, stage: Stage, large: bool) -> StageSpeed | None:
        """Return what was measured of a stage's technique and config.

        Args:
            stage: which.
            large: whether it has to be known for weights of `LARGE_WEIGHT`.
        """
        if not stage.technique.timed:
            return _UNTIMED
        return self._read(self._stage_path(stage, large), lambda data: StageSpeed(**data))

    def model(self, key: str) -> ModelProfile | None:
        """Return what was measured of a model, by the key that it was measured under."""
        return self._read(self._path("model", key), ModelProfile.from_dict)

    def measure_models(self, cards: Mapping[str, Card], reporter: Reporter) -> None:
        """Load and run models, by their keys, unless that was done; in a process each."""
        for key, card in cards.items():
            path = self._path("model", key)
            if not self._answered(path):
                request = {"card": card.as_dict(), "root": str(card.root)}
                self._probe(f"measuring {card.name}", request, {"model": path}, reporter)

    def measure_stages(self, stages: Sequence[tuple[Stage, bool]], reporter: Reporter) -> None:
        """Time the machine, and techniques on small models, unless that was done.

        Args:
            stages: as `stage` takes them.
            reporter: is told.
        """
        missing = {
            path: {"stage": Stage(stage.technique).as_dict(), "large": large}
            for stage, large in stages
            if stage.technique.timed and not self._answered(path := self._stage_path(stage, large))
        }
        machine = self._path("machine")
        if missing or not self._answered(machine):
            answers = {str(i): path for i, path in enumerate(missing)} | {"machine": machine}
            request = {"stages": list(missing.values()), "folder": str(self.folder)}
            self._probe("measuring this machine", request, answers, reporter)

    def _probe(
        self, title: str, request: dict[str, Any], answers: Mapping[str, Path], reporter: Reporter
    ) -> None:
        """Let another process measure, and keep each of its answers in a file."""
        start, cpu = time.perf_counter(), _children_cpu()
        # In the other process, too, time counts from here: starting is part of what is measured.
        message = json.dumps({**request, "clock": self.clock, "started": time.time()})
        found: dict[str, Any] = {}
        reason = ""
        with reporter.step(title):
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "zoopress.estimates.probe"],
                    input=message,
                    capture_output=True,
                    text=True,
                    timeout=_LONGEST_PROBE_S,
                    check=False,
                )
                if done.returncode == 0:
                    found = json.loads(done.stdout.splitlines()[-1])
                else:
                    said = done.stderr.strip().splitlines()
                    reason = said[-1] if said else f"it ended with status {done.returncode}"
            except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
                reason = f"{type(error).__name__}: {error}"
        self.seconds += time.perf_counter() - start
        if "machine" in found:
            # That of ending, half a second with torch, nobody but we can tell.
            ended = time.time() if self.clock == "wall" else _children_cpu() - cpu
            found["machine"]["start"] += ended - found["ended"]
        if reason:
            self.problems[f"{title} failed: {reason}"] = None
        for name, path in answers.items():
            if isinstance(found.get(name), dict):
                self._known[path] = found[name]
                with suppress(OSError):  # a store that cannot be written only forgets
                    self.folder.mkdir(parents=True, exist_ok=True)
                    write_atomic(path, json.dumps(found[name]) + "\n")

    def _answered(self, path: Path) -> bool:
        return path in self._known or path.is_file()

    def _read(self, path: Path, make: Callable[[dict[str, Any]], AnswerT]) -> AnswerT | None:
        """Return an answer of the probe; None if there is none, or it says why there is none."""
        try:
            data = self._known.get(path) or json.loads(path.read_bytes())
            if "problem" not in data:
                return make(data)
            self.problems[data["problem"]] = None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            pass  # never measured, or by another version
        return None

    def _stage_path(self, stage: Stage, large: bool) -> Path:
        # Which layers of a model it selects is no matter of its speed.
        # What its recovery takes follows from the model's own speed.
        spelled = Stage(stage.technique).as_dict()
        config = {k: v for k, v in spelled.items() if k not in ("include", "exclude")}
        return self._path(
            "stage", config, large, Parts(self.plugins).stage([stage.technique], config)
        )

    def _path(self, *parts: Any) -> Path:
        return self.folder / f"{digest([self._here, *parts])[:32]}.json"

    @cached_property
    def _here(self) -> list[Any]:
        """Return what measurements are only good for: machine, threads, versions, our code."""
        return [
            *(platform.node(), platform.machine(), os.cpu_count()),
            *(os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")),
            *(platform.python_version(), self.clock),
            {name: installed_version(name) for name in LIBRARIES},
            core_code(("zoopress.estimates.probe",), within=("estimates",)),
        ]


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system
