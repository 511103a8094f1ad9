"""An artifact that was loaded, and a call of its model: what exporters and runtimes are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoopress.artifacts.artifact import load_artifact
from zoopress.errors import DeploymentError, InputError
from zoopress.models.input_grid import input_grids
from zoopress.models.model import Model
from zoopress.models.outputs import half_the_digits, output_tensors
from zoopress.models.packing import Unpacking, packed_weights, unpack
from zoopress.tasks.batches import first_samples, typical_batch
from zoopress.tasks.gradients import without_gradients

if TYPE_CHECKING:
    from zoopress.artifacts.manifest import Manifest
    from zoopress.plugins import Plugins
    from zoopress.sources import Architecture
    from zoopress.tasks import Task


@dataclass(frozen=True)
class Call:
    """What a module is called with.

    Attributes:
        arguments: by position.
        named: by name.
    """

    arguments: tuple[Any, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, inputs: Any) -> Call:
        """Return the call that inputs stand for: a tensor, some by position, or a dict by name.

        Raises:
            InputError: if they are something else.
        """
        if isinstance(inputs, Call):
            return inputs
        if isinstance(inputs, Tensor):
            return cls((inputs,))
        if isinstance(inputs, Mapping) and all(isinstance(name, str) for name in inputs):
            return cls((), dict(inputs))
        if isinstance(inputs, (tuple, list)):
            return cls(tuple(inputs))
        raise InputError(
            f"Example inputs are a tensor, a tuple of what the model takes by position, or a dict "
            f"of what it takes by name, not {type(inputs).__name__}."
        )

    @classmethod
    def caught(cls, module: nn.Module, run: Callable[[], object]) -> Call:
        """Return the first call of a module that `run` makes.

        Raises:
            InputError: if it makes none.
        """
        calls: list[Call] = []

        def note(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if not calls:
                calls.append(cls(arguments, named))

        hook = module.register_forward_pre_hook(note, with_kwargs=True, prepend=True)
        try:
            run()
        finally:
            hook.remove()
        if not calls:
            raise InputError(
                "This task never calls the model as a whole, so there are no example inputs in "
                "it. Use a card with another task."
            )
        return calls[0]

    @classmethod
    def of_task(cls, task: Task, module: nn.Module, samples: int = 8) -> Call:
        """Return how a task calls a module, on a few samples of its test split."""
        inputs = first_samples(typical_batch(task), samples)
        return cls.caught(module, lambda: task.call(module, inputs))

    def __call__(self, module: nn.Module) -> Any:
        """Call a module, without gradients."""
        return without_gradients(module, lambda: module(*self.arguments, **self.named))

    @property
    def samples(self) -> int:
        """How many samples there are: the first axis of the first tensor; 0 without one."""
        found = next(output_tensors((self.arguments, self.named)), None)
        return found[1].shape[0] if found is not None and found[1].ndim else 0

    def repeated(self, samples: int) -> Call:
        """Return a call with so many samples: these, from the first on, again and again."""
        rows = torch.arange(samples) % max(1, self.samples)

        def change(tensor: Tensor) -> Tensor:
            return tensor[rows.to(tensor.device)] if self._has_samples(tensor) else tensor

        return self.map(change)

    def map(self, change: Callable[[Tensor], Any]) -> Call:
        """Return a call with every tensor changed."""
        arguments: tuple[Any, ...] = _mapped(self.arguments, change)
        return replace(self, arguments=arguments, named=_mapped(dict(self.named), change))

    def sample_axes(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return, in the place of each tensor, whether its first axis counts the samples."""
        told = self.map(self._has_samples)
        return told.arguments, dict(told.named)

    def _has_samples(self, tensor: Tensor) -> bool:
        return tensor.ndim > 0 and tensor.shape[0] == self.samples


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(item, change) for item in value)
    return value


@dataclass(frozen=True)
class Opened:
    """An artifact that was loaded.

    Attributes:
        model: the model; its module is what `zoopress.load` returns. It must not be changed.
        architecture: how its module is built.
        manifest: what the artifact says.
        folder: where it is.
        example: a call that the model answers, None if none is known.
        unpacking: which packed weights become dense where PyTorch computes with them.
    """

    model: Model
    architecture: Architecture
    manifest: Manifest
    folder: Path
    example: Call | None = None
    unpacking: Unpacking = "auto"

    @property
    def module(self) -> nn.Module:
        """The network, in evaluation mode, packed weights as they are."""
        return self.model.module

    @cached_property
    def dense(self) -> nn.Module:
        """A copy of the network with every packed weight made dense."""
        import copy

        module = copy.deepcopy(self.module)
        unpack(module, "all")
        return module

    def call(self, why: str) -> Call:
        """Return the example.

        Raises:
            DeploymentError: if there is none.
        """
        if self.example is None:
            raise DeploymentError(
                f"{why}, so it needs example inputs: give example_inputs=…, or on the command line "
                "a card."
            )
        return self.example

    def bound(self, module: nn.Module) -> float:
        """Return how far outputs may be from those of `module`, relative to the largest.

        That is `half_the_digits` of the coarsest float type that it computes in, or of the
        coarsest grid that inputs are rounded to: what differs in the last digit before, may be
        rounded to the next of its places.
        """
        types = {p.dtype for p in module.parameters()}
        types |= {packed.computes_in for packed in packed_weights(module).values()}
        steps = [math.ldexp(1.0, -grid.bits) for grid in input_grids(module).values()]
        return max([half_the_digits(*types), *map(math.sqrt, steps)])


def open_artifact(
    folder: Path,
    plugins: Plugins,
    factory: Callable[..., nn.Module] | None = None,
    verify: bool = True,
    example: Call | None = None,
) -> Opened:
    """Load an artifact for an exporter or a runtime.

    Raises:
        ArtifactError: as `load_artifact`.
    """
    model, architecture, manifest = load_artifact(folder, plugins, factory, verify, masks=False)
    return Opened(model, architecture, manifest, folder, example)
