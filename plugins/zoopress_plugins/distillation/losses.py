"""What a student's tensors lack of a teacher's: losses, each a mean that is 0 if they are equal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss, normalize


def response_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² times the Kullback–Leibler divergence from the teacher's softened classes.

    Gradients of softened scores shrink by T²; the factor makes up for it, so that the weight of
    this loss against others does not depend on the temperature.

    Args:
        student: scores of classes [rows, classes], before the softmax.
        teacher: the same.
        temperature: T, which scores are divided by.

    Returns:
        A scalar, the mean of all rows.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.
    """
    expected = (teacher / temperature).log_softmax(-1)
    got = (student / temperature).log_softmax(-1)
    # A class that is ruled out has the score −∞ in both, and adds nothing.
    gap = torch.where(expected.isneginf(), 0.0, expected - got)
    return temperature**2 * (expected.exp() * gap).sum(-1).mean()


def regression_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of two tensors of one shape."""
    return mse_loss(student, teacher)


def cosine_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of 1 − cosine similarity of embeddings [samples, size]."""
    return (1 - cosine_similarity(student, teacher, dim=-1)).mean()


def relational_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the samples' cosine similarities to each other.

    Args:
        student: embeddings [samples, size].
        teacher: embeddings [samples, any size].

    Returns:
        A scalar, the mean over all pairs of two samples; 0 of a single sample.

    Source: Tung & Mori 2019, arXiv:1907.09682, section 3.2, with cosine similarities.
    """
    one, other = normalize(student, dim=-1), normalize(teacher, dim=-1)
    pairs = len(student) * (len(student) - 1)
    # The diagonals are 1 in both.
    return (one @ one.T - other @ other.T).square().sum() / max(1, pairs)


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of hidden states, each relative to the teacher's norm.

    Relative, since hidden states of one model may differ in size by orders of magnitude.

    Args:
        student: [positions, features], a hidden state each.
        teacher: the same.

    Source: Romero et al. 2014, FitNets, arXiv:1412.6550, eq. 3.
    """
    size = teacher.square().sum(-1)
    apart = (student - teacher).square().sum(-1)
    return (apart / size.clamp_min(torch.finfo(size.dtype).tiny)).mean()


def rows(tensor: Tensor, real: Tensor | None = None) -> Tensor:
    """Return hidden states or scores as rows [positions, features].

    Args:
        tensor: [samples, features], [samples, tokens, features], or with more axes
            [samples, features, …] as convolutions have it.
        real: bool [samples, tokens]: which tokens are no padding.
    """
    if tensor.ndim == 1:
        return tensor[:, None]
    if real is not None and tensor.ndim == 3 and tensor.shape[:2] == real.shape:
        return tensor[real]
    moved = tensor.movedim(1, -1) if tensor.ndim > 3 else tensor
    return moved.reshape(-1, moved.shape[-1])
