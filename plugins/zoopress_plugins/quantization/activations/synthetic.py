"""Inputs to calibrate on: the card's, or ones that are made up of the model alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from zoopress.tasks.batches import batch_length, map_tensors
from zoopress_plugins.quantization.rate_distortion.probes import made_up

if TYPE_CHECKING:
    from zoopress.models.model import Model
    from zoopress.techniques import Context

STEPS, RATE = 40, 0.2


def calibration_inputs(
    context: Context, model: Model, data: Literal["calibration", "synthetic"]
) -> Sequence[Any]:
    """Return calibration batches.

    Args:
        context: of the stage.
        model: what is calibrated; it is left as it was.
        data: the card's inputs; or, without looking at them but for their shapes and types, text
            that the model writes, images that match its batch normalization, or noise.
    """
    batches = list(context.batches())
    if data == "calibration" or not batches:
        return batches
    assert context.task is not None, "a stage's context has a task"
    generator = context.generator()
    context.progress("imagining inputs")
    samples = sum(map(batch_length, batches))
    imagined = context.task.imagined(model.module, samples, generator)
    if imagined:
        return list(imagined)
    noise = [made_up(batch, generator) for batch in batches]
    if not _norms(model.module):
        return noise
    return [matched(model.module, batch, context) for batch in noise]


def matched(module: nn.Module, batch: Any, context: Context) -> Any:
    """Change inputs until what enters batch normalization has the statistics that it has learned.

    Args:
        module: with batch normalization; it is left as it was.
        batch: what to start from; of its tensors those of floats change.
        context: runs the module.

    Source: Cai et al. 2020, arXiv:2001.00281, eq. 3 (ZeroQ).
    """
    assert context.task is not None, "a stage's context has a task"
    leaves: list[Tensor] = []

    def leaf(_: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    with torch.enable_grad():
        inputs = map_tensors(batch, leaf)
        if not leaves:
            return batch
        optimizer = torch.optim.Adam(leaves, RATE)
        distances: list[Tensor] = []

        def compare(norm: Any, arguments: tuple[Any, ...]) -> None:
            x = arguments[0].float()
            over = [0, *range(2, x.ndim)]
            mean, variance = x.mean(over), x.var(over, correction=0)
            wanted = norm.running_var.float() + norm.eps
            distances.append(((mean - norm.running_mean) / wanted.sqrt()).square().mean())
            distances.append((((variance + norm.eps).sqrt() / wanted.sqrt()) - 1).square().mean())

        handles = [norm.register_forward_pre_hook(compare) for norm in _norms(module)]
        required = {p: p.requires_grad for p in module.parameters()}
        for parameter in required:
            parameter.requires_grad_(False)
        try:
            for _ in range(STEPS):
                distances.clear()
                optimizer.zero_grad()
                context.task.forward(module, inputs)
                if not distances or not torch.stack(distances).requires_grad:
                    break
                torch.stack(distances).mean().backward()
                optimizer.step()
        finally:
            for handle in handles:
                handle.remove()
            for parameter, flag in required.items():
                parameter.requires_grad_(flag)
    return map_tensors(inputs, lambda _, tensor: tensor.detach())


def _norms(module: nn.Module) -> list[Any]:
    return [
        part
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None
    ]
