"""Codewords are the nearest, k-means never errs more, and a correction lowers outputs' errors."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from zoopress.models.model import Model
from zoopress.models.packing import packed_weights
from zoopress.plugins import load_plugins
from zoopress.testing import context_for, tiny_card
from zoopress.testing.packed import wrong_codes, wrong_products
from zoopress.testing.tiny import built
from zoopress_plugins.quantization.grids.vectors import (
    corrected_words,
    distortion,
    fit_words,
    into_vectors,
    nearest_words,
    word_means,
)
from zoopress_plugins.quantization.vector_quantization import (
    VectorQuantization,
    VectorQuantizationConfig,
    vectors_form,
)

PLUGINS = load_plugins()


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 40),
    length=st.integers(2, 5),
    words=st.integers(1, 9),
    zeros=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_nearest_codeword_is_taken_and_means_never_err_more(
    count: int, length: int, words: int, zeros: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, length, generator=generator)
    vectors[: count // 2] *= 0 if zeros else 1
    costs = torch.rand(count, length, generator=generator) + 0.1
    book = torch.randn(words, length, generator=generator)
    codes = nearest_words(vectors, costs, book)
    every = (costs[:, None] * (book - vectors[:, None]).square()).sum(-1)
    taken = every.gather(1, codes[:, None])[:, 0]
    assert bool((taken <= every.amin(1) * (1 + 1e-4) + 1e-5).all())
    before = distortion(vectors, costs, codes, book)
    means = word_means(vectors, costs, codes, book)
    assert distortion(vectors, costs, codes, means) <= before * (1 + 1e-5) + 1e-6
    found, codes = fit_words(vectors, costs, words, generator)
    assert bool(found.isfinite().all())
    size = float((costs * vectors.square()).sum())
    if words >= count:
        assert distortion(vectors, costs, codes, found) <= 1e-4 * size + 1e-9


def test_fewer_bits_a_weight_than_one_and_still_the_vectors_it_had() -> None:
    generator = torch.Generator().manual_seed(0)
    book = torch.randn(16, 8, generator=generator).bfloat16().float()
    matrix = book[torch.randint(16, (32, 10), generator=generator)].reshape(32, 80)
    form = vectors_form(matrix, 4, 8, generator)
    model = Model(nn.Sequential(nn.Linear(80, 32)), PLUGINS.layers)
    (weight,) = model.weights()
    model.pack(weight, form.packing, form.arguments, form.tensors)
    packed = packed_weights(model.module)["0.weight"]
    assert torch.equal(packed.dense(), matrix)
    assert form.nbytes == 32 * 10 // 2 + 16 * 8 * 2
    assert wrong_codes(model) is None
    assert wrong_products(model) is None


@pytest.mark.parametrize("columns", [12, 13])
def test_a_correction_lowers_the_error_of_outputs_to_its_least(columns: int) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(20, columns, generator=generator)
    inputs = torch.randn(60, columns, generator=generator) @ torch.randn(
        columns, columns, generator=generator
    )
    moments = inputs.T @ inputs / len(inputs)
    words, codes = fit_words(
        into_vectors(matrix, 3), into_vectors(torch.ones_like(matrix), 3), 8, generator
    )
    codes = codes.view(20, -1)

    def error(each: torch.Tensor) -> float:
        left = each[codes].reshape(20, -1)[:, :columns] - matrix
        return float((left @ inputs.T).square().mean())

    better = corrected_words(words, codes, matrix, moments)
    assert error(better) < 0.97 * error(words)
    for _ in range(10):  # a minimum, but for the rounding to bfloat16 and the damping
        moved = better + 0.05 * torch.randn(better.shape, generator=generator)
        assert error(moved) > error(better)


def test_correction_on_a_model_says_what_it_left(tmp_path: Path) -> None:
    card = tiny_card("transformer", tmp_path)
    model = Model(built(card, PLUGINS), PLUGINS.layers)
    config = VectorQuantizationConfig(correction=True, bits=4, weighting="inputs")
    outcome = VectorQuantization(config).apply(model, context_for(card, tmp_path / "work"))
    # What is looked up or added has no inputs whose products could err.
    assert 0 < len(outcome.notes["not_corrected"]) < len(outcome.touched)
    assert wrong_codes(model) is None
