"""Image-text retrieval: is the text that belongs to an image the nearest to it, and vice versa?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from zoopress.tasks import Batch, Preprocessing, Rows, Samples, Split
from zoopress_zoo.image_settings import ImagePreprocessing, complete
from zoopress_zoo.tasks.embedding import (
    TEMPERATURE,
    best_ranks,
    contrastive_loss,
    pair_numbers,
    retrieval_metrics,
)
from zoopress_zoo.tasks.image_classification import ImageSamples
from zoopress_zoo.tasks.text_task import (
    TEXT_SYNONYMS,
    TextPreprocessing,
    TextTask,
    check_texts,
    find_tensor,
    run_module,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class ImageTextPreprocessing(ImagePreprocessing, TextPreprocessing):
    """How images and texts become inputs."""

    max_tokens: int = Field(default=77, ge=2, description="longer texts are cut")
    padding: Literal["longest", "max_length"] = Field(
        default="longest", description="of texts: to the batch's longest, or to max_tokens always"
    )


class ImageTextRetrieval(TextTask):
    """Compares the embeddings of images and texts [samples, 2, size].

    A row's text belongs to its image. Each is looked for among all of the split.
    """

    name = "image-text-retrieval"
    metric = "image_to_text_recall_at_1"
    input_roles: ClassVar[tuple[str, ...]] = ("image", "text")
    target_roles: ClassVar[tuple[str, ...]] = ()
    synonyms: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "image": ("images", "img", "picture"),
        "text": ("caption", *TEXT_SYNONYMS),
    }
    preprocessing_type: ClassVar[type[Preprocessing]] = ImageTextPreprocessing

    @cached_property
    def settings(self) -> ImagePreprocessing:
        """How images become inputs: by the card, else by the model's own files."""
        own = {name: getattr(self.preprocessing, name) for name in self._stated}
        return complete(ImagePreprocessing(**own), self.folder, self.card.name)

    def make_samples(self, split: Split) -> Samples:
        """Return pairs, their images decoded when they are asked for.

        Raises:
            CardError: if there are too few, some are no images or of mixed sizes, or a text is
                empty.
        """
        rows = self.rows(split)
        check_texts(rows, "text", self.card.name)
        every = range(len(rows))
        numbers = pair_numbers(rows.values("image", every), rows.values("text", every))
        images = ImageSamples(
            rows, self.settings, self.card.name, lambda chosen: numbers[list(chosen)]
        )
        images.check()
        return _Pairs(self, rows, images)

    def forward(self, module: nn.Module, inputs: Any) -> Tensor:
        """Return the embeddings of images and texts.

        Their products are the model's scores: their length is the root of its `logit_scale`, of
        1 ÷ 0.05 if it has none.

        Raises:
            CardError: if the model returns something else.
        """
        import torch
        from torch.nn.functional import normalize

        output = run_module(module, inputs)
        both = self._embeddings(output)
        scale = getattr(module, "logit_scale", None)
        root = (scale / 2).exp() if isinstance(scale, torch.Tensor) else TEMPERATURE**-0.5
        return normalize(torch.stack(both, 1), dim=2) * root

    def loss(self, output: Tensor, targets: Any) -> Tensor:
        """Return the mean of InfoNCE from images to texts and from texts to images.

        Source: Radford et al. 2021, arXiv:2103.00020, figure 3.
        """
        images, texts = output.unbind(1)
        scores = images @ texts.T
        there = contrastive_loss(scores, targets)
        return (there + contrastive_loss(scores.T, targets.flip(1))) / 2

    def statistics(self, output: Tensor, targets: Any) -> dict[str, Tensor]:
        """Return embeddings, which `collect` makes ranks of."""
        images, texts = output.unbind(1)
        return {"image": images, "text": texts, "numbers": targets}

    def collect(self, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return of each image the rank of its text, of each text that of its image."""
        rows = super().collect(batches)
        if not rows:
            return {}
        images, texts, numbers = rows["image"], rows["text"], rows["numbers"]
        return {
            "image_to_text": best_ranks(images, texts, numbers),
            "text_to_image": best_ranks(texts, images, numbers.flip(1)),
        }

    def metrics(self, statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Return recall at 1, 5 and 10, mean reciprocal rank and nDCG at 10, both ways."""
        return {
            name: value
            for way in ("image_to_text", "text_to_image")
            for name, value in retrieval_metrics(statistics[way], f"{way}_").items()
        }

    def similarity(self, outputs: Sequence[Tensor]) -> Tensor | None:
        """Return the scores of each image and all texts."""
        import torch

        images, texts = torch.cat(list(outputs)).unbind(1)
        return images @ texts.T

    def show(self, split: Split, row: int) -> str | None:
        """Return the image as a `data:image/png` address."""
        from zoopress_zoo.images import as_address

        return as_address(self.rows(split).values("image", [row])[0])

    @property
    def _stated(self) -> set[str]:
        stated: set[str] = self.preprocessing.model_fields_set
        return stated & ImagePreprocessing.model_fields.keys()

    def _embeddings(self, output: Any) -> tuple[Tensor, Tensor]:
        from torch import Tensor

        if isinstance(output, (tuple, list)) and len(output) == 2:
            images, texts = output
        else:
            images, texts = (
                find_tensor(output, name) if isinstance(output, Mapping) else None
                for name in ("image_embeds", "text_embeds")
            )
        good = isinstance(images, Tensor) and isinstance(texts, Tensor)
        if not good or images.ndim != 2 or images.shape != texts.shape:
            raise self.unexpected(
                output,
                "two embeddings [samples, size], 'image_embeds' and 'text_embeds', or a pair of "
                "such tensors,",
            )
        return images, texts


class _Pairs(Samples):
    """Images and the texts that belong to them."""

    def __init__(self, task: ImageTextRetrieval, rows: Rows, images: ImageSamples) -> None:
        self._task, self._rows, self._images = task, rows, images

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Sequence[int], generator: torch.Generator | None = None) -> Batch:
        images = self._images.batch(rows, generator)
        tokens = self._task.encode(self._rows.values("text", rows))
        return Batch({"pixel_values": images.inputs, **tokens}, images.targets)
