"""What to differentiate, to learn how errors in weights change a model's outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoopress.tasks import Task, is_judged, named_outputs, outputs_of, samples_first
from zoopress.tasks.batches import batch_length, map_tensors

UNIFORM_SHARE = 0.1
"""How many labels are drawn evenly from all: a classifier that is sure of itself tells little."""


def forward_all(task: Task, module: nn.Module, inputs: Any) -> tuple[Tensor, list[Tensor]]:
    """Run a module with gradients; return what the task returns, and what else it is judged by.

    Args:
        task: runs it.
        module: the model.
        inputs: of a batch.

    Returns:
        The task's output, and all other outputs that are judged and have gradients, samples first.
    """
    if not task.every_output:
        return task.forward(module, inputs), []
    with outputs_of(module) as returned:
        output = task.forward(module, inputs)
    samples = batch_length(inputs)
    others: list[Tensor] = []
    for named in (named_outputs(each, samples) for each in returned):
        main = next((n for n, t in named.items() if t.data_ptr() == output.data_ptr()), "")
        for name, tensor in named.items():
            rows = samples_first(tensor, samples) if tensor.requires_grad else None
            if rows is not None and name != main and is_judged(task, name, main):
                real = torch.view_as_real(rows.resolve_conj()) if rows.is_complex() else rows
                others.append(real)
    return output, others


def probe(
    task: Task, output: Tensor, generator: torch.Generator, others: Sequence[Tensor] = ()
) -> Tensor:
    """Return a random scalar of a batch's output, whose gradient measures a distance of outputs.

    The mean of the squared gradient is, along each direction, the second derivative of: for scores
    of classes the Kullback–Leibler divergence; for one number a sample the squared difference,
    relative to the mean square; for all else twice 1 − the cosine of each sample's output with what
    it was. Samples do not mix: the mean product of two samples' gradients is 0. Nor do outputs.

    Args:
        task: tells whether outputs are scores of classes.
        output: [samples, …], with gradients.
        generator: on the CPU.
        others: more outputs of the same kind, whose distances are added.

    Source: Martens 2014, arXiv:1412.1193, section 9.2 (labels drawn from the model's own
        distribution); Hutchinson 1990, doi:10.1080/03610919008812866 (random probes).
    """
    scores = _class_scores(task, output)
    if others:
        apart = [_distance_probe(other, generator) for other in others]
        return probe(task, output, generator) + torch.stack(apart).sum()
    if scores is not None:
        likelihood: Tensor = (scores * _drawn_labels(scores.detach(), generator)).sum()
        return likelihood
    return _distance_probe(output, generator)


def _distance_probe(output: Tensor, generator: torch.Generator) -> Tensor:
    rows = output.reshape(len(output), -1).float()
    values = rows.detach()
    if rows.shape[1] == 1:
        noise = torch.randn(values.shape, generator=generator).to(values.device)
        along: Tensor = (rows * noise / values.square().mean().sqrt().clamp_min(1e-30)).sum()
        return along
    length = values.norm(dim=1, keepdim=True)
    length = length.clamp(min=1e-3 * float(length.max()) or 1.0)
    unit = values / length
    directions = torch.randn(values.shape, generator=generator).to(values.device)
    directions -= (directions * unit).sum(1, keepdim=True) * unit  # what scales changes no cosine
    scalar: Tensor = (rows * (directions / length)).sum()
    return scalar


def sliced(batches: Sequence[Any], samples: int) -> Iterator[Any]:
    """Yield the samples of batches, so many at a time at most."""
    for batch in batches:
        for start in range(0, batch_length(batch), samples):
            some = slice(start, start + samples)
            yield map_tensors(batch, lambda _, tensor, some=some: tensor[some])  # type: ignore[misc]


def _class_scores(task: Task, output: Tensor) -> Tensor | None:
    """Return outputs as scores [rows, classes], None if the task takes no labels from them so."""
    if output.ndim < 2 or not output.is_floating_point():
        return None
    moved = output if output.ndim <= 3 else output.movedim(1, -1)
    rows = moved.reshape(-1, moved.shape[-1])
    scores = task.similarity([output.detach()])
    same = scores is not None and scores.shape == rows.shape and torch.equal(scores, rows.detach())
    return rows.float() if same else None


def _drawn_labels(scores: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a label for each row; return one-hot rows less their mean, [rows, classes]."""
    shares = scores.float().softmax(1).nan_to_num(0.0)
    shares = (1 - UNIFORM_SHARE) * shares + UNIFORM_SHARE / shares.shape[1]
    drawn = torch.multinomial(shares.cpu(), 1, generator=generator).to(scores.device)
    return torch.zeros_like(shares).scatter_(1, drawn, 1.0) - shares
