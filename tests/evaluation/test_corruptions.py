"""Corruptions, each against what it must do to values one can follow."""

from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Generator, Tensor

from zoopress.evaluation import corruptions
from zoopress.evaluation.corruptions import CORRUPTIONS, SEVERITIES, TOKEN_NOISE, TYPOS, Corruptions
from zoopress.tasks.batches import named_tensors


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator(7))


def test_contrast_and_brightness_by_hand() -> None:
    image = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])  # of mean 0.5
    assert corruptions.contrast(image, 0.4, generator()).flatten().tolist() == pytest.approx(
        [0.3, 0.7, 0.5, 0.5]
    )
    assert corruptions.brightness(image, 0.25, generator()).flatten().tolist() == pytest.approx(
        [0.25, 1.25, 0.75, 0.75]
    )


def test_pixelate_puts_block_means_in_the_place_of_pixels() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    found = corruptions.pixelate(image, 0.5, generator())[0, 0]
    assert found[:2, :2].unique().tolist() == [(0 + 1 + 4 + 5) / 4]
    assert found[2:, 2:].unique().tolist() == [(10 + 11 + 14 + 15) / 4]


def test_blur_keeps_flat_images_and_spreads_a_point_as_a_gaussian() -> None:
    flat = torch.full((1, 3, 16, 16), 0.3)
    assert torch.allclose(corruptions.gaussian_blur(flat, 30.0, generator()), flat, atol=1e-6)
    point = torch.zeros(1, 1, 33, 33)
    point[0, 0, 16, 16] = 1
    deviation = 2.0
    found = corruptions.gaussian_blur(point, deviation * 224 / 33, generator())[0, 0]
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    # A Gaussian's value at one deviation is exp(−1/2) of that in the middle.
    assert float(found[16, 18] / found[16, 16]) == pytest.approx(0.60653, abs=1e-4)
    assert torch.allclose(found, found.T, atol=1e-7)


def test_noise_has_the_deviation_and_the_ratio_that_are_asked_for() -> None:
    flat = torch.full((4, 50_000), 0.5)
    noisy = corruptions.gaussian_noise(flat, 0.2, generator())
    assert float((noisy - flat).std()) == pytest.approx(0.2, rel=0.02)
    sound = torch.sin(torch.arange(50_000.0) / 10).expand(4, -1)
    noise = corruptions.noise_by_ratio(sound, 10, generator()) - sound
    assert float(sound.square().mean() / noise.square().mean()) == pytest.approx(10, rel=0.05)
    shot = corruptions.shot_noise(flat, 25, generator())
    assert float(shot.mean()) == pytest.approx(0.5, rel=0.02)
    assert float(shot.var()) == pytest.approx(0.5 / 25, rel=0.05)  # Poisson: variance = mean


def test_low_pass_takes_high_frequencies_alone() -> None:
    time = torch.arange(2000, dtype=torch.float64) / 2000
    low, high = torch.sin(2 * torch.pi * 50 * time), torch.sin(2 * torch.pi * 900 * time)
    found = corruptions.low_pass((low + high)[None], 0.5, generator())
    assert torch.allclose(found[0], low, atol=1e-4)


def test_time_shift_and_clipping_by_hand() -> None:
    sound = torch.tensor([[1.0, -2.0, 4.0, -4.0, 0.5]])
    assert corruptions.time_shift(sound, 0.4, generator()).tolist() == [[0, 0, 1, -2, 4]]
    assert corruptions.clipping(sound, 0.5, generator()).tolist() == [[1, -2, 2, -2, 0.5]]


def test_jpeg_keeps_smooth_images_nearly_and_the_number_of_channels() -> None:
    ramp = torch.linspace(0, 1, 32).expand(2, 3, 32, 32)
    assert float((corruptions.jpeg(ramp, 95, generator()) - ramp).abs().max()) < 0.05
    grey = images(2, 1, 16, 16)
    assert corruptions.jpeg(grey, 10, generator()).shape == grey.shape


@pytest.mark.parametrize("name", CORRUPTIONS["image"])
def test_images_stay_in_their_range_and_get_worse_with_severity(name: str) -> None:
    batch = {"pixel_values": images(4, 3, 32, 32) * 4 - 2}
    found = Corruptions([batch])
    assert found.names == list(CORRUPTIONS["image"])
    changes = []
    for severity in SEVERITIES:
        corrupted = found.apply(name, batch, severity, generator())["pixel_values"]
        assert corrupted.shape == batch["pixel_values"].shape
        assert corrupted.min() >= batch["pixel_values"].min() - 1e-5
        assert corrupted.max() <= batch["pixel_values"].max() + 1e-5
        changes.append(float((corrupted - batch["pixel_values"]).norm()))
    assert 0 < changes[0] < changes[-1]


