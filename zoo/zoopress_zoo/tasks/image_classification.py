"""Image classification: what is in a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from zoopress.errors import CardError
from zoopress.tasks import Batch, Rows, Samples, Split, feed
from zoopress_zoo.image_settings import ImagePreprocessing, complete
from zoopress_zoo.tasks.classification import Classification

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class ImageClassification(Classification):
    """Feeds pixels [samples, channels, height, width] and takes class scores."""

    name = "image-classification"
    input_roles: ClassVar[tuple[str, ...]] = ("image",)
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **Classification.synonyms,
        "image": ("images", "img", "pixels", "picture", "x"),
    }
    preprocessing_type = ImagePreprocessing
    preprocessing: ImagePreprocessing

    @cached_property
    def settings(self) -> ImagePreprocessing:
        """How images become inputs: by the card, else by the model's own files."""
        return complete(self.preprocessing, self.folder, self.card.name)

    def make_samples(self, split: Split) -> Samples:
        """Return images, decoded when they are asked for.

        Raises:
            CardError: if there are too few, some are no images, or their sizes differ and nothing
                says what to resize them to.
        """
        _ = self.label_space  # labels outside of it are told before long work
        rows, card = self.rows(split), self.card.name
        samples = ImageSamples(rows, self.settings, card, lambda some: self.labels(split, some))
        samples.check()
        return samples

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return class scores [samples, classes]."""
        return feed(module, inputs)

    def show(self, split: Split, row: int) -> str | None:
        """Return the image as a `data:image/png` address, None without Pillow."""
        from zoopress_zoo.images import as_address

        with suppress(ValueError):
            return as_address(self.rows(split).values("image", [row])[0])
        return None


class ImageSamples(Samples):
    """Images in the column of the role "image", decoded when they are asked for.

    Args:
        rows: of a split.
        settings: how images become inputs.
        card: the card's name, for errors.
        targets: gives those of some rows.
    """

    def __init__(
        self,
        rows: Rows,
        settings: ImagePreprocessing,
        card: str,
        targets: Callable[[Sequence[int]], Any],
    ) -> None:
        self._rows, self._settings, self._card, self._targets = rows, settings, card, targets

    def __len__(self) -> int:
        return len(self._rows)

    def check(self) -> None:
        """Look at every image without decoding it.

        Raises:
            CardError: unless all become inputs of one shape.
        """
        from zoopress_zoo.images import prepared_shape

        first: tuple[int, int, int] | None = None
        for row in range(len(self)):
            try:
                shape = prepared_shape(self._rows.values("image", [row])[0], self._settings)
            except ValueError as error:
                raise self._error(row, str(error)) from error
            first = first or shape
            if shape != first:
                raise self._error(
                    row,
                    f"it becomes an input {list(shape)} [channels, height, width], and that in "
                    f"{self._rows.where(0)} one {list(first)}. Say what all become, for example "
                    "'data: {preprocessing: {size: [32, 32], channels: 3}}'",
                )

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        from zoopress_zoo.images import as_tensor, augment, normalize, prepare

        settings = self._settings
        prepared = []
        for row, value in zip(rows, self._rows.values("image", rows), strict=True):
            try:
                prepared.append(prepare(value, settings))
            except ValueError as error:
                raise self._error(row, str(error)) from error
        images = as_tensor(prepared)
        if generator is not None:
            images = augment(images, settings.augment, generator)
        try:
            inputs = normalize(images, settings)
        except ValueError as error:
            raise self._error(rows[0], str(error)) from error
        return Batch(inputs, self._targets(rows))

    def _error(self, row: int, reason: str) -> CardError:
        return CardError(f"Card {self._card!r}: the image in {self._rows.where(row)}: {reason}.")
