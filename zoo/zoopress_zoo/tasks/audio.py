"""Sound: which class it is, a number that goes with it, or its pitch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from zoopress.errors import CardError, cautious
from zoopress.optional import import_optional
from zoopress.tasks import Batch, DatasetTask, Preprocessing, Samples, Split, feed
from zoopress_zoo.tasks.classification import Classification
from zoopress_zoo.tasks.regression import NumberPreprocessing, NumberTask
from zoopress_zoo.tasks.table import read_matrix

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_AUDIO = ("sound", "waveform", "samples", "array", "file", "x")


class AudioPreprocessing(Preprocessing):
    """How sounds become inputs: by the model's own feature extractor, if its folder has one.

    That is preprocessor_config.json, as transformers writes it. Else the waveform is the input.
    """

    sampling_rate: int | None = Field(
        default=None, ge=1, description="Hz that sounds must have; the model's own by default"
    )
    length: int | None = Field(
        default=None, ge=1, description="samples that sounds are cut off at, or filled up to"
    )
    normalize: bool = Field(default=False, description="each waveform gets mean 0 and deviation 1")


class AudioNumberPreprocessing(AudioPreprocessing, NumberPreprocessing):
    """How sounds become inputs, and what numbers are learned by."""


class AudioClassification(Classification):
    """Feeds waveforms [samples, length], or what the feature extractor makes of them."""

    name = "audio-classification"
    input_roles: ClassVar[tuple[str, ...]] = ("audio",)
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **Classification.synonyms,
        "audio": _AUDIO,
    }
    preprocessing_type: ClassVar[type[Preprocessing]] = AudioPreprocessing
    preprocessing: AudioPreprocessing

    def make_samples(self, split: Split) -> Samples:
        """Return sounds, decoded when they are asked for.

        Raises:
            CardError: if there are too few, or they are not what `preprocessing` says.
        """
        _ = self.label_space  # labels outside of it are told before long work
        return _Sounds(self, self.preprocessing, split, lambda rows: self.labels(split, rows))

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return class scores [samples, classes]."""
        return feed(module, inputs)


class AudioRegression(NumberTask):
    """Feeds waveforms [samples, length] and takes numbers [samples, targets]."""

    name = "audio-regression"
    input_roles: ClassVar[tuple[str, ...]] = ("audio",)
    many: ClassVar[frozenset[str]] = frozenset({"target"})
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {**NumberTask.synonyms, "audio": _AUDIO}
    preprocessing_type: ClassVar[type[Preprocessing]] = AudioNumberPreprocessing
    preprocessing: AudioNumberPreprocessing

    def make_samples(self, split: Split) -> Samples:
        """Return sounds, decoded when they are asked for.

        Raises:
            CardError: if there are too few, or they are not what `preprocessing` says.
        """
        numbers = read_matrix(self.rows(split), self.columns["target"], self.card.name).float()
        return _Sounds(self, self.preprocessing, split, lambda rows: numbers[list(rows)])


class PitchPreprocessing(AudioNumberPreprocessing):
    """How sounds become inputs, and outputs frequencies."""

    bins: int | None = Field(
        default=None,
        ge=2,
        description="the model tells probabilities of pitches, 360 for CREPE, instead of Hz",
    )
    lowest_cents: float = Field(
        default=1997.3794084376191, description="pitch of the first bin, in cents above 10 Hz"
    )
    bin_cents: float = Field(default=20.0, gt=0, description="cents from bin to bin")