def test_what_an_input_is_follows_from_its_shape() -> None:
    sound, features = torch.randn(2, 4000), torch.randn(2, 20)
    assert Corruptions([sound]).names == list(CORRUPTIONS["sound"])
    assert Corruptions([(features,)]).names == list(CORRUPTIONS["numbers"])
    assert Corruptions([{"attention_mask": torch.ones(2, 20)}]).names == []
    assert Corruptions([{"input_ids": torch.tensor([[5, 6, 7], [5, 8, 7]])}]).names == [
        "token_noise"
    ]


def test_a_corruption_leaves_inputs_of_another_kind_alone() -> None:
    batch = {
        "image": images(2, 3, 8, 8),
        "age": torch.randn(2, 4),
        "ids": torch.arange(6).view(2, 3),
    }
    found = Corruptions([batch]).apply("contrast", batch, 3, generator())
    assert not torch.equal(found["image"], batch["image"])
    assert torch.equal(found["age"], batch["age"])
    assert torch.equal(found["ids"], batch["ids"])


def tokens(rows: int, length: int, seed: int) -> dict[str, Tensor]:
    """Return ids between a first token 1 and a last token 2, padded on the right with 0."""
    ids = torch.randint(10, 90, (rows, length), generator=generator(seed))
    ends = torch.randint(3, length, (rows,), generator=generator(seed))
    places = torch.arange(length)
    attention = (places <= ends[:, None]).long()
    ids[:, 0] = 1
    ids[torch.arange(rows), ends] = 2
    return {"input_ids": ids * attention, "attention_mask": attention}


@given(seed=st.integers(0, 10_000), severity=st.sampled_from(SEVERITIES))
def test_token_noise_spares_padding_and_what_all_samples_begin_and_end_with(
    seed: int, severity: int
) -> None:
    batch = tokens(8, 12, seed)
    found = Corruptions([batch]).apply("token_noise", batch, severity, generator(seed))
    before, after = batch["input_ids"], found["input_ids"]
    spared = (before <= 2) & ((before > 0) | (batch["attention_mask"] == 0))
    assert torch.equal(after[spared], before[spared])
    assert set(after.flatten().tolist()) <= set(before.flatten().tolist())
    assert torch.equal(found["attention_mask"], batch["attention_mask"])


def test_token_noise_replaces_the_share_that_is_asked_for() -> None:
    batch = {"input_ids": torch.randint(0, 1000, (64, 500), generator=generator())}
    for severity in SEVERITIES:
        found = Corruptions([batch]).apply("token_noise", batch, severity, generator())
        share = float((found["input_ids"] != batch["input_ids"]).float().mean())
        assert share == pytest.approx(TOKEN_NOISE[severity - 1], rel=0.05)


@pytest.mark.parametrize(
    "make", [lambda: images(2, 1, 28, 28), lambda: torch.randn(2, 2000), lambda: torch.randn(2, 9)]
)
def test_corruptions_follow_from_the_seed_and_leave_the_input_as_it_was(
    make: Callable[[], Tensor],
) -> None:
    batch = make()
    before = batch.clone()
    found = Corruptions([batch])
    for name in found.names:
        one, two = (found.apply(name, batch, 2, generator(5)) for _ in range(2))
        assert torch.equal(one, two)
        assert torch.equal(batch, before)
    assert named_tensors(batch).keys() == {""}


def test_misspelling_every_letter_by_hand() -> None:
    assert corruptions.swap_letters("ab c-d", 1.0, Random(0)) == "ba c-d"
    assert corruptions.drop_letters("ab, 12!", 1.0, Random(0)) == ", 12!"
    assert corruptions.drop_letters("ab", 1.0, Random(0)) == "ab"  # never an empty text
    assert corruptions.hit_next_key("Q m 1é", 1.0, Random(0)) == "W n 1é"


@given(st.text(), st.integers(0, 100))
def test_misspelling_nothing_changes_nothing_and_keys_keep_the_length(text: str, seed: int) -> None:
    for misspell in TYPOS.values():
        assert misspell(text, 0.0, Random(seed)) == text
    assert sorted(corruptions.swap_letters(text, 0.5, Random(seed))) == sorted(text)
    assert len(corruptions.hit_next_key(text, 0.5, Random(seed))) == len(text)


def test_the_share_of_letters_is_misspelt_that_is_asked_for() -> None:
    text = "the quick brown fox jumps over the lazy dog " * 200
    letters = sum(c.isalpha() for c in text)
    typed = corruptions.hit_next_key(text, 0.1, Random(0))
    wrong = sum(a != b for a, b in zip(text, typed, strict=True))
    assert wrong / letters == pytest.approx(0.1, rel=0.1)
    dropped = len(text) - len(corruptions.drop_letters(text, 0.1, Random(0)))
    assert dropped / letters == pytest.approx(0.1, rel=0.1)
