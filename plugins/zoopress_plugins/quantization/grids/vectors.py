"""Learned codewords: runs of a row's weights share vectors, found by weighted k-means.

Sources: Gong et al. 2014, arXiv:1412.6115, section 3.3 (product quantization); Wu et al. 2016,
arXiv:1512.06473, section 3.3 (codewords corrected for the error in the layer's outputs).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

ITERATIONS = 40
IMPROVEMENT = 1e-4
"""k-means ends when an iteration lowers the cost by no larger share."""
SAMPLE = 1 << 16
"""Codewords are fitted to at most so many vectors, drawn at random."""
_BLOCK_COSTS = 1 << 23


def into_vectors(matrix: Tensor, length: int) -> Tensor:
    """Return the runs of each row: [rows · runs, length]; the last of a row is filled with zeros.

    Args:
        matrix: [rows, columns].
        length: of a run.
    """
    return pad(matrix, (0, -matrix.shape[1] % length)).reshape(-1, length)


def nearest_words(vectors: Tensor, costs: Tensor, words: Tensor) -> Tensor:
    """Return which codeword has the least weighted squared distance to each vector, int64 [n].

    Args:
        vectors: [n, length].
        costs: [n, length], what an error's square is multiplied by.
        words: [k, length].
    """
    parts = []
    for some in torch.arange(len(vectors)).split(max(1, _BLOCK_COSTS // len(words))):
        mine = costs[some]
        distance = mine @ words.square().T - 2 * (mine * vectors[some]) @ words.T
        parts.append(distance.argmin(1))
    return torch.cat(parts)


def word_means(vectors: Tensor, costs: Tensor, codes: Tensor, otherwise: Tensor) -> Tensor:
    """Return the weighted means [k, length] of the vectors of each code.

    Args:
        vectors: [n, length].
        costs: the same.
        codes: [n].
        otherwise: [k, length], taken where no vector has a code, or none of any cost.
    """
    mass = torch.zeros_like(otherwise).index_add_(0, codes, costs)
    sums = torch.zeros_like(otherwise).index_add_(0, codes, costs * vectors)
    return torch.where(mass > 0, sums / mass.clamp_min(torch.finfo(mass.dtype).tiny), otherwise)


def distortion(vectors: Tensor, costs: Tensor, codes: Tensor, words: Tensor) -> float:
    """Return the weighted squared error of all vectors."""
    return float((costs * (words[codes] - vectors).square()).sum())


def fit_words(
    vectors: Tensor, costs: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Find codewords and who takes which.

    No iteration raises the error. A codeword that nobody takes moves to the vector that errs most.

    Args:
        vectors: [n, length], float32, finite.
        costs: the same, above 0 but where something is filled up.
        count: how many codewords at most.
        generator: draws the first ones, and a sample if there are many vectors.

    Returns:
        codewords [count, length], float32, each a number of bfloat16; codes [n], int64.
    """
    seen, cost = vectors, costs
    if len(vectors) > SAMPLE:
        drawn = torch.randperm(len(vectors), generator=generator)[:SAMPLE]
        seen, cost = vectors[drawn], costs[drawn]
    words = _first_words(seen, cost, count, generator)
    least = float("inf")
    for _ in range(ITERATIONS):
        codes = nearest_words(seen, cost, words)
        now = distortion(seen, cost, codes, words)
        if not now < least * (1 - IMPROVEMENT):
            break
        least = now
        words = word_means(seen, cost, codes, words)
        words = _revived(seen, cost, codes, words)
    words = words.bfloat16().float()
    return words, nearest_words(vectors, costs, words)


def corrected_words(
    words: Tensor, codes: Tensor, matrix: Tensor, moments: Tensor, damping: float = 0.01
) -> Tensor:
    """Return codewords whose error in the layer's outputs is least, for codes as they are.

    Outputs err by E = W − Ŵ times the inputs, so the error is tr(E H Eᵀ), a quadratic function of
    the codewords, which conjugate gradients minimize; it never ends above where it started.

    Args:
        words: [k, length].
        codes: [rows, runs].
        matrix: [rows, columns], the weights.
        moments: H, [columns, columns], the mean of x xᵀ over the layer's inputs.
        damping: share of the mean diagonal that is added to H's.

    Returns:
        [k, length], numbers of bfloat16; those given where they err less.
    """
    columns = matrix.shape[1]
    hessian = moments.double()
    hessian = hessian + damping * hessian.diagonal().mean() * torch.eye(columns).double()

    def spread(each: Tensor) -> Tensor:
        return each[codes].reshape(len(codes), -1)[:, :columns]

    def gathered(gradient: Tensor) -> Tensor:
        runs = into_vectors(gradient, words.shape[1])
        return torch.zeros_like(target).index_add_(0, codes.flatten(), runs)

    def error(each: Tensor) -> float:
        left = spread(each) - matrix.double()
        return float(((left @ hessian) * left).sum())

    target = words.double()
    found = target.clone()
    residual = gathered((matrix.double() - spread(found)) @ hessian)
    direction, size = residual.clone(), float(residual.square().sum())
    first = size
    for _ in range(2 * words.numel()):
        if size <= 1e-12 * first or not size:
            break
        turned = gathered(spread(direction) @ hessian)
        curvature = float((direction * turned).sum())
        if curvature <= 0:
            break
        found = found + size / curvature * direction
        residual = residual - size / curvature * turned
        now = float(residual.square().sum())
        direction, size = residual + now / size * direction, now
    rounded = found.bfloat16().float()
    return rounded if error(rounded.double()) < error(target) else words


def _first_words(vectors: Tensor, costs: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw vectors, each as likely as its distance from those before (k-means++)."""
    some = torch.randperm(len(vectors), generator=generator)[: max(4096, 4 * count)]
    seen, cost = vectors[some], costs[some]
    chosen = [seen[int(torch.randint(len(seen), (), generator=generator))]]
    apart = (cost * (seen - chosen[0]).square()).sum(1)
    for _ in range(count - 1):
        if not float(apart.sum()) > 0:  # fewer different vectors than codewords
            chosen.append(chosen[0])
            continue
        drawn = int(torch.multinomial(apart / apart.sum(), 1, generator=generator))
        chosen.append(seen[drawn])
        apart = torch.minimum(apart, (cost * (seen - chosen[-1]).square()).sum(1))
    return torch.stack(chosen).clone()


def _revived(vectors: Tensor, costs: Tensor, codes: Tensor, words: Tensor) -> Tensor:
    """Move codewords that nobody takes to vectors that err most."""
    empty = (codes.bincount(minlength=len(words)) == 0).nonzero().flatten()
    if not len(empty):
        return words
    errors = (costs * (words[codes] - vectors).square()).sum(1)
    worst = errors.argsort(descending=True, stable=True)[: len(empty)]
    worst = worst[errors[worst] > 0]
    words = words.clone()
    words[empty[: len(worst)]] = vectors[worst]
    return words
