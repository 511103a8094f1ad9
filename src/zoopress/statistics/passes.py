"""Run a model over calibration data, and let accounts take what their weights see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zoopress.errors import StageError
from zoopress.models.caches import caches_forgotten
from zoopress.models.packing import differentiable
from zoopress.models.weights import as_matrix
from zoopress.statistics.accounts import Account
from zoopress.statistics.differentiation import (
    gradients_of,
    without_inference,
    without_inference_tensors,
)
from zoopress.statistics.probes import forward_all, probe
from zoopress.statistics.products import Use
from zoopress.statistics.statistic import Objective
from zoopress.statistics.targets import Target
from zoopress.statistics.watch import Watch
from zoopress.tasks import Task
from zoopress.tasks.failures import differentiating, failing
from zoopress.tasks.gradients import takes_gradients

_NO_GRADIENTS = "Choose what needs no gradients, such as another criterion."


class Sample(NamedTuple):
    """One calibration sample: a batch of one, and its label where there is one."""

    inputs: Any
    target: Any


def watch_values(
    module: nn.Module,
    targets: Sequence[Target],
    accounts: Mapping[str, Account],
    batches: Sequence[Any],
    call: Callable[[nn.Module, Any], Tensor],
    told: Callable[[float], None],
) -> None:
    """Run a model on all batches, without gradients, and let accounts take inputs and outputs."""
    watch = Watch(module, _watched(targets), lambda use: accounts[use.weight.name].take(use))
    # Below autograd a linear layer is one operation, its bias included, whatever its input is like.
    whole = nullcontext if takes_gradients(module) else torch._C._AutoDispatchBelowAutograd
    with watch.watching():
        for done, batch in enumerate(batches, start=1):
            with whole():
                call(module, batch)
            watch.end_pass()
            told(done / len(batches))
    _note_readers(watch, accounts)


def watch_gradients(
    module: nn.Module,
    targets: Sequence[Target],
    accounts: Mapping[str, Account],
    samples: Iterable[Sample],
    count: int,
    task: Task,
    seed: int,
    told: Callable[[float], None],
) -> None:
    """Run a model forward and backward on each sample alone, and let accounts take gradients.

    Args:
        module: the model; it is left as it was.
        targets: weights of it.
        accounts: of these, by name.
        samples: what to run.
        count: how many there are.
        task: runs the model and knows its loss.
        seed: what is drawn for a sample follows from it and the sample's number, and so does not
            depend on which weights are measured together.
        told: called with how much is done.

    Raises:
        StageError: if the outputs have no gradients with respect to the weights.
    """
    with ExitStack() as stack:
        stack.enter_context(without_inference_tensors(module))
        work = _Gradients(module, targets, accounts, task)
        stack.enter_context(gradients_of(module, list(work.parameters.values())))
        stack.enter_context(differentiable(module))
        stack.enter_context(work.watch.watching())
        for done, sample in enumerate(samples, start=1):
            generator = torch.Generator().manual_seed((seed * 1_000_003 + done) % (1 << 63))
            with caches_forgotten(module):  # what it keeps of a call has that call's graph
                work.take(sample, generator)
            told(done / count)
    _note_readers(work.watch, accounts)


class _Gradients:
    """Differentiates one sample after another."""

    def __init__(
        self,
        module: nn.Module,
        targets: Sequence[Target],
        accounts: Mapping[str, Account],
        task: Task,
    ) -> None:
        self.module, self.accounts, self.task = module, accounts, task
        self.parameters = {
            target.watched.name: held
            for target in targets
            if isinstance(held := target.held, nn.Parameter)
        }
        self._axes = {target.watched.name: target.watched.output_axis for target in targets}
        self.watch = Watch(module, _watched(targets), self._use, self._leaf)
        self._leaves: list[tuple[str, Tensor]] = []
        self._now: tuple[Objective, int] = ("own", 0)
        self._labelled = False

    def take(self, sample: Sample, generator: torch.Generator) -> None:
        self._leaves = []
        self._labelled = sample.target is not None
        before = dict(self.watch.reads)
        with failing("when gradients are taken in evaluation mode", _NO_GRADIENTS):
            output, others = forward_all(self.task, self.module, without_inference(sample.inputs))
        self.watch.settle()
        with self.watch.paused():
            self._differentiate(output, others, sample, generator)
        self.watch.end_pass()
        for name, account in self.accounts.items():
            account.samples += self.watch.reads.get(name, 0) > before.get(name, 0)

    def _differentiate(
        self, output: Tensor, others: list[Tensor], sample: Sample, generator: torch.Generator
    ) -> None:
        if not output.requires_grad:
            raise StageError(
                "The model's outputs have no gradients with respect to the weights selected, so "
                "none can be measured. Select weights that the outputs depend on, or a technique "
                "that needs no gradients."
            )
        statistics = next(iter(self.accounts.values())).statistics
        asked = [(s.objective(self._labelled), s.probes) for s in statistics]
        probes = max((probes for objective, probes in asked if objective == "own"), default=0)
        turns: list[tuple[Objective, int]] = [("own", turn) for turn in range(probes)]
        if any(objective == "loss" for objective, _ in asked):
            turns.append(("loss", 0))
        names = [*self.parameters, *(name for name, _ in self._leaves)]
        tensors = [*self.parameters.values(), *(leaf for _, leaf in self._leaves)]
        for left, turn in zip(reversed(range(len(turns))), turns, strict=True):
            self._now = turn
            if turn[0] == "own":
                scalar = probe(self.task, output, generator, others)
            else:
                scalar = self.task.loss(output, without_inference(sample.target))
            with differentiating(_NO_GRADIENTS):
                gradients = torch.autograd.grad(
                    scalar, tensors, allow_unused=True, retain_graph=left > 0
                )
            summed: dict[str, Tensor] = {}
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None and gradient.layout != torch.strided:
                    gradient = gradient.to_dense()
                if gradient is not None:  # those of a packed weight add up over its uses
                    summed[name] = summed[name] + gradient if name in summed else gradient
            for name, gradient in summed.items():
                matrix = as_matrix(gradient.detach(), self._axes[name])
                self.accounts[name].take_gradient(matrix, self._positions())

    def _positions(self) -> list[int]:
        """Return which statistics want what is differentiated now."""
        statistics = next(iter(self.accounts.values())).statistics
        objective, turn = self._now
        return [
            position
            for position, each in enumerate(statistics)
            if each.objective(self._labelled) == objective and turn < each.probes
        ]

    def _use(self, use: Use) -> None:
        account = self.accounts[use.weight.name]
        account.take(use)
        if use.rows and any("output_gradients" in each.needs for each in account.statistics):
            self.watch.when_settled(lambda: self._catch(use, account))

    def _catch(self, use: Use, account: Account) -> None:
        """Let the account take the gradients that will flow into what a product gave."""
        node, number, part = use.result.grad_fn, use.result.output_nr, account.part(use)
        if node is None:
            return

        def take(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[number]
            if gradient is not None:
                rows = use.as_rows(gradient.detach())
                account.take_output_gradient(part, rows, self._positions())

        # Not a hook of the tensor: it may be changed in place later, by a ReLU for example.
        node.register_prehook(take)

    def _leaf(self, name: str, dense: Tensor) -> Tensor:
        leaf = dense.detach().clone().requires_grad_()
        self._leaves.append((name, leaf))
        return leaf


def _watched(targets: Sequence[Target]) -> dict[str, Any]:
    return {target.watched.name: (target.watched, target.held) for target in targets}


def _note_readers(watch: Watch, accounts: Mapping[str, Account]) -> None:
    for name, account in accounts.items():
        account.readers |= watch.readers.get(name, set())


def blocks(targets: Sequence[Target], sizes: Sequence[int], budget: int) -> Iterator[list[Target]]:
    """Yield targets of some sizes in order, as many at a time as a budget allows, at least one."""
    some: list[Target] = []
    taken = 0
    for target, size in zip(targets, sizes, strict=True):
        if some and taken + size > budget:
            yield some
            some, taken = [], 0
        some.append(target)
        taken += size
    if some:
        yield some
