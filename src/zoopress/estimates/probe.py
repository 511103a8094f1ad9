"""Measure this machine for estimates: a process that `calibration.py` starts, JSON in and out.

Techniques are timed by themselves, with their own configs, on small models that have a layer of
every kind. So a third party's are covered without a word from them.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoopress.artifacts.artifact import fill_tensors, save_artifact
from zoopress.artifacts.encoding import encode
from zoopress.artifacts.manifest import Base
from zoopress.cards import Card
from zoopress.coding.layout import PackedCodes, StoredTensor
from zoopress.coding.zpz import ZpzReader, write_zpz
from zoopress.estimates.measurements import LARGE_WEIGHT, Clock, MachineSpeed, StageSpeed
from zoopress.estimates.probe_models import matrix_product_seconds, measure_model
from zoopress.evaluation.peak_memory import peak_bytes
from zoopress.models.model import Model
from zoopress.models.weights import find_weights
from zoopress.plugins import Plugins, load_plugins
from zoopress.sources import Architecture, SourceFiles
from zoopress.store import Store
from zoopress.techniques import Context, Technique

_BATCHES = 5
_BASE = Base(name="probe", source="path:probe", revision="", size_bytes=0, task="fidelity")
_CLOCKS: Mapping[Clock, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": time.process_time,
}


class _Position(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, width))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.table


class SmallModel(nn.Module):
    """A layer of each kind, for ids [batch, 8].

    Args:
        width: of every layer.
        rows: of the embedding.
    """

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width)
        self.position = _Position(width)
        self.recurrent = nn.LSTM(width, width, batch_first=True)
        self.linear = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 10)

    def forward(self, ids: Tensor) -> Tensor:
        hidden, _ = self.recurrent(self.position(self.embedding(ids)))
        images = self.linear(hidden).transpose(1, 2).reshape(len(ids), -1, 2, 4)
        result: Tensor = self.head(self.conv(images).mean((2, 3)))
        return result


class LargeModel(nn.Module):
    """One weight of `LARGE_WEIGHT` and what goes with it, for ids [batch, 8].

    Args:
        kind: "embedding", else it is a linear layer's.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        rows = LARGE_WEIGHT // 384 + 1
        self.first = nn.Embedding(rows if kind == "embedding" else 2, 384)
        self.second = nn.Linear(384, 10 if kind == "embedding" else rows)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(ids).mean(1))
        return result


class _SmallArchitecture(Architecture):
    """What files of the small model are written and read with."""

    name = "probe"

    @classmethod
    def detect(cls, card: Card, files: SourceFiles) -> None:
        return None

    def build(self) -> nn.Module:
        return SmallModel(384, 4096)

    def load(self, files: SourceFiles) -> nn.Module:
        return self.build()


def measure_machine(
    start: float, start_bytes: int, now: Callable[[], float], folder: Path
) -> MachineSpeed:
    """Time what runs do besides techniques and models.

    Args:
        start: seconds that it took to start.
        start_bytes: memory of this process then.
        now: the clock.
        folder: where files are written to.
    """
    architecture = _SmallArchitecture(folder, {})
    model = Model(architecture.build().eval())
    size = sum(tensor.nbytes for tensor in model.tensors().values())
    with torch.device("meta"):
        empty = Model(architecture.build())
    begin = now()
    with Store(folder).claim("0" * 64) as claim:
        artifact = claim.staging / "artifact"
        artifact.mkdir()
        manifest = save_artifact(artifact, model, architecture, _BASE, {})
        entry = claim.commit({})
    saved = now()
    fill_tensors(entry.artifact, manifest, empty, architecture.stored_name)
    loaded = now()
    codes = (torch.randn(1024, 2048).clamp(-3.9, 3.9) * 32).to(torch.int8).view(torch.uint8)
    write_zpz(folder / "codes.zpz", {"codes": StoredTensor(codes, PackedCodes(8, codes.shape[1]))})
    coded = now()
    with ZpzReader(folder / "codes.zpz") as reader:
        reader.read("codes")
    decoded = now()
    return MachineSpeed(
        start=start,
        start_bytes=start_bytes,
        save=(saved - begin) / size,
        load=(loaded - saved) / size,
        code=(coded - loaded) / codes.numel(),
        decode=(decoded - coded) / codes.numel(),
        flop=matrix_product_seconds(now),
    )


def measure_stage(
    technique: Technique[Any], large: bool, now: Callable[[], float], plugins: Plugins
) -> StageSpeed:
    """Time a technique's `apply` on small models, whatever names of layers it is told to select.

    Args:
        technique: with its config.
        large: whether to time it on a large weight as well.
        now: the clock.
        plugins: registered layers.
    """
    config = technique.config
    everything = {"include": ("*",), "exclude": ()}
    known = {name: value for name, value in everything.items() if hasattr(config, name)}
    technique = type(technique)(config.model_copy(update=known))

    first, small, medium = (
        _apply(technique, SmallModel(width, rows).eval(), now, plugins)
        for width, rows in ((48, 512), (48, 512), (384, 4096))
    )
    # Two sizes of the same layers tell what a weight costs from what its size costs.
    work = max(0.0, medium.own - small.own) / max(1.0, medium.work - small.work)
    weight = max(0.0, small.own - work * small.work) / max(1, small.weights)
    large_work = work
    if large:
        kinds = getattr(config, "kinds", ("linear",))
        module = LargeModel("linear" if "linear" in kinds else "embedding").eval()
        timed = _apply(technique, module, now, plugins)
        large_work = max(work, (timed.own - weight * timed.weights) / max(1.0, timed.work))
    per_batch, rest = divmod(medium.calls, _BATCHES)
    return StageSpeed(
        once=max(0.0, first.own - small.own),
        weight=weight,
        work=work,
        large_work=large_work,
        calls=medium.calls if rest else 0,
        batch_calls=0 if rest else per_batch,
        bits=medium.bits,
        coded=medium.coded,
    )


