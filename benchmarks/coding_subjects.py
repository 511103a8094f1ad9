"""The networks that benchmarks/coding.py codes, and how what comes out is judged.

minilm                  all-MiniLM-L6-v2, sentence embeddings
lenet-300-100, lenet-5  trained on MNIST by benchmarks/train_mnist.py
…-sparse                the same with 19 of 20 weights pruned, and trained again
smollm2                 SmolLM2-135M-Instruct, its Q4_1 GGUF as floats
efficientnet-lite0      trained on ImageNet
crepe-tiny              tells pitches
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import DATA, PACKAGES, fetch
from nncodec_client import Coded
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from zoopress.artifacts.artifact import load_artifact
from zoopress.cards import load_card
from zoopress.cells.cell import Cell, Original, open_original
from zoopress.cells.plan import make_plan
from zoopress.evaluation.fidelity import Run, compare_outputs, run_all
from zoopress.pipeline.compress import run_stages
from zoopress.pipeline.workbench import Workbench
from zoopress.plugins import Plugins
from zoopress.progress import Reporter
from zoopress.recipes import Recipe, Stage, load_recipe
from zoopress.results import Fidelity
from zoopress.store import Store

HERE = Path(__file__).parent
Tensors = dict[str, NDArray[np.float32]]

CARDS = {
    "lenet-300-100": "mnist/lenet-300-100.yaml",
    "lenet-300-100-sparse": "mnist/lenet-300-100.yaml",
    "lenet-5": "mnist/lenet-5.yaml",
    "lenet-5-sparse": "mnist/lenet-5.yaml",
    "minilm": "minilm",
    "smollm2": "smollm2.yaml",
    "efficientnet-lite0": "pretrained/efficientnet-lite0.yaml",
    "crepe-tiny": "pretrained/crepe-tiny.yaml",
}


@dataclass(frozen=True)
class Point:
    """One way of coding a network, and what it cost.

    Attributes:
        coder: "nncodec" or a kind of ours.
        setting: its options, for people.
        size_bytes: of all that a decoder of the tensors needs.
        fidelity: to the network before it was coded.
        metrics: the task's, empty without labels.
        seconds: to encode, quantization included: NNCodec's CPU time, our wall time.
    """

    coder: str
    setting: str
    size_bytes: int
    fidelity: Fidelity
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Subject:
    """A network, what it makes of its card's evaluation data, and what becomes of that.

    Args:
        name: one of CARDS.
        plugins: what is registered.
        store: where stage results are kept.
        reporter: where progress goes.
    """

    def __init__(self, name: str, plugins: Plugins, store: Store, reporter: Reporter) -> None:
        self.name, self.plugins, self.store, self.reporter = name, plugins, store, reporter
        if name in PACKAGES:
            fetch(name)
        if name.startswith("lenet"):
            fetch("mnist")
        file = CARDS[name]
        card = load_card(str(HERE / file) if file.endswith(".yaml") else file, plugins)
        original = open_original(card, plugins)
        if name.endswith("-sparse"):
            path = DATA / f"{name}.safetensors"
            if not path.exists():
                self._prune(original, path)
            card = card.model_copy(update={"name": name, "source": f"path:{path}"})
            original = open_original(card, plugins)
        self.original = original
        self.bench = Workbench(self._cell(()), reporter)

    @property
    def module(self) -> nn.Module:
        return self.bench.original

    @property
    def reference(self) -> Run:
        return self.bench.reference

    @property
    def weights(self) -> int:
        """How many numbers the network has."""
        return sum(tensor.size for tensor in self.tensors().values())

    def tensors(self) -> Tensors:
        """Return every tensor that a decoder needs, as float32, shared ones once."""
        module = self.module
        parameters = dict(module.named_parameters())
        stored = {k: v for k, v in module.state_dict(keep_vars=True).items() if k not in parameters}
        shared = {id(parameter) for parameter in parameters.values()}
        buffers = {k: v for k, v in stored.items() if id(v) not in shared}
        return {
            name: tensor.detach().float().contiguous().numpy()
            for name, tensor in {**parameters, **buffers}.items()
        }

    def judge(self, coder: str, setting: str, coded: Coded, tensors: Tensors) -> Point:
        """Return what the network is worth with these tensors in place of its own."""
        module = self.original.architecture.load(self.original.files).eval()
        places = dict(module.named_parameters()) | dict(module.named_buffers())
        with torch.no_grad():
            for name, values in tensors.items():
                places[name].copy_(torch.from_numpy(values).reshape(places[name].shape))
        run = run_all(self.original.task, module)
        fidelity = compare_outputs(self.original.task, self.reference.outputs, run.outputs)
        metrics = self.original.task.metrics(run.statistics)
        return Point(coder, setting, coded.size_bytes, fidelity, metrics, coded.encode_seconds)

    def compress(
        self, coder: str, setting: str, stages: Sequence[Mapping[str, Any]]
    ) -> tuple[Point, dict[str, Any]]:
        """Return what stages make of the network, through the main path, and the last's notes.

        Args:
            coder: what to call it.
            setting: what to call it.
            stages: each a technique's name and its config.
        """
        made = []
        for options in stages:
            config = {key: value for key, value in options.items() if key != "technique"}
            technique = self.plugins.technique(options["technique"])
            made.append(Stage(technique(technique.config_type.model_validate(config))))
        cell = self._cell(tuple(made))
        done = run_stages(Workbench(cell, self.reporter, like=self.bench))
        result = done.results[-1]
        files = (done.last.artifact / "zoopress.json", *done.last.artifact.glob("*.zpz"))
        size = sum(path.stat().st_size for path in files)
        point = Point(coder, setting, size, result.fidelity, result.metrics, result.seconds)
        return point, result.notes

    def _cell(self, stages: tuple[Stage, ...]) -> Cell:
        recipe = Recipe(self.name, stages)
        if stages:
            make_plan(self.original.card, recipe)
        return Cell(self.original, recipe, self.plugins, self.store)

    def _prune(self, original: Original, path: Path) -> None:
        """Write a file with the pruned network's tensors, zeros and all."""
        recipe = load_recipe(f"{HERE / 'recipes.yaml'}#sparse", self.plugins)
        bench = Workbench(Cell(original, recipe, self.plugins, self.store), self.reporter)
        factory = getattr(original.architecture, "factory", None)
        module = load_artifact(run_stages(bench).last.artifact, self.plugins, factory)[0].module
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path)
