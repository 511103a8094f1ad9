"""The service that techniques ask for what calibration data shows of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.model import Model
from zoopress.models.on_disk import on_disk
from zoopress.models.weights import Weight
from zoopress.progress import Progress
from zoopress.statistics.accounts import Account
from zoopress.statistics.measured import Layer, Measured
from zoopress.statistics.passes import Sample, blocks, watch_gradients, watch_values
from zoopress.statistics.probes import sliced
from zoopress.statistics.records import StoredLayers, joined, layers_of, write
from zoopress.statistics.registry import made
from zoopress.statistics.shelf import Shelf, state_digest
from zoopress.statistics.statistic import Statistic
from zoopress.statistics.targets import Target, all_targets, chosen
from zoopress.store import Claim
from zoopress.tasks import Task

SHARE = 4
"""What is added up may take this part of the memory that is free, unless a budget is given."""


@dataclass
class Statistics:
    """Measures what calibration data shows of a model, and nothing twice.

    Attributes:
        call: runs a module on a batch, without gradients.
        batches: returns the calibration batches.
        task: differentiates; without it there are no statistics of gradients.
        progress: is told.
        seed: what is drawn follows from it.
        shelf: keeps what was measured; without it everything is measured again.
    """

    call: Callable[[nn.Module, Any], Tensor]
    batches: Callable[[], Sequence[Any]]
    task: Task | None
    progress: Progress
    seed: int
    shelf: Shelf | None = None

    def of(
        self,
        model: Model,
        statistic: str | Statistic,
        weights: Iterable[str | Weight] | None = None,
        budget_bytes: int | None = None,
    ) -> Measured:
        """Measure one statistic, see `measure`."""
        return self.measure(model, [statistic], weights, budget_bytes)[0]

    def measure(
        self,
        model: Model,
        statistics: Sequence[str | Statistic],
        weights: Iterable[str | Weight] | None = None,
        budget_bytes: int | None = None,
    ) -> list[Measured]:
        """Measure statistics of a model as it is now; the model is left as it was.

        The model runs once over the calibration data for all statistics of inputs and outputs
        together, and once forward and backward, sample by sample, for all of gradients. It runs
        more often, for some of the weights each time, where what is added up would take more than
        the budget. What was measured before is not measured again.

        Args:
            model: what to measure.
            statistics: names, or instances of `Statistic` where the defaults do not serve.
            weights: of which weights, as names or `Weight`s; all but vectors by default. Packed
                weights go by the names of what they stand for.
            budget_bytes: what may be added up at a time; by default a quarter of the free memory
                of the device that the model is on. One weight at least is measured at a time.

        Returns:
            What was measured, in the order of `statistics`.

        Raises:
            StageError: if there is no such statistic or weight, there are no calibration samples,
                or there is nothing that could be differentiated.
        """
        asked = made(statistics)
        targets, aliases = all_targets(model.module)
        names = chosen(targets, aliases, weights)
        budget = free_bytes(model.module) // SHARE if budget_bytes is None else budget_bytes
        mine = [targets[name] for name in names]
        if self.shelf is None:
            keys = [str(position) for position in range(len(asked))]
            found = self._compute(model, dict(zip(keys, asked, strict=True)), mine, budget, {})
        else:
            state = state_digest(model)
            keys = [self.shelf.key(state, each, names, self.seed) for each in asked]
            found = self._kept(self.shelf, model, dict(zip(keys, asked, strict=True)), mine, budget)
        known = {alias: name for alias, name in aliases.items() if name in names}
        return [Measured(each, found[key], known) for key, each in zip(keys, asked, strict=True)]

    def _kept(
        self,
        shelf: Shelf,
        model: Model,
        asked: dict[str, Statistic],
        targets: Sequence[Target],
        budget: int,
    ) -> dict[str, Mapping[str, Layer]]:
        """Return what is on the shelf, and measure and keep what is not."""
        with shelf.claims({k: v for k, v in asked.items() if k not in shelf.layers}) as claims:
            for key, claim in claims.items():
                if claim.entry is not None:
                    told = claim.entry.record["layers"]
                    shelf.layers[key] = StoredLayers(claim.entry.path, told, asked[key])
            missing = {k: v for k, v in asked.items() if k not in shelf.layers}
            shelf.layers.update(self._compute(model, missing, targets, budget, claims))
        return {key: shelf.layers[key] for key in asked}

    def _compute(
        self,
        model: Model,
        asked: dict[str, Statistic],
        targets: Sequence[Target],
        budget: int,
        claims: Mapping[str, Claim],
    ) -> dict[str, Mapping[str, Layer]]:
        """Measure, writing each block of weights into the claims' folders where there are some."""
        differentiated = {"gradients", "output_gradients"}
        found: dict[str, Mapping[str, Layer]] = {}
        for gradients in (False, True):
            some = {k: v for k, v in asked.items() if bool(v.needs & differentiated) is gradients}
            if not some or not targets:
                continue
            kept: dict[str, dict[str, Layer]] = {key: {} for key in some}
            records: dict[str, list[Any]] = {key: [] for key in some}
            each = list(some.values())
            sizes = [sum(one.bytes(target.sizes()) for one in each) for target in targets]
            parts = list(blocks(targets, sizes, budget))
            for number, block in enumerate(parts):
                accounts = self._pass(model, block, each, gradients, number, len(parts))
                for position, key in enumerate(some):
                    layers = layers_of(accounts, position)
                    if key in claims:
                        records[key].append(write(claims[key].staging, number, layers))
                    else:
                        kept[key].update(layers)
            for key, statistic in some.items():
                found[key] = kept[key]
                if key in claims:
                    told = joined(records[key])
                    entry = claims[key].commit({"statistic": statistic.name, "layers": told})
                    found[key] = StoredLayers(entry.path, told, statistic)
        return {key: found.get(key, {}) for key in asked}

    def _pass(
        self,
        model: Model,
        block: Sequence[Target],
        asked: Sequence[Statistic],
        gradients: bool,
        number: int,
        count: int,
    ) -> dict[str, Account]:
        """Run the model over the data once, and return what some of its weights have seen."""
        accounts = {target.watched.name: Account(target.watched, asked) for target in block}
        title = f"measuring {', '.join(each.name for each in asked)}"

        def told(fraction: float) -> None:
            self.progress(title, (number + fraction) / count)

        if not gradients:
            batches = self._batches()
            watch_values(model.module, block, accounts, batches, self.call, told)
            return accounts
        if self.task is None:
            raise StageError(
                f"{title}: gradients need a task that runs the model, and this context has none."
            )
        samples = self._samples(asked)
        watch_gradients(
            model.module, block, accounts, samples, len(samples), self.task, self.seed, told
        )
        for target in block:
            account = accounts[target.watched.name]
            for position, state in account.whole.items():
                asked[position].finish(state, target.matrix().to(next(iter(state.values())).device))
        return accounts

    def _batches(self) -> Sequence[Any]:
        batches = self.batches()
        if not batches:
            raise StageError(
                "There are no calibration samples to measure statistics on. Give the card "
                "'calibration_samples'."
            )
        return batches

    def _samples(self, asked: Sequence[Statistic]) -> list[Sample]:
        """Return the calibration samples one by one, with labels where they are asked for."""
        assert self.task is not None
        wanted = any(each.objective(True) == "loss" for each in asked)
        needed = [each.name for each in asked if each.objective(False) == "loss"]
        if wanted:
            examples = self.task.examples("calibration")
            if examples and all(example.targets is not None for example in examples):
                pairs = sliced([(e.inputs, e.targets) for e in examples], 1)
                return [Sample(inputs, target) for inputs, target in pairs]
        if needed:
            raise StageError(
                f"{', '.join(needed)} with labels='true' needs calibration samples with labels, "
                f"and the task {self.task.name!r} has none here. Use labels='own', which needs "
                "none."
            )
        return [Sample(inputs, None) for inputs in sliced(self._batches(), 1)]


def free_bytes(module: nn.Module) -> int:
    """Return how much memory is free on the device that a model is on."""
    first = next((*module.parameters(), *module.buffers()).__iter__(), None)
    if first is not None and first.device.type == "cuda":
        return int(torch.cuda.mem_get_info(first.device)[0])
    free, disk = int(psutil.virtual_memory().available), on_disk()
    return free if disk is None else min(free, disk.memory_bytes)
