"""Metrics of labelled data: pure functions of tensors, computed in double precision.

What all have in common:

- No rows, other shapes, and values that are NaN or infinite are a ValueError.
- A model that gives everything the same score or value is not rewarded for it: scores that tie
  with the right one's count as larger ones, and the correlation of constant predictions is 0.
- Targets that cannot tell a good model from a bad one, such as constant ones of a correlation, are
  a ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def accuracy(predicted: Tensor, target: Tensor) -> float:
    """Return the share of equal classes.

    Args:
        predicted: [samples], int64.
        target: [samples], int64.
    """
    _check(predicted, target)
    return float((predicted == target).double().mean())


def macro_f1(predicted: Tensor, target: Tensor, classes: int) -> float:
    """Return the mean over classes of F1 = 2·TP ÷ (2·TP + FP + FN).

    Classes that are neither predicted nor a target are left out, as scikit-learn's
    `f1_score(…, average="macro")` does.

    Args:
        predicted: [samples], int64.
        target: [samples], int64.
        classes: how many there are.

    Raises:
        ValueError: if a class is not in 0 … `classes` − 1.

    Source: Sokolova and Lapalme 2009, doi:10.1016/j.ipm.2009.03.002; of the two macro F1 scores
        that Opitz and Burst 2019, arXiv:1911.03347, tell apart, the mean of F1 scores.
    """
    _check(predicted, target)
    for values in (predicted, target):
        if int(values.min()) < 0 or int(values.max()) >= classes:
            raise ValueError(
                f"classes must be in 0 … {classes - 1}, not {int(values.min())} … "
                f"{int(values.max())}"
            )
    hits = torch.bincount(target[predicted == target], minlength=classes).double()
    total = torch.bincount(predicted, minlength=classes) + torch.bincount(target, minlength=classes)
    occurs = total > 0
    return float((2 * hits[occurs] / total[occurs]).mean())


def top_k_accuracy(scores: Tensor, target: Tensor, k: int) -> float:
    """Return the share of samples whose class is among the `k` with the largest scores.

    Classes that tie with the right one come before it. It is 1 if `k` is the number of classes.

    Args:
        scores: [samples, classes].
        target: [samples], int64.
        k: at least 1.
    """
    return recall_at_k(scores, target, k)


def log_loss(losses: Tensor) -> float:
    """Return the mean of −ln p(target) over samples.

    Args:
        losses: [samples], of each its −ln p(target), in nats.
    """
    _check(losses)
    return float(losses.double().mean())


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy, over bins weighted by their samples.

    Args:
        confidence: [samples], of each the probability of its predicted class.
        correct: [samples], bool: whether that class is right.
        bins: of equal width; bin b holds confidences in (b ÷ bins, (b + 1) ÷ bins], the first one
            also 0.

    Raises:
        ValueError: if a confidence is not in [0, 1].

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3; Naeini et al. 2015.
    """
    _check(confidence, correct)
    confidence = confidence.double()
    if float(confidence.min()) < 0 or float(confidence.max()) > 1 + 1e-6:
        raise ValueError(
            f"confidences must be probabilities, not {float(confidence.min()):g} … "
            f"{float(confidence.max()):g}"
        )
    which = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add(0, which, confidence - correct.double())
    return float(gaps.abs().sum() / len(confidence))


def entity_f1(
    predicted_tags: Sequence[Sequence[str]], target_tags: Sequence[Sequence[str]]
) -> float:
    """Return the F1 of entities, over all of them (micro): right are type and both ends.

    As seqeval does by default, after CoNLL's script: a tag I-X that follows O or another type
    begins an entity as B-X does.

    Args:
        predicted_tags: of each sample its IOB2 tags: "O", "B-PER", "I-PER", …
        target_tags: the same of what is right.

    Raises:
        ValueError: if a sample has another number of tags than its target.

    Source: Tjong Kim Sang and De Meulder 2003, "Introduction to the CoNLL-2003 Shared Task".
    """
    if len(predicted_tags) != len(target_tags) or not target_tags:
        raise ValueError(f"{len(predicted_tags)} tagged samples do not fit {len(target_tags)}")
    pairs = zip(predicted_tags, target_tags, strict=True)
    counts = torch.tensor([entity_counts(*pair) for pair in pairs])
    return f1_of_counts(counts)


def entity_counts(
    predicted_tags: Sequence[str], target_tags: Sequence[str]
) -> tuple[int, int, int]:
    """Return how many entities of one sample are right, predicted, and there to find.

    `f1_of_counts` of the rows of many samples is their `entity_f1`.
    """
    if len(predicted_tags) != len(target_tags):
        raise ValueError(f"{len(predicted_tags)} tags do not fit {len(target_tags)}")
    predicted, target = _entities(predicted_tags), _entities(target_tags)
    return len(predicted & target), len(predicted), len(target)


