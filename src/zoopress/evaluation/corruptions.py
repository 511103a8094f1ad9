"""Corruptions of inputs in five severities: of images, sound, text, tokens and other numbers.

What kind an input is, its shape tells. Values are corrupted in the unit interval that the smallest
and largest value over the test samples span, so that parameters mean the same whatever the model's
normalization.

Source of the images' parameters: Hendrycks & Dietterich 2019, arXiv:1903.12261, the ImageNet-C set;
the blur's width is relative to an image of 224 pixels.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from random import Random
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from zoopress.errors import InputError
from zoopress.optional import import_optional
from zoopress.tasks.batches import map_tensors, named_tensors

SEVERITIES = (1, 2, 3, 4, 5)
Kind = Literal["image", "sound", "numbers", "tokens"]
Corruption = Callable[[Tensor, float, Generator], Tensor]
"""Returns values of the unit interval [samples, …], corrupted by a strength."""

_SHORTEST_SOUND = 1000
_IMAGENET_PIXELS = 224


def gaussian_noise(values: Tensor, deviation: float, generator: Generator) -> Tensor:
    """Add normal noise of a standard deviation."""
    return values + deviation * torch.randn(values.shape, generator=generator, dtype=values.dtype)


def shot_noise(values: Tensor, photons: float, generator: Generator) -> Tensor:
    """Count as many photons at most, each pixel by itself."""
    return torch.poisson(values.clamp(0, 1) * photons, generator) / photons


def gaussian_blur(images: Tensor, deviation: float, generator: Generator) -> Tensor:
    """Blur by a Gaussian of a standard deviation in pixels of an image of 224 pixels."""
    channels, side = images.shape[1], min(images.shape[-2:])
    deviation *= side / _IMAGENET_PIXELS
    radius = min(math.ceil(3 * deviation), side - 1)
    places = torch.arange(-radius, radius + 1, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (places / deviation) ** 2)
    kernel = (kernel / kernel.sum()).repeat(channels, 1)
    padded = F.pad(images, (radius, radius, radius, radius), mode="reflect")
    rows = F.conv2d(padded, kernel[:, None, None], groups=channels)
    return F.conv2d(rows, kernel[:, None, :, None], groups=channels)


def contrast(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Keep a share of each pixel's difference from its image's mean colour."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + share * (images - mean)


def brightness(images: Tensor, amount: float, generator: Generator) -> Tensor:
    """Add to all pixels."""
    return images + amount


def pixelate(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Make an image smaller, to a share of its sides, and large again."""
    size = [max(1, int(side * share)) for side in images.shape[-2:]]
    small = F.interpolate(images, size=size, mode="area")
    return F.interpolate(small, size=images.shape[-2:], mode="nearest")


def jpeg(images: Tensor, quality: float, generator: Generator) -> Tensor:
    """Encode as JPEG and decode."""
    import numpy

    image_module = import_optional(
        "PIL.Image",
        "the corruption 'jpeg' needs Pillow",
        "pip install 'zoopress[data]'",
        InputError,
    )

    def again(image: Tensor) -> Tensor:
        pixels = (image.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
        stream = io.BytesIO()
        image_module.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
            stream, "JPEG", quality=int(quality)
        )
        decoded = torch.from_numpy(numpy.array(image_module.open(stream)))
        return decoded.view(pixels.shape).movedim(-1, 0).to(image) / 255

    return torch.stack([again(image) for image in images])


def noise_by_ratio(sound: Tensor, decibels: float, generator: Generator) -> Tensor:
    """Add normal noise at a signal-to-noise ratio; silence is 0."""
    power = sound.square().mean(-1, keepdim=True)
    noise = torch.randn(sound.shape, generator=generator, dtype=sound.dtype)
    return sound + noise * (power / 10 ** (decibels / 10)).sqrt()


def clipping(sound: Tensor, share: float, generator: Generator) -> Tensor:
    """Cut off what is above a share of the largest amplitude."""
    limit = share * sound.abs().amax(-1, keepdim=True)
    return sound.clamp(-limit, limit)


def low_pass(sound: Tensor, share: float, generator: Generator) -> Tensor:
    """Take away all frequencies above a share of the highest."""
    spectrum = torch.fft.rfft(sound)
    spectrum[..., max(1, int(share * spectrum.shape[-1])) :] = 0
    filtered: Tensor = torch.fft.irfft(spectrum, n=sound.shape[-1])
    return filtered


