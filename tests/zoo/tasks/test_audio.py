"""Sound: WAV files and arrays, classes, numbers and pitches."""

import io
import math
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor, nn

from dataset_cards import SMALL, open_task
from zoopress.errors import CardError
from zoopress.evaluation.fidelity import run_all
from zoopress.tasks import File
from zoopress_zoo.sound import decode_sound, fit_length, sound_format, standardize
from zoopress_zoo.tasks.audio import mean_near_largest

RATE = 8000


def wav(frames: bytes, width: int = 2, channels: int = 1, rate: int = RATE) -> File:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(frames)
    return File(stream.getvalue(), "sound.wav")


def tone(frequency: float, length: int = 256, rate: int = RATE) -> np.ndarray[Any, Any]:
    return np.sin(2 * math.pi * frequency * np.arange(length) / rate).astype(np.float32)


class TestSound:
    @pytest.mark.parametrize(
        ("width", "frames"),
        [
            (1, bytes([128, 192, 0])),
            (2, np.array([0, 2**14, -(2**15)], "<i2").tobytes()),
            (3, bytes([0, 0, 0, 0, 0, 0x40, 0, 0, 0x80])),
            (4, np.array([0, 2**30, -(2**31)], "<i4").tobytes()),
        ],
    )
    def test_every_width_of_pcm_means_the_same(self, width: int, frames: bytes) -> None:
        samples, rate = decode_sound(wav(frames, width))
        assert samples.tolist() == [0.0, 0.5, -1.0]
        assert rate == RATE
        assert sound_format(wav(frames, width)) == (3, RATE)

    def test_channels_become_their_mean(self) -> None:
        frames = np.array([[2**14, 0], [0, -(2**14)]], "<i2").tobytes()
        assert decode_sound(wav(frames, channels=2))[0].tolist() == [0.25, -0.25]

    def test_arrays_and_lists_are_sounds(self) -> None:
        assert decode_sound([0.5, -0.25])[0].tolist() == [0.5, -0.25]
        assert decode_sound(np.array([2**14], np.int16))[0].tolist() == [0.5]
        found = decode_sound({"array": [0.5], "sampling_rate": 4000})
        assert (found[0].tolist(), found[1]) == ([0.5], 4000)

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (File(b"fLaC....", "a.flac"), r"a\.flac is no WAV file of integers"),
            (File(b"", "a.wav"), "cut off"),
            ([[0.5], [0.5]], "expected a sound"),
            (["a"], "expected a sound"),
            (np.array([1], np.int64), "1, 2 or 4 bytes"),
        ],
    )
    def test_what_is_no_sound_is_told(self, value: Any, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            decode_sound(value)

    @given(st.integers(1, 20), st.none() | st.integers(1, 20))
    def test_a_sound_is_cut_off_or_filled_up_with_zeros(self, have: int, want: int | None) -> None:
        found = fit_length(np.ones(have, np.float32), want)
        assert len(found) == (have if want is None else want)
        assert found.sum() == min(have, len(found))

    def test_standardizing_gives_mean_0_and_deviation_1(self) -> None:
        found = standardize(np.array([1.0, 3.0], np.float32))
        assert found.tolist() == pytest.approx([-1, 1], abs=1e-5)
        assert standardize(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


class Loudness(nn.Module):
    """Class scores [n, 2] of waveforms [n, length]: the second one is for loud ones."""

    def forward(self, waveforms: Tensor) -> Tensor:
        loud = waveforms.abs().amax(1) - 0.5
        return torch.stack([-loud, loud], 1)


class TestClassification:
    def write(self, folder: Path, lengths: tuple[int, int] = (100, 100)) -> None:
        import pyarrow
        from pyarrow import parquet

        rows = []
        for i in range(20):
            values = (tone(440 + i, lengths[i % 2]) * (0.9 if i % 2 else 0.1)) * 2**15
            content = wav(values.astype("<i2").tobytes()).content
            rows.append({"audio": {"bytes": content, "path": f"{i}.wav"}, "label": i % 2})
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "d.parquet")

    def test_a_model_is_judged_on_waveforms(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        task = open_task(tmp_path, "audio-classification", dataset="file:d.parquet", **SMALL)
        assert tuple(task.examples("test")[0].inputs.shape) == (4, 100)
        assert task.metrics(run_all(task, Loudness()).statistics)["accuracy"] == 1

    def test_sounds_of_mixed_lengths_need_a_length(self, tmp_path: Path) -> None:
        self.write(tmp_path, (100, 60))
        data: dict[str, Any] = {"dataset": "file:d.parquet", **SMALL}
        with pytest.raises(CardError, match=r"has (60|100) samples.*preprocessing: {length"):
            open_task(tmp_path, "audio-classification", **data).samples("training")
        sized = open_task(tmp_path, "audio-classification", preprocessing={"length": 80}, **data)
        assert tuple(sized.examples("test")[0].inputs.shape) == (4, 80)

    def test_another_sampling_rate_is_refused(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        settings = {"sampling_rate": 16_000}
        task = open_task(
            tmp_path,
            "audio-classification",
            dataset="file:d.parquet",
            preprocessing=settings,
            **SMALL,
        )
        with pytest.raises(CardError, match="8000 samples a second, and the model takes 16000"):
            task.samples("test")

    def test_transformers_models_get_what_their_feature_extractor_makes(
        self, tmp_path: Path
    ) -> None:
        from transformers import (
            Wav2Vec2Config,
            Wav2Vec2FeatureExtractor,
            Wav2Vec2ForSequenceClassification,
        )

        self.write(tmp_path, (400, 300))
        extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True)
        extractor.save_pretrained(tmp_path)
        task = open_task(tmp_path, "audio-classification", dataset="file:d.parquet", **SMALL)
        rows = task.rows("test")
        expected = extractor(
            [decode_sound(value)[0] for value in rows.values("audio", range(4))],
            sampling_rate=RATE,
            padding=True,
            return_tensors="pt",
        )["input_values"]
        assert torch.equal(task.examples("test")[0].inputs["input_values"], expected)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        layers = {"conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2)}
        config = Wav2Vec2Config(
            **sizes,
            **layers,
            intermediate_size=8,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            classifier_proj_size=8,
            num_labels=2,
        )
        model = Wav2Vec2ForSequenceClassification(config).eval()
        assert run_all(task, model).statistics["predicted"].shape == (4,)


class Zeros(nn.Module):
    """The number of times that a waveform crosses zero upwards, as a frequency."""

    def forward(self, waveforms: Tensor) -> Tensor:
        upwards = (waveforms[:, :-1] < 0) & (waveforms[:, 1:] >= 0)
        return upwards.float().sum(1) * RATE / waveforms.shape[1]


class TestPitch:
    FREQUENCIES = np.geomspace(100, 1000, 30)

    def open(self, folder: Path, **preprocessing: Any) -> Any:
        sounds = np.stack([tone(f, 8000) for f in self.FREQUENCIES])
        np.savez(folder / "d.npz", audio=sounds, frequency=self.FREQUENCIES)
        return open_task(
            folder, "pitch-estimation", dataset="file:d.npz", preprocessing=preprocessing, **SMALL
        )

    def test_frequencies_are_judged_in_cents(self, tmp_path: Path) -> None:
        task = self.open(tmp_path)
        found = task.metrics(run_all(task, Zeros()).statistics)
        assert found["raw_pitch_accuracy"] == 1
        assert found["mean_absolute_error"] < 1.5
        value = torch.tensor([[100.0], [200.0], [400.0]])
        other = value * torch.tensor([[2 ** (40 / 1200)], [2 ** (-60 / 1200)], [1.0]])
        by_hand = task.metrics(task.statistics(other, value))
        assert by_hand["raw_pitch_accuracy"] == pytest.approx(2 / 3)
        assert by_hand["mean_absolute_error_cents"] == pytest.approx(100 / 3, abs=1e-3)

    def test_bins_are_read_around_the_largest(self, tmp_path: Path) -> None:
        task = self.open(tmp_path, bins=360)
        # The bins nearest to 440 Hz, as a perfect model would blur them.
        cents = 1200 * math.log2(44) - (1997.3794084376191 + 20 * torch.arange(360))
        probabilities = (-(cents**2) / (2 * 25**2)).exp()[None]
        target = torch.tensor([[440.0]])
        found = task.statistics(probabilities, target)
        assert float(found["prediction"]) == pytest.approx(440, rel=1e-3)
        best = float(task.loss(probabilities, target))
        worse = float(task.loss(probabilities.roll(2, 1), target))
        assert best < worse

    def test_the_mean_near_the_largest_leaves_out_what_is_far(self) -> None:
        scores = torch.zeros(1, 20)
        scores[0, [3, 4, 15]] = torch.tensor([1.0, 3.0, 2.9])
        assert float(mean_near_largest(scores, torch.arange(20.0))) == pytest.approx(3.75)

    def test_outputs_that_are_no_probabilities_are_told(self, tmp_path: Path) -> None:
        task = self.open(tmp_path, bins=4)
        with pytest.raises(CardError, match=r"probabilities \[1, 4\], and gave \[1, 4\] from -1"):
            task.statistics(torch.tensor([[-1.0, 0, 0, 0]]), torch.tensor([[440.0]]))
        with pytest.raises(CardError, match=r"and gave \[1, 3\]"):
            task.statistics(torch.zeros(1, 3), torch.tensor([[440.0]]))

    def test_a_frame_without_a_pitch_is_told(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "d.npz", audio=np.eye(10, dtype=np.float32), f0=np.zeros(10))
        task = open_task(tmp_path, "pitch-estimation", dataset="file:d.npz", **SMALL)
        with pytest.raises(CardError, match="must be above 0 Hz"):
            task.samples("test")


def test_numbers_go_with_sounds(tmp_path: Path) -> None:
    sounds = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    targets = {"loud": np.abs(sounds).max(1), "mean": sounds.mean(1)}
    np.savez(tmp_path / "d.npz", sound=sounds, **targets)

    class Both(nn.Module):
        def forward(self, waveforms: Tensor) -> Tensor:
            return torch.stack([waveforms.abs().amax(1), waveforms.mean(1)], 1)

    columns = {"target": "loud, mean"}
    task = open_task(tmp_path, "audio-regression", dataset="file:d.npz", columns=columns, **SMALL)
    found = task.metrics(run_all(task, Both()).statistics)
    assert found["mean_absolute_error"] < 1e-6
    assert found["spearman"] == pytest.approx(1)