def f1_of_counts(counts: Tensor) -> float:
    """Return 2 · right ÷ (predicted + there), summed over samples; 0 if there are none at all.

    Args:
        counts: [samples, 3], integers: right, predicted, there.
    """
    _check(counts)
    right, predicted, there = (int(total) for total in counts.sum(0))
    return 2 * right / (predicted + there) if predicted + there else 0.0


def mean_absolute_error(predicted: Tensor, target: Tensor) -> float:
    """Return the mean of |predicted − target| over all values [n] or [n, k]."""
    _check(predicted, target)
    return float((predicted.double() - target.double()).abs().mean())


def root_mean_squared_error(predicted: Tensor, target: Tensor) -> float:
    """Return √ of the mean of (predicted − target)² over all values [n] or [n, k]."""
    _check(predicted, target)
    return float((predicted.double() - target.double()).square().mean().sqrt())


def r_squared(predicted: Tensor, target: Tensor) -> float:
    """Return 1 − Σ(target − predicted)² ÷ Σ(target − mean)², of [n, k] the mean over columns.

    Raises:
        ValueError: if a column of `target` is constant.
    """
    predicted, target = _columns(predicted, target)
    residual = (target - predicted).square().sum(0)
    total = (target - target.mean(0)).square().sum(0)
    return float((1 - residual / total).mean())


def pearson(predicted: Tensor, target: Tensor) -> float:
    """Return the linear correlation of [n], of [n, k] the mean over columns.

    A constant column of `predicted` correlates with nothing: 0.

    Raises:
        ValueError: if a column of `target` is constant.
    """
    predicted, target = _columns(predicted, target)
    # Divided by the largest, so that no square over- or underflows.
    a, b = (_scaled(values - values.mean(0)) for values in (predicted, target))
    constant = (predicted == predicted[0]).all(0)
    norms = (a.square().sum(0) * b.square().sum(0)).sqrt()
    correlation = torch.where(constant, 0.0, (a * b).sum(0) / norms.where(~constant, 1.0))
    return float(correlation.clamp(-1, 1).mean())


def spearman(predicted: Tensor, target: Tensor) -> float:
    """Return the Pearson correlation of ranks, of [n, k] the mean over columns.

    Equal values have the mean of their ranks. A constant column of `predicted` gives 0.

    Raises:
        ValueError: if a column of `target` is constant.
    """
    predicted, target = _columns(predicted, target)
    return pearson(_average_ranks(predicted), _average_ranks(target))


def recall_at_k(scores: Tensor, relevant: Tensor, k: int) -> float:
    """Return the share of queries whose one relevant document is among the best `k`.

    Args:
        scores: [queries, documents], a larger one for a better match.
        relevant: [queries], int64: of each query its document.
        k: at least 1.
    """
    return recall_of_ranks(ranks(scores, relevant), k)


def mean_reciprocal_rank(scores: Tensor, relevant: Tensor) -> float:
    """Return the mean over queries of 1 ÷ the rank of the one relevant document.

    Args:
        scores: [queries, documents].
        relevant: [queries], int64.
    """
    return reciprocal_of_ranks(ranks(scores, relevant))


def ndcg_at_k(scores: Tensor, relevant: Tensor, k: int) -> float:
    """Return the normalized discounted cumulative gain at `k`, of one relevant document a query.

    That is 1 ÷ log₂(1 + rank) where the rank is at most `k`, else 0; mean over queries.

    Args:
        scores: [queries, documents].
        relevant: [queries], int64.
        k: at least 1.

    Source: Järvelin and Kekäläinen 2002, doi:10.1145/582415.582418.
    """
    return ndcg_of_ranks(ranks(scores, relevant), k)


def ranks(scores: Tensor, relevant: Tensor) -> Tensor:
    """Return the rank of each query's relevant document, int64 [queries], from 1.

    Documents that tie with it count as better ones: an order that a model does not tell is not to
    its credit. A query's rank depends on no other query, so metrics of ranks can be resampled.

    Args:
        scores: [queries, documents].
        relevant: [queries], int64.

    Raises:
        ValueError: if `relevant` names a document that is not there.
    """
    _check(scores)
    if scores.ndim != 2 or relevant.shape != scores.shape[:1]:
        raise ValueError(
            "scores must be [samples, candidates] and the right ones [samples], not "
            f"{list(scores.shape)} and {list(relevant.shape)}"
        )
    if int(relevant.min()) < 0 or int(relevant.max()) >= scores.shape[1]:
        raise ValueError(
            f"the right ones must be in 0 … {scores.shape[1] - 1}, not {int(relevant.min())} … "
            f"{int(relevant.max())}"
        )
    own = scores.gather(1, relevant[:, None])
    return (scores >= own).sum(1)


