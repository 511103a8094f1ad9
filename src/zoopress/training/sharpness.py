"""Sharpness-aware steps: gradients are taken where the loss is highest nearby.

Sources: Foret et al. 2021, arXiv:2010.01412 (SAM), eq. 2 and algorithm 1; of quantized weights Wang
et al. 2022, arXiv:2210.07171 (SQuAT).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def climbed(parameters: Sequence[nn.Parameter], radius: float) -> Iterator[None]:
    """Move parameters by radius · g ÷ ‖g‖ along their gradients g; in the end they are back.

    Args:
        parameters: those without a gradient stay.
        radius: ρ of the paper.
    """
    moved = [p for p in parameters if p.grad is not None]
    before = [p.detach().clone() for p in moved]
    with torch.no_grad():
        norms = [p.grad.norm() for p in moved if p.grad is not None]
        norm = torch.stack([n.to(norms[0]) for n in norms]).norm() if norms else torch.tensor(0.0)
        for p in moved if float(norm) > 0 else []:
            assert p.grad is not None
            p.add_(p.grad * (radius / norm).to(p.device))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, values in zip(moved, before, strict=True):
                p.copy_(values)
