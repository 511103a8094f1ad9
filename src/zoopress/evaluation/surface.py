"""Where a model can be attacked: its float inputs, or else what its token embedding gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.evaluation.attacks import Values
from zoopress.tasks import Task
from zoopress.tasks.batches import batch_length, map_tensors, named_tensors


@dataclass(frozen=True)
class Surface:
    """Continuous values [samples, …] that a model's output follows from.

    Attributes:
        task: runs the model.
        inputs: of one batch.
        names: of the float inputs that are the values; empty if an embedding's output is.
    """

    task: Task
    inputs: Any
    names: tuple[str, ...]

    @property
    def of_embedding(self) -> bool:
        return not self.names

    def values(self, module: nn.Module) -> list[Tensor]:
        """Return the values as they are.

        Raises:
            ValueError: if there are none.
        """
        if self.names:
            tensors = named_tensors(self.inputs)
            return [tensors[name] for name in self.names]
        seen: list[Tensor] = []
        with _embedding_output(module, self.inputs, None, seen):
            self.task.call(module, self.inputs)
        if not seen:
            raise ValueError("the model has neither float inputs nor an nn.Embedding of its tokens")
        embedded, samples = seen[0].clone(), batch_length(self.inputs)
        # Pairs of texts may go through the model as twice as many samples.
        return [embedded.unflatten(0, (samples, -1)) if len(embedded) > samples else embedded]

    def run(self, module: nn.Module, values: Values) -> Tensor:
        """Return the model's output at some values, with gradients where they are enabled."""
        if self.names:
            given = dict(zip(self.names, values, strict=True))
            inputs = map_tensors(self.inputs, lambda name, tensor: given.get(name, tensor))
            return self.task.forward(module, inputs)
        with _embedding_output(module, self.inputs, values[0], []):
            return self.task.forward(module, self.inputs)


def surface_of(task: Task, inputs: Any) -> Surface:
    """Find what of a batch's inputs is continuous."""
    floats = (
        name
        for name, tensor in named_tensors(inputs).items()
        if tensor.is_floating_point() and "mask" not in name
    )
    return Surface(task, inputs, tuple(floats))


@contextmanager
def _embedding_output(
    module: nn.Module, inputs: Any, instead: Tensor | None, seen: list[Tensor]
) -> Iterator[None]:
    """Note what the embedding of the tokens gives, or put something in its place.

    That is the first call with one of the integer inputs, whatever its axes, of the embedding that
    the model names (`get_input_embeddings`), if it names one, else of any. So neither positions nor
    token types are taken for tokens.
    """
    tokens = [t.flatten() for t in named_tensors(inputs).values() if not t.is_floating_point()]

    def hook(table: nn.Module, arguments: Sequence[Any], output: Tensor) -> Tensor | None:
        if seen or not any(torch.equal(ids.flatten(), t) for ids in arguments[:1] for t in tokens):
            return None
        seen.append(output.detach())
        return None if instead is None else instead.reshape(output.shape)

    tables = [m for m in module.modules() if isinstance(m, nn.Embedding)]
    named = _named_embeddings(module)
    handles = [table.register_forward_hook(hook) for table in tables if table in named or not named]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _named_embeddings(module: nn.Module) -> set[nn.Module]:
    """Return what a model, or a part of it, calls the embeddings of its inputs."""
    found: set[nn.Module] = set()
    for part in module.modules():
        get = getattr(part, "get_input_embeddings", None)
        if callable(get):
            try:
                embedding = get()
            except (NotImplementedError, AttributeError):  # a model of something else than tokens
                continue
            if isinstance(embedding, nn.Embedding):
                found.add(embedding)
    return found