def recall_of_ranks(ranks: Tensor, k: int) -> float:
    """Return the share of `ranks` [queries] that are at most `k`."""
    _check_ranks(ranks, k)
    return float((ranks <= k).double().mean())


def reciprocal_of_ranks(ranks: Tensor) -> float:
    """Return the mean of 1 ÷ `ranks` [queries]."""
    _check_ranks(ranks)
    return float(ranks.double().reciprocal().mean())


def ndcg_of_ranks(ranks: Tensor, k: int) -> float:
    """Return the mean of 1 ÷ log₂(1 + rank), 0 above `k`, of `ranks` [queries]."""
    _check_ranks(ranks, k)
    gains = (1 + ranks.double()).log2().reciprocal()
    return float(gains.where(ranks <= k, 0.0).mean())


def perplexity(nll: Tensor, tokens: Tensor) -> float:
    """Return e to the mean of −ln p over all tokens; infinite where that overflows.

    Args:
        nll: [samples], of each the sum of −ln p(token) over its predicted tokens, in nats.
        tokens: [samples], how many tokens those are.

    Raises:
        ValueError: if there are no tokens.
    """
    _check(nll, tokens)
    if int(tokens.sum()) < 1:
        raise ValueError("no sample has a token to predict; each needs at least two tokens")
    return float((nll.double().sum() / tokens.sum()).exp())


def raw_pitch_accuracy(predicted_hz: Tensor, target_hz: Tensor, cents: float = 50.0) -> float:
    """Return the share of voiced frames whose pitch is less than `cents` off.

    Frames with a target of 0 or less have no pitch and are left out. A prediction of 0 or less is
    wrong. A distance is 1200 · |log₂(predicted ÷ target)| cents.

    Args:
        predicted_hz: [frames].
        target_hz: [frames].
        cents: the tolerance; 50 are half a semitone.

    Raises:
        ValueError: if no frame is voiced.

    Source: Poliner et al. 2007, doi:10.1109/TASL.2006.889797; Salamon et al. 2014.
    """
    _check(predicted_hz, target_hz)
    voiced = target_hz > 0
    if not bool(voiced.any()):
        raise ValueError("no frame is voiced: every target is 0 Hz or less")
    predicted, target = predicted_hz[voiced].double(), target_hz[voiced].double()
    distance = 1200 * (predicted.clamp_min(0) / target).log2().abs()  # infinite for 0 Hz
    return float((distance < cents).double().mean())


def _check(values: Tensor, target: Tensor | None = None) -> None:
    """Raise a ValueError if there is nothing, something that is not finite, or another shape."""
    if target is not None and values.shape != target.shape:
        raise ValueError(
            f"predictions {list(values.shape)} and targets {list(target.shape)} must have one shape"
        )
    for tensor in (values,) if target is None else (values, target):
        if tensor.numel() == 0:
            raise ValueError("a metric needs at least one sample, there is none")
        if not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise ValueError(f"{bad} of {tensor.numel()} values are NaN or infinite")


def _check_ranks(ranks: Tensor, k: int = 1) -> None:
    _check(ranks)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")


def _columns(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return [n] or [n, k] as float64 [n, k], with targets that vary."""
    _check(predicted, target)
    if target.ndim not in (1, 2):
        raise ValueError(f"values must be [n] or [n, k], not {list(target.shape)}")
    if bool((target == target[0]).all(0).any()):
        raise ValueError(
            f"all {len(target)} targets of a column are the same, with which nothing correlates; "
            "there must be two different ones"
        )
    rows = len(target)
    return predicted.double().reshape(rows, -1), target.double().reshape(rows, -1)


def _scaled(values: Tensor) -> Tensor:
    largest = values.abs().amax(0)
    return values / largest.where(largest > 0, 1.0)


def _average_ranks(values: Tensor) -> Tensor:
    """Return the ranks [n, k] of each column's values, equal ones with the mean of theirs."""
    columns = []
    for column in values.unbind(1):
        _, which, counts = column.unique(return_inverse=True, return_counts=True)
        last = counts.cumsum(0).double()
        columns.append((last - (counts - 1) / 2)[which])
    return torch.stack(columns, 1)


def _entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the entities of IOB2 tags: type, first position, position after the last."""
    found = set()
    start, inside = 0, ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if prefix not in ("B", "I", "O") or (prefix == "O") != (kind == ""):
            raise ValueError(f"tag {tag!r} is none of IOB2: 'O', 'B-TYPE' or 'I-TYPE'")
        if inside and (prefix != "I" or kind != inside):
            found.add((inside, start, position))
            inside = ""
        if kind and not inside:
            start, inside = position, kind
    return found