def time_shift(sound: Tensor, share: float, generator: Generator) -> Tensor:
    """Begin later by a share of the length, with silence."""
    steps = int(share * sound.shape[-1])
    return F.pad(sound, (steps, 0))[..., : sound.shape[-1]]


def missing_values(values: Tensor, share: float, generator: Generator) -> Tensor:
    """Put the mean of the batch in the place of a share of the values."""
    missing = torch.rand(values.shape, generator=generator) < share
    return torch.where(missing, values.mean(), values)


def drift(values: Tensor, amount: float, generator: Generator) -> Tensor:
    """Add to all values."""
    return values + amount


_Strengths = tuple[float, float, float, float, float]
CORRUPTIONS: Mapping[str, Mapping[str, tuple[Corruption, _Strengths]]] = {
    "image": {
        "gaussian_noise": (gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
        "shot_noise": (shot_noise, (60, 25, 12, 5, 3)),
        "gaussian_blur": (gaussian_blur, (1, 2, 3, 4, 6)),
        "contrast": (contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
        "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
        "pixelate": (pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
        "jpeg": (jpeg, (25, 18, 15, 10, 7)),
    },
    "sound": {
        "noise": (noise_by_ratio, (20, 15, 10, 5, 0)),
        "clipping": (clipping, (0.8, 0.6, 0.4, 0.2, 0.1)),
        "low_pass": (low_pass, (0.5, 0.35, 0.25, 0.15, 0.1)),
        "time_shift": (time_shift, (0.01, 0.02, 0.05, 0.1, 0.2)),
    },
    "numbers": {
        "gaussian_noise": (gaussian_noise, (0.01, 0.02, 0.05, 0.1, 0.2)),
        "missing_values": (missing_values, (0.05, 0.1, 0.2, 0.3, 0.4)),
        "drift": (drift, (0.01, 0.02, 0.05, 0.1, 0.2)),
    },
}
"""By kind and name: the function and its strength in each severity."""
TYPO_SHARES: _Strengths = (0.02, 0.04, 0.06, 0.08, 0.1)
"""Share of a text's letters that are misspelt, in each severity."""
TOKEN_NOISE: _Strengths = (0.05, 0.1, 0.15, 0.2, 0.3)
"""Share of a sample's tokens that are replaced, in each severity."""


_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def swap_letters(text: str, share: float, random: Random) -> str:
    """Swap a share of the letters with the next one."""
    letters = list(text)
    for i in range(len(letters) - 1):
        if letters[i].isalpha() and letters[i + 1].isalpha() and random.random() < share:
            letters[i : i + 2] = letters[i + 1], letters[i]
    return "".join(letters)


def drop_letters(text: str, share: float, random: Random) -> str:
    """Leave out a share of the letters."""
    return "".join(c for c in text if not c.isalpha() or random.random() >= share) or text


def hit_next_key(text: str, share: float, random: Random) -> str:
    """Put the key beside it on an English keyboard in the place of a share of the letters."""

    def typed(letter: str) -> str:
        row = next((keys for keys in _KEYBOARD if letter.lower() in keys), "")
        if not row or random.random() >= share:
            return letter
        place = row.index(letter.lower())
        beside = row[max(0, place - 1) : place] + row[place + 1 : place + 2]
        other = random.choice(beside)
        return other.upper() if letter.isupper() else other

    return "".join(map(typed, text))


TYPOS: Mapping[str, Callable[[str, float, Random], str]] = {
    "swapped_letters": swap_letters,
    "dropped_letters": drop_letters,
    "neighbouring_keys": hit_next_key,
}
"""Misspellings by name; as corruptions they take a share of `TYPO_SHARES`."""


@dataclass(frozen=True)
class _Place:
    """One tensor of the inputs that can be corrupted."""

    kind: Kind
    low: float
    high: float


class Corruptions:
    """The corruptions that fit a task's inputs.

    Args:
        batches: inputs of the samples; their ranges and tokens are learned from them.
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        tensors: dict[str, list[Tensor]] = {}
        for batch in batches:
            for name, tensor in named_tensors(batch).items():
                tensors.setdefault(name, []).append(tensor)
        self.places = {
            name: _Place(kind, *bounds(found))
            for name, found in tensors.items()
            if (kind := _float_kind(name, found[0])) is not None
        }
        ids = None if self.places else _token_ids(tensors)
        if ids is not None:
            self.places[ids] = _Place("tokens", 0, 0)
            self._tokens = torch.cat([tensor.flatten() for tensor in tensors[ids]]).unique()
            masks = tensors.get(_beside(ids, "attention_mask"), [None] * len(batches))
            ends = [_ends(*pair) for pair in zip(tensors[ids], masks, strict=True)]
            # What all samples begin or end with is no part of their text.
            self._fixed = [
                int(end[0])
                for end in map(torch.cat, zip(*ends, strict=True))
                if (end == end[0]).all()
            ]

    @property
    def names(self) -> list[str]:
        """What inputs can be corrupted by."""
        kinds = {place.kind for place in self.places.values()}
        names = dict.fromkeys(n for k in CORRUPTIONS if k in kinds for n in CORRUPTIONS[k])
        if find_spec("PIL") is None:
            names.pop("jpeg", None)
        return [*names, *(["token_noise"] if "tokens" in kinds else [])]

    def apply(self, name: str, inputs: Any, severity: int, generator: Generator) -> Any:
        """Corrupt a batch's inputs; what the corruption does not fit stays.

        Args:
            name: one of `names`.
            inputs: of one batch.
            severity: 1 to 5.
            generator: where chance comes from.
        """
        change = partial(self._changed, name, inputs, severity, generator)
        return map_tensors(inputs, change)

    def _changed(
        self, name: str, inputs: Any, severity: int, generator: Generator, at: str, tensor: Tensor
    ) -> Tensor:
        place = self.places.get(at)
        if place is None:
            return tensor
        if place.kind == "tokens":
            padding = named_tensors(inputs).get(_beside(at, "attention_mask"))
            return self._replaced(tensor, padding, TOKEN_NOISE[severity - 1], generator)
        found = CORRUPTIONS[place.kind].get(name)
        if found is None:
            return tensor
        corrupt, strengths = found
        if place.kind == "sound":
            return corrupt(tensor, strengths[severity - 1], generator).clamp(place.low, place.high)
        span = place.high - place.low
        unit = (tensor - place.low) / span if span else torch.zeros_like(tensor)
        changed = corrupt(unit, strengths[severity - 1], generator)
        # Other numbers have no range of their own: they may leave that of the samples.
        return place.low + span * (changed.clamp(0, 1) if place.kind == "image" else changed)

    def _replaced(
        self, ids: Tensor, attention: Tensor | None, share: float, generator: Generator
    ) -> Tensor:
        """Put tokens of other samples in the place of a share of the tokens."""
        chosen = torch.rand(ids.shape, generator=generator) < share
        if attention is not None and attention.shape == ids.shape:
            chosen &= attention != 0
        for token in self._fixed:
            chosen &= ids != token
        drawn = torch.randint(len(self._tokens), ids.shape, generator=generator)
        return torch.where(chosen, self._tokens[drawn], ids)


def bounds(tensors: Sequence[Tensor]) -> tuple[float, float]:
    """Return the smallest and the largest value of some tensors."""
    return min(float(t.min()) for t in tensors), max(float(t.max()) for t in tensors)


def _float_kind(name: str, tensor: Tensor) -> Kind | None:
    """Tell what a float input is from its name and shape; None for a mask, or no float."""
    if not tensor.is_floating_point() or "mask" in name or not tensor.numel():
        return None
    if tensor.ndim == 4 and tensor.shape[1] in (1, 3):
        return "image"
    one_channel = tensor.ndim == 2 or (tensor.ndim == 3 and tensor.shape[1] == 1)
    return "sound" if one_channel and tensor.shape[-1] >= _SHORTEST_SOUND else "numbers"


def _token_ids(tensors: Mapping[str, Sequence[Tensor]]) -> str | None:
    """Return the name of the integer input with the most different values, None without one."""
    different = {
        name: len(torch.cat([tensor.flatten() for tensor in found]).unique())
        for name, found in tensors.items()
        if not found[0].is_floating_point() and found[0].ndim == 2
    }
    name = max(different, key=lambda n: different[n], default=None)
    return name if name is not None and different[name] > 2 else None


def _ends(ids: Tensor, attention: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the first and the last token [samples] of each sample, without padding."""
    if attention is None:
        return ids[:, 0], ids[:, -1]
    real = attention != 0
    last = (real * torch.arange(ids.shape[1])).argmax(1, keepdim=True)
    first = real.int().argmax(1, keepdim=True)
    return ids.gather(1, first).flatten(), ids.gather(1, last).flatten()


def _beside(name: str, other: str) -> str:
    """Return the name of another tensor in the same dict."""
    path, dot, _ = name.rpartition(".")
    return f"{path}{dot}{other}"
