"""Metrics: cases computed by hand, independent libraries, and what must hold of any data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from hypothesis import assume, given, settings, strategies as st
from torch import Tensor

from zoopress.evaluation import metrics

CLASSES = 4
MANY = 200


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def classes(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_classes(seed: int, count: int = MANY) -> tuple[Tensor, Tensor]:
    source = generator(seed)
    target = torch.randint(0, CLASSES, (count,), generator=source)
    noise = torch.randint(0, CLASSES, (count,), generator=source)
    return torch.where(torch.rand(count, generator=source) < 0.4, noise, target), target


def random_scores(seed: int, queries: int = 60, documents: int = 12) -> tuple[Tensor, Tensor]:
    source = generator(seed)
    scores = torch.randn(queries, documents, generator=source)
    return scores, torch.randint(0, documents, (queries,), generator=source)


def random_values(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    source = generator(seed)
    target = torch.randn(*shape, generator=source)
    return target + 0.5 * torch.randn(*shape, generator=source), target


seeds = st.integers(0, 2**31)
finite = st.floats(-1e6, 1e6, width=32)


def test_accuracy_by_hand() -> None:
    assert metrics.accuracy(classes(0, 1, 2, 2), classes(0, 1, 1, 2)) == 0.75
    assert metrics.accuracy(classes(3), classes(3)) == 1.0


def test_macro_f1_by_hand_leaves_out_classes_that_do_not_occur() -> None:
    # Class 0: TP 1, FP 0, FN 1: 2/3. Class 1: TP 1, FP 1, FN 0: 2/3. Class 2: TP 0, FP 1, FN 1: 0.
    predicted, target = classes(0, 1, 1, 2), classes(0, 0, 1, 2)
    assert metrics.macro_f1(predicted, target, 9) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    predicted, target = classes(0, 1, 1, 2), classes(0, 0, 2, 1)
    assert metrics.macro_f1(predicted, target, 3) == pytest.approx((2 / 3 + 0 + 0) / 3)


@settings(max_examples=25)
@given(seeds, st.integers(1, 30))
def test_macro_f1_and_accuracy_are_scikit_learns(seed: int, count: int) -> None:
    predicted, target = random_classes(seed, count)
    assert metrics.accuracy(predicted, target) == pytest.approx(
        sklearn.metrics.accuracy_score(target, predicted)
    )
    assert metrics.macro_f1(predicted, target, CLASSES) == pytest.approx(
        sklearn.metrics.f1_score(target, predicted, average="macro", zero_division=0)
    )


def test_top_k_accuracy_by_hand() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
    assert metrics.top_k_accuracy(scores, classes(2, 2), 1) == 0.0
    assert metrics.top_k_accuracy(scores, classes(2, 2), 2) == 0.5
    assert metrics.top_k_accuracy(scores, classes(2, 2), 3) == 1.0


@settings(max_examples=25)
@given(seeds, st.integers(1, 12))
def test_top_k_accuracy_is_scikit_learns(seed: int, k: int) -> None:
    scores, target = random_scores(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where k is the number of classes
        expected = sklearn.metrics.top_k_accuracy_score(target, scores, k=k, labels=range(12))
    assert metrics.top_k_accuracy(scores, target, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 11])
def test_equal_scores_find_nothing(k: int) -> None:
    scores, right = torch.zeros(5, 12), classes(0, 3, 5, 9, 11)
    assert metrics.top_k_accuracy(scores, right, k) == 0.0
    assert metrics.recall_at_k(scores, right, k) == 0.0
    assert metrics.ndcg_at_k(scores, right, k) == 0.0
    assert metrics.mean_reciprocal_rank(scores, right) == pytest.approx(1 / 12)


def test_log_loss_is_the_mean() -> None:
    assert metrics.log_loss(tensor(math.log(2), math.log(8))) == pytest.approx(2 * math.log(2))


def test_log_loss_of_a_softmax_is_scikit_learns() -> None:
    scores, target = random_scores(0)
    losses = torch.nn.functional.cross_entropy(scores, target, reduction="none")
    expected = sklearn.metrics.log_loss(target, scores.double().softmax(1), labels=range(12))
    assert metrics.log_loss(losses) == pytest.approx(expected)


def test_calibration_error_by_hand() -> None:
    # Two bins. (0, 0.5]: confidences 0.2 and 0.5, one right: |0.35 - 0.5| = 0.15, of 2 samples.
    # (0.5, 1]: 0.6 and 1.0, both right: |0.8 - 1| = 0.2, of 2 samples.
    confidence = tensor(0.2, 0.5, 0.6, 1.0)
    correct = torch.tensor([True, False, True, True])
    assert metrics.expected_calibration_error(confidence, correct, 2) == pytest.approx(0.175)
    assert metrics.expected_calibration_error(tensor(0.0), correct[1:2]) == 0.0


@settings(max_examples=25)
@given(seeds)
def test_calibration_error_is_torchmetrics(seed: int) -> None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    scores, target = random_scores(seed)
    confidence, predicted = scores.softmax(1).max(1)
    expected = multiclass_calibration_error(scores.softmax(1), target, 12, n_bins=15)
    found = metrics.expected_calibration_error(confidence, predicted == target)
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_entity_f1_by_hand() -> None:
    target = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
    predicted = [["B-PER", "I-PER", "O", "B-ORG"], ["B-LOC", "B-ORG"]]
    # Right: PER and ORG. Predicted: 4, there: 3.
    assert metrics.entity_f1(predicted, target) == pytest.approx(2 * 2 / (4 + 3))
    assert metrics.entity_counts(predicted[0], target[0]) == (1, 2, 2)


def test_an_entity_with_a_wrong_end_is_wrong() -> None:
    assert metrics.entity_f1([["B-PER", "O"]], [["B-PER", "I-PER"]]) == 0.0


def test_without_any_entity_f1_is_0() -> None:
    assert metrics.entity_f1([["O", "O"]], [["O", "O"]]) == 0.0


tags = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
tagged = st.lists(st.lists(st.tuples(tags, tags), min_size=1, max_size=9), min_size=1, max_size=5)


@settings(max_examples=25)
@given(tagged)
def test_entity_f1_is_seqevals(samples: list[list[tuple[str, str]]]) -> None:
    from seqeval.metrics import f1_score

    predicted = [[pair[0] for pair in sample] for sample in samples]
    target = [[pair[1] for pair in sample] for sample in samples]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where there is no entity
        expected = float(f1_score(target, predicted))
    assert metrics.entity_f1(predicted, target) == pytest.approx(expected)


def test_errors_by_hand() -> None:
    predicted, target = tensor(1, 2, 3), tensor(1, 4, 7)
    assert metrics.mean_absolute_error(predicted, target) == 2.0
    assert metrics.root_mean_squared_error(predicted, target) == pytest.approx(math.sqrt(20 / 3))
    # Residuals 0 + 4 + 16 = 20, total 9 + 0 + 9 = 18.
    assert metrics.r_squared(predicted, target) == pytest.approx(1 - 20 / 18)


@settings(max_examples=25)
@given(seeds, st.sampled_from([(50,), (50, 1), (50, 3), (2,), (2, 2)]))
def test_regression_metrics_are_scikit_learns(seed: int, shape: tuple[int, ...]) -> None:
    predicted, target = random_values(seed, *shape)
    for own, other in (
        (metrics.mean_absolute_error, sklearn.metrics.mean_absolute_error),
        (metrics.root_mean_squared_error, lambda t, p: math.sqrt(((t - p) ** 2).mean())),
        (metrics.r_squared, sklearn.metrics.r2_score),
    ):
        expected = other(target.double().numpy(), predicted.double().numpy())
        assert own(predicted, target) == pytest.approx(float(expected))


def test_correlations_by_hand() -> None:
    # Centred: (-1, 0, 1) and (-4, 1, 3): 7 / sqrt(2 * 26).
    assert metrics.pearson(tensor(1, 2, 3), tensor(0, 5, 7)) == pytest.approx(7 / math.sqrt(52))
    assert metrics.spearman(tensor(1, 2, 3), tensor(0, 5, 700)) == 1.0
    # Ranks 1.5, 1.5, 3 and 1, 2, 3.
    assert metrics.spearman(tensor(4, 4, 9), tensor(1, 2, 3)) == pytest.approx(math.sqrt(3) / 2)


pairs = st.lists(st.tuples(finite, finite), min_size=2, max_size=20)


@settings(max_examples=25)
@given(pairs)
def test_correlations_are_scipys(values: list[tuple[float, float]]) -> None:
    a, b = (tensor(*column) for column in zip(*values, strict=True))
    # SciPy's own accuracy ends where the values differ by little of what they are.
    assume(all(float(v.std()) > 1e-3 * float(v.abs().max()) for v in (a, b)))
    assert metrics.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b)[0])
    assert metrics.pearson(a, b) == pytest.approx(scipy.stats.pearsonr(a, b)[0], abs=1e-9)


@pytest.mark.parametrize("correlation", [metrics.pearson, metrics.spearman])
def test_correlations_of_columns_are_averaged(
    correlation: Callable[[Tensor, Tensor], float],
) -> None:
    a, b = random_values(0, 30, 3)
    columns = [correlation(a[:, column], b[:, column]) for column in range(3)]
    assert correlation(a, b) == pytest.approx(sum(columns) / 3)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_correlation_does_not_depend_on_scale(scale: float) -> None:
    a, b = tensor(1, 2, 3), tensor(0, 5, 7)
    assert metrics.pearson(a * scale, b) == pytest.approx(metrics.pearson(a, b))
    assert metrics.pearson(a, b * scale) == pytest.approx(metrics.pearson(a, b))


@pytest.mark.parametrize("correlation", [metrics.pearson, metrics.spearman])
def test_constant_predictions_correlate_with_nothing(
    correlation: Callable[[Tensor, Tensor], float],
) -> None:
    assert correlation(tensor(0.1, 0.1, 0.1), tensor(1, 2, 3)) == 0.0


@pytest.mark.parametrize("metric", [metrics.pearson, metrics.spearman, metrics.r_squared])
@pytest.mark.parametrize("target", [[0.1, 0.1, 0.1], [5.0]])
def test_constant_targets_are_an_error(
    metric: Callable[[Tensor, Tensor], float], target: list[float]
) -> None:
    with pytest.raises(ValueError, match="two different"):
        metric(torch.arange(len(target)).double(), tensor(*target))


def test_retrieval_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.2, 0.2, 0.1]])
    relevant = classes(0, 2, 1)  # ranks 1, 2 and, tied with the first, 2
    assert metrics.ranks(scores, relevant).tolist() == [1, 2, 2]
    assert metrics.recall_at_k(scores, relevant, 1) == pytest.approx(1 / 3)
    assert metrics.recall_at_k(scores, relevant, 2) == 1.0
    assert metrics.mean_reciprocal_rank(scores, relevant) == pytest.approx((1 + 0.5 + 0.5) / 3)
    gain = 1 / math.log2(3)
    assert metrics.ndcg_at_k(scores, relevant, 2) == pytest.approx((1 + gain + gain) / 3)
    assert metrics.ndcg_at_k(scores, relevant, 1) == pytest.approx(1 / 3)


@settings(max_examples=25)
@given(seeds, st.integers(1, 12))
def test_retrieval_metrics_are_scikit_learns(seed: int, k: int) -> None:
    scores, relevant = random_scores(seed)
    truth = torch.nn.functional.one_hot(relevant, 12).numpy()
    assert metrics.ndcg_at_k(scores, relevant, k) == pytest.approx(
        sklearn.metrics.ndcg_score(truth, scores, k=k)
    )
    # With one relevant label, average precision by ranking is the reciprocal rank.
    assert metrics.mean_reciprocal_rank(scores, relevant) == pytest.approx(
        sklearn.metrics.label_ranking_average_precision_score(truth, scores)
    )


def test_perplexity_by_hand() -> None:
    # Three tokens of probability 1/2 and one of 1/16: -ln sums to ln 8 and ln 16, mean ln(128)/4.
    nll = tensor(3 * math.log(2), math.log(16))
    assert metrics.perplexity(nll, classes(3, 1)) == pytest.approx(128 ** (1 / 4))


def test_perplexity_of_a_uniform_model_is_the_vocabulary() -> None:
    lengths = classes(5, 9, 1)
    assert metrics.perplexity(lengths * math.log(64), lengths) == pytest.approx(64)


def test_perplexity_weighs_tokens_as_torchmetrics_does() -> None:
    from torchmetrics.functional.text import perplexity

    scores = torch.randn(3, 7, 11, generator=generator(0))
    target = torch.randint(0, 11, (3, 7), generator=generator(1))
    target[0, 3:] = target[2, 1:] = -100
    nll = torch.nn.functional.cross_entropy(scores.movedim(2, 1), target, reduction="none").sum(1)
    expected = float(perplexity(scores, target, ignore_index=-100))
    assert metrics.perplexity(nll, (target >= 0).sum(1)) == pytest.approx(expected)


def test_perplexity_that_overflows_is_infinite() -> None:
    assert metrics.perplexity(tensor(1e6), classes(1)) == math.inf


def test_raw_pitch_accuracy_by_hand() -> None:
    target = tensor(440.0, 440.0, 440.0, 0.0, 440.0)
    # Right; 49 cents sharp, right; 50 cents flat, wrong; unvoiced, left out; silent, wrong.
    predicted = tensor(440.0, 440 * 2 ** (49 / 1200), 440 * 2 ** (-50.001 / 1200), 123.0, 0.0)
    assert metrics.raw_pitch_accuracy(predicted, target) == 0.5
    assert metrics.raw_pitch_accuracy(predicted, target, cents=51) == 0.75
    assert metrics.raw_pitch_accuracy(-target, target) == 0.0


@given(st.permutations(range(6)), seeds)
def test_no_metric_depends_on_the_order_of_samples(order: list[int], seed: int) -> None:
    predicted, target = random_classes(seed, 6)
    scores, relevant = random_scores(seed, 6)
    a, b = random_values(seed, 6)
    shuffle = torch.tensor(order)
    for metric, rows in (
        (lambda p, t: metrics.macro_f1(p, t, CLASSES), (predicted, target)),
        (lambda s, r: metrics.ndcg_at_k(s, r, 3), (scores, relevant)),
        (metrics.spearman, (a, b)),
        (metrics.r_squared, (a, b)),
        (lambda c, t: metrics.expected_calibration_error(c.sigmoid(), t > 0), (a, b)),
    ):
        assert metric(*(row[shuffle] for row in rows)) == pytest.approx(metric(*rows))


@given(seeds)
def test_perfect_predictions_are_perfect(seed: int) -> None:
    _, target = random_classes(seed, 9)
    _, values = random_values(seed, 9, 2)
    scores = torch.nn.functional.one_hot(target, CLASSES)
    assert metrics.accuracy(target, target) == metrics.macro_f1(target, target, CLASSES) == 1.0
    assert metrics.mean_reciprocal_rank(scores, target) == 1.0
    assert metrics.r_squared(values, values) == 1.0
    assert metrics.pearson(values, values) == pytest.approx(1.0)
    assert metrics.spearman(values, -values) == pytest.approx(-1.0)
    assert metrics.mean_absolute_error(values, values) == 0.0


@pytest.mark.parametrize(
    ("metric", "arguments"),
    [
        (metrics.accuracy, ([], [])),
        (metrics.accuracy, ([1, 2], [1])),
        (metrics.macro_f1, ([0, 5], [0, 1], 3)),
        (metrics.macro_f1, ([0, 1], [0, -1], 3)),
        (metrics.log_loss, ([],)),
        (metrics.log_loss, ([math.nan],)),
        (metrics.expected_calibration_error, ([1.5], [True])),
        (metrics.f1_of_counts, (torch.zeros(0, 3),)),
        (metrics.mean_absolute_error, ([1.0, math.inf], [1.0, 2.0])),
        (metrics.r_squared, ([[[1.0]]], [[[1.0]]])),
        (metrics.spearman, ([1.0, math.nan], [1.0, 2.0])),
        (metrics.recall_at_k, ([[1.0, math.nan]], [0], 1)),
        (metrics.recall_at_k, ([[1.0, 2.0]], [2], 1)),
        (metrics.recall_at_k, ([[1.0, 2.0]], [0, 1], 1)),
        (metrics.recall_at_k, ([[1.0, 2.0]], [0], 0)),
        (metrics.perplexity, ([1.0], [0])),
        (metrics.raw_pitch_accuracy, ([100.0], [0.0])),
    ],
)
def test_what_has_no_answer_is_a_value_error(
    metric: Callable[..., float], arguments: tuple[object, ...]
) -> None:
    tensors = (torch.tensor(a) if isinstance(a, list) else a for a in arguments)
    with pytest.raises(ValueError, match=r"."):
        metric(*tensors)


@pytest.mark.parametrize("tag", ["PER", "B-", "X-PER", "O-PER", ""])
def test_a_tag_that_is_not_iob2_is_an_error(tag: str) -> None:
    with pytest.raises(ValueError, match="IOB2"):
        metrics.entity_f1([[tag]], [["O"]])


def test_tags_of_other_lengths_are_an_error() -> None:
    with pytest.raises(ValueError, match="fit"):
        metrics.entity_f1([["O"]], [["O", "O"]])
    with pytest.raises(ValueError, match="fit"):
        metrics.entity_f1([["O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="fit"):
        metrics.entity_f1([], [])


def test_single_precision_does_not_change_a_metric_of_many_rows() -> None:
    values = np.random.default_rng(0).normal(1e4, 1.0, 50_000).astype(np.float32)
    predicted, target = torch.from_numpy(values), torch.from_numpy(values[::-1].copy())
    expected = scipy.stats.pearsonr(values.astype(np.float64), values[::-1].astype(np.float64))[0]
    assert metrics.pearson(predicted, target) == pytest.approx(expected, abs=1e-9)