class _Applied(NamedTuple):
    """What it took to apply a technique to a model.

    Attributes:
        own: seconds besides running the model.
        calls: how often it ran the model.
        weights: how many it works on.
        work: the sum of their `Technique.work`.
        bits: stored for each of their numbers that is left afterwards.
        coded: whether what is stored is entropy coded.
    """

    own: float
    calls: int
    weights: int
    work: float
    bits: float
    coded: bool


def _apply(
    technique: Technique[Any], module: nn.Module, now: Callable[[], float], plugins: Plugins
) -> _Applied:
    batches = [torch.randint(0, 2, (4, 8)) for _ in range(_BATCHES)]
    calls = 0

    def call(run: nn.Module, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        with torch.no_grad():
            output: Tensor = run(batch)
        return output

    call(module, batches[0])
    begin = now()
    call(module, batches[0])
    plain = now() - begin
    calls = 0
    kinds = getattr(technique.config, "kinds", None)
    selected = list(find_weights(module, kinds) if kinds else find_weights(module))
    shapes = [tuple(weight.matrix().shape) for weight in selected]
    paths = {f"{weight.path}." for weight in selected}
    count = sum(map(math.prod, shapes))
    model = Model(module, plugins.layers)
    before = model.parameter_count()
    with tempfile.TemporaryDirectory() as name:
        context = Context(
            seed=0,
            device=torch.device("cpu"),
            batches=lambda: batches,
            call=call,
            progress=lambda *_: None,
            checkpoint=Path(name),
            recover=lambda model: None,
        )
        torch.manual_seed(0)
        begin = now()
        technique.apply(model, context)
        seconds = now() - begin
        stored = _stored_bytes(model, paths, Path(name))
    left = max(1, count - (before - model.parameter_count()))
    return _Applied(
        own=max(0.0, seconds - calls * plain),
        calls=calls,
        weights=len(selected),
        work=sum(technique.work(*shape) for shape in shapes),
        bits=8 * stored / left,
        coded=model.storage == "zpz",
    )


def _stored_bytes(model: Model, paths: Collection[str], folder: Path) -> int:
    """Return the bytes that what is below some paths takes in a model's file."""
    _, stored = encode(model.tensors(), model.masks, model.code_layouts())
    chosen = {name: item for name, item in stored.items() if name.startswith(tuple(paths))}
    if model.storage != "zpz":
        return sum(item.tensor.nbytes for item in chosen.values())
    write_zpz(folder / "stored.zpz", chosen)
    with ZpzReader(folder / "stored.zpz") as reader:
        return sum(map(reader.stored_bytes, chosen))


@dataclass
class _Probe:
    """Answers a request; what cannot be measured is answered with the reason."""

    request: dict[str, Any]
    start: float
    start_bytes: int

    def answer(self) -> dict[str, Any]:
        now, plugins = _CLOCKS[self.request["clock"]], load_plugins()
        if "card" in self.request:
            card = Card.model_validate(self.request["card"])
            card._root = Path(self.request["root"])
            what = f"the model of {card.name}"
            return {"model": self._try(what, lambda: measure_model(card, now, plugins))}
        answers: dict[str, Any] = {}
        for i, asked in enumerate(self.request["stages"]):
            answers[str(i)] = self._try(
                asked["stage"]["technique"],
                lambda asked=asked: measure_stage(  # type: ignore[misc]
                    _technique(asked["stage"], plugins), asked["large"], now, plugins
                ),
            )
        # Last: what it imports would be missing from what techniques take for the first time.
        with tempfile.TemporaryDirectory(dir=self._folder()) as name:
            started = self.start, self.start_bytes
            answers["machine"] = asdict(measure_machine(*started, now, Path(name)))
        return answers

    def _try(self, what: str, measure: Callable[[], Any]) -> dict[str, Any]:
        try:
            return asdict(measure())
        except Exception as error:  # a plugin's, or a model's; others can still be measured
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            return {"problem": f"{what} could not be measured: {reason}"}

    def _folder(self) -> Path | None:
        """Return the store's folder, whose disk matters, if it can be written to."""
        folder = Path(self.request["folder"])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            return None


def _technique(stage: Mapping[str, Any], plugins: Plugins) -> Technique[Any]:
    kind = plugins.technique(stage["technique"])
    config = {key: value for key, value in stage.items() if key != "technique"}
    return kind(kind.config_type.model_validate(config))


def main() -> None:
    """Read a request from standard input and print the answer."""
    request = json.load(sys.stdin)
    clock = request["clock"]
    start = time.process_time() if clock == "cpu" else time.time() - request["started"]
    answer = _Probe(request, start, peak_bytes()).answer()
    answer["ended"] = time.process_time() if clock == "cpu" else time.time()
    print(json.dumps(answer, allow_nan=False))


if __name__ == "__main__":
    main()