class PitchEstimation(AudioRegression):
    """Takes a frequency in Hz, or the probabilities of pitches, of frames of sound.

    Bins are learned by binary cross-entropy with targets blurred by 25 cents.

    Source: Kim et al. 2018, CREPE, arXiv:1802.06182, section 2.
    """

    name = "pitch-estimation"
    metric = "raw_pitch_accuracy"
    higher_is_better = True
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "target": ("frequency", "pitch", "f0", "hz", "y"),
        "audio": _AUDIO,
    }
    many: ClassVar[frozenset[str]] = frozenset()
    preprocessing_type: ClassVar[type[Preprocessing]] = PitchPreprocessing
    preprocessing: PitchPreprocessing

    def make_samples(self, split: Split) -> Samples:
        """Return sounds with their frequencies.

        Raises:
            CardError: if a frequency is not above 0, as of frames without a voice.
        """
        samples = super().make_samples(split)
        rows = self.rows(split)
        for row, value in enumerate(rows.values("target", range(len(rows)))):
            if not value > 0:
                raise CardError(
                    f"Card {self.card.name!r}: the frequency in {rows.where(row)} is {value}, and "
                    "must be above 0 Hz. Leave out frames without a pitch."
                )
        return samples

    def loss(self, output: Tensor, targets: Any) -> Tensor:
        """Return the mean loss of frequencies [samples, 1] or probabilities [samples, bins]."""
        if self.preprocessing.bins is None:
            return super().loss(output, targets)
        from torch.nn.functional import binary_cross_entropy

        self._check_output(output, targets)
        distance = self._bin_cents() - _cents(targets)
        return binary_cross_entropy(output, (-(distance**2) / (2 * 25.0**2)).exp())

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        """Return frequencies in Hz [samples, 1]."""
        if self.preprocessing.bins is None:
            return super().statistics(output, targets)
        self._check_output(output, targets)
        cents = mean_near_largest(output.double(), self._bin_cents().double())
        return {"value": targets.double(), "prediction": 10.0 * 2 ** (cents[:, None] / 1200)}

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the share within 50 cents, and the errors in cents and in Hz."""
        from zoopress.evaluation.metrics import mean_absolute_error, raw_pitch_accuracy

        value, prediction = statistics["value"][:, 0], statistics["prediction"][:, 0]
        # What is no frequency at all counts as far too low.
        heard = prediction.clamp(min=1e-3)
        return {
            "raw_pitch_accuracy": raw_pitch_accuracy(heard, value),
            "mean_absolute_error_cents": mean_absolute_error(_cents(heard), _cents(value)),
            "mean_absolute_error": mean_absolute_error(prediction, value),
        }

    def _bin_cents(self) -> Tensor:
        """Return the pitch of each bin in cents above 10 Hz."""
        import torch

        settings = self.preprocessing
        return settings.lowest_cents + settings.bin_cents * torch.arange(settings.bins or 0)

    def _check_output(self, output: Tensor, targets: Tensor) -> None:
        bins = self.preprocessing.bins
        if bins is None:
            return super()._check_output(output, targets)
        inside = bool(((output >= 0) & (output <= 1) | output.isnan()).all())
        if list(output.shape) != [len(targets), bins] or not inside:
            raise CardError(
                f"Card {self.card.name!r}: with 'bins: {bins}' the model must give probabilities "
                f"[{len(targets)}, {bins}], and gave {list(output.shape)}"
                + ("." if inside else f" from {float(output.min())} to {float(output.max())}.")
            )


def mean_near_largest(scores: Tensor, values: Tensor) -> Tensor:
    """Return the mean of values [bins], weighted by scores [samples, bins] near their largest.

    Near are four bins on either side.
    """
    import torch

    place = torch.arange(len(values))
    near = (place - scores.argmax(1, keepdim=True)).abs() <= 4
    weights = scores * near
    return (weights * values).sum(1) / weights.sum(1).clamp(min=1e-30)


class _Sounds(Samples):
    """Sounds of one split.

    Args:
        task: whose they are; its role "audio" is read.
        settings: how they become inputs.
        split: which.
        targets: returns what outputs should be, for some rows.
    """

    def __init__(
        self,
        task: DatasetTask,
        settings: AudioPreprocessing,
        split: Split,
        targets: Callable[[Sequence[int]], Tensor],
    ) -> None:
        self._rows, self._settings, self._targets = task.rows(split), settings, targets
        self._card, self._folder = task.card.name, task.folder
        self._check()

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        import torch

        from zoopress_zoo.sound import standardize

        waveforms = [
            self._waveform(row, value)
            for row, value in zip(rows, self._rows.values("audio", rows), strict=True)
        ]
        if self._extractor is not None:
            made = self._extractor(
                waveforms,
                sampling_rate=self._rate,
                padding=True,
                return_tensors="pt",
            )
            return Batch(dict(made), self._targets(rows))
        if self._settings.normalize:
            waveforms = [standardize(waveform) for waveform in waveforms]
        return Batch(torch.stack([torch.from_numpy(w) for w in waveforms]), self._targets(rows))

    @cached_property
    def _extractor(self) -> Any:
        """The model's own feature extractor, None if its folder has none."""
        if not (self._folder / "preprocessor_config.json").is_file():
            return None
        return load_extractor(self._folder, self._card)

    @property
    def _rate(self) -> int | None:
        own = getattr(self._extractor, "sampling_rate", None)
        return self._settings.sampling_rate or own

    def _check(self) -> None:
        """Look at every sound without decoding it.

        Raises:
            CardError: unless all have the model's sampling rate and become inputs of one length.
        """
        from zoopress_zoo.sound import sound_format

        fixed = self._settings.length is not None or self._extractor is not None
        first: int | None = None
        for row in range(len(self)):
            try:
                length, rate = sound_format(self._rows.values("audio", [row])[0])
            except ValueError as error:
                raise self._error(row, str(error)) from error
            first = first or length
            if not length:
                raise self._error(row, "it is empty")
            if rate is not None and self._rate is not None and rate != self._rate:
                reason = f"it has {rate} samples a second, and the model takes {self._rate}"
                raise self._error(row, f"{reason}. Resample it")
            if length != first and not fixed:
                raise self._error(
                    row,
                    f"it has {length} samples, that in {self._rows.where(0)} {first}. Say how many "
                    "all get: 'data: {preprocessing: {length: 16000}}'",
                )

    def _waveform(self, row: int, value: Any) -> Any:
        from zoopress_zoo.sound import decode_sound, fit_length

        try:
            return fit_length(decode_sound(value)[0], self._settings.length)
        except ValueError as error:
            raise self._error(row, str(error)) from error

    def _error(self, row: int, reason: str) -> CardError:
        return CardError(f"Card {self._card!r}: the sound in {self._rows.where(row)}: {reason}.")


def load_extractor(folder: Path, card: str) -> Any:
    """Return the feature extractor of transformers that a model's folder describes.

    Raises:
        CardError: if it cannot be made.
    """
    what = f"the feature extractor in {folder / 'preprocessor_config.json'}"
    install = "pip install 'zoopress[transformers]'"
    needed = f"Card {card!r}: {what} needs transformers"
    library = import_optional("transformers", needed, install, CardError)
    try:
        return library.AutoFeatureExtractor.from_pretrained(str(folder), local_files_only=True)
    except (ImportError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = cautious(" ".join(str(error).split()))[:300]
        raise CardError(f"Card {card!r}: {what} cannot be made: {reason}.") from error


def _cents(frequency: Tensor) -> Tensor:
    """Return pitches in cents above 10 Hz."""
    return 1200 * (frequency / 10.0).log2()
