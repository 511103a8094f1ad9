"""Sound of a dataset as arrays: WAV files by the standard library, and numbers as they are."""

from __future__ import annotations

import io
import wave
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoopress.tasks import File

_FULL_SCALE = {1: 2.0**7, 2: 2.0**15, 4: 2.0**31}
"""The value of an integer sample that stands for 1, by its bytes."""

Waveform = np.ndarray[Any, np.dtype[np.float32]]


def decode_sound(value: Any) -> tuple[Waveform, int | None]:
    """Return the samples [length] of a sound, in -1 to 1, and their rate in Hz if it is told.

    Several channels become their mean. Arrays of integers are taken as PCM, unsigned of one byte.

    Args:
        value: a WAV file, an array or list [length], or a mapping with "array" and "sampling_rate".

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(value, File):
        return _decode_wav(value)
    if isinstance(value, Mapping) and "array" in value:
        return decode_sound(value["array"])[0], value.get("sampling_rate")
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise ValueError(
            f"expected a sound [length] of numbers or a WAV file, got {array.dtype} "
            f"{list(array.shape)}"
        )
    if isinstance(value, np.ndarray) and array.dtype.kind in "iu":
        return _scaled(array), None
    return array.astype(np.float32), None


def sound_format(value: Any) -> tuple[int, int | None]:
    """Return how many samples a sound has, and their rate in Hz if it is told.

    Of a WAV file they are read from the header.

    Raises:
        ValueError: if it is no sound.
    """
    if isinstance(value, File):
        with _open(value) as stream:
            return stream.getnframes(), stream.getframerate()
    samples, rate = decode_sound(value)
    return len(samples), rate


def fit_length(samples: Waveform, length: int | None) -> Waveform:
    """Return samples cut off at a length, or with zeros added up to it."""
    if length is None or len(samples) == length:
        return samples
    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def standardize(samples: Waveform) -> Waveform:
    """Return samples with mean 0 and deviation 1; silence stays silent.

    Source: Baevski et al. 2020, arXiv:2006.11477, section 2.
    """
    centered = samples - samples.mean()
    standard: Waveform = (centered / np.sqrt(centered.var() + 1e-7)).astype(np.float32)
    return standard


def _decode_wav(value: File) -> tuple[Waveform, int | None]:
    with _open(value) as stream:
        width, channels, rate = stream.getsampwidth(), stream.getnchannels(), stream.getframerate()
        try:
            content = stream.readframes(stream.getnframes())
        except (EOFError, wave.Error) as error:
            raise ValueError(f"{value.name or 'a WAV file'} is damaged: {error}") from error
    content = content[: len(content) // (width * channels) * width * channels]
    if width == 3:  # to 4 bytes, the lowest of them 0
        parts = np.frombuffer(content, np.uint8).reshape(-1, 3)
        content = np.pad(parts, ((0, 0), (1, 0))).tobytes()
        width = 4
    integers = np.frombuffer(content, {1: "u1", 2: "<i2", 4: "<i4"}[width])
    return _scaled(integers).reshape(-1, channels).mean(1, dtype=np.float32), rate


def _scaled(integers: np.ndarray[Any, Any]) -> Waveform:
    """Return PCM samples in -1 to 1."""
    full = _FULL_SCALE.get(integers.dtype.itemsize)
    if full is None:
        raise ValueError(f"integers of a sound must have 1, 2 or 4 bytes, not {integers.dtype}")
    offset = full if integers.dtype.kind == "u" else 0.0
    return ((integers.astype(np.float64) - offset) / full).astype(np.float32)


def _open(value: File) -> wave.Wave_read:
    try:
        return wave.open(io.BytesIO(value.content), "rb")
    except (wave.Error, EOFError) as error:
        reason = str(error) or "cut off"
        raise ValueError(
            f"{value.name or 'a sound'} is no WAV file of integers (PCM): {reason}. Convert it to "
            "one"
        ) from error
