"""How images become inputs: the card's `preprocessing`, else what the model's own files say.

transformers writes preprocessor_config.json, timm config.json. What their loaders do is done by
`zoopress_zoo.images` with Pillow and torch alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from zoopress.errors import CardError
from zoopress.tasks import Preprocessing

Interpolation = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""In the order in which Pillow counts them."""


class Augmentation(Preprocessing):
    """Random changes of training images, drawn anew each time."""

    shift: int = Field(default=0, ge=0, description="pixels moved at most, in each direction")
    flip: bool = Field(default=False, description="left and right are swapped in half of them")
    crop: float = Field(
        default=1.0, gt=0, le=1, description="least share of the area that is cut out and enlarged"
    )
    rotate: float = Field(default=0.0, ge=0, le=180, description="degrees turned at most")
    scale: float = Field(
        default=0.0, ge=0, description="width and height, each, by up to 1 + this larger or smaller"
    )
    shear: float = Field(default=0.0, ge=0, lt=90, description="degrees slanted at most")
    elastic: float = Field(
        default=0.0, ge=0, description="pixels bent, as the deviation of 5 by 5 random points"
    )


class ImagePreprocessing(Preprocessing):
    """Steps in this order: resize, crop, rescale, normalize."""

    size: int | tuple[int, int] | None = Field(
        default=None, description="height and width to resize to; one number: a square"
    )
    shortest_edge: int | None = Field(
        default=None, ge=1, description="instead: resize the shorter edge to this, the other alike"
    )
    crop: int | tuple[int, int] | None = Field(
        default=None, description="height and width to cut out of the middle afterwards"
    )
    interpolation: Interpolation = Field(default="bilinear", description="how to resize")
    channels: Literal[1, 3] | None = Field(
        default=None, description="1: grey, 3: color; by default what the image has"
    )
    bgr: bool = Field(default=False, description="channels in the order blue, green, red")
    rescale: float = Field(default=1 / 255, gt=0, description="factor of values 0 to 255")
    mean: tuple[float, ...] = Field(default=(), description="subtracted from each channel")
    std: tuple[float, ...] = Field(default=(), description="what each channel is divided by")
    augment: Augmentation = Field(
        default=Augmentation(), description="random changes of training images"
    )

    @model_validator(mode="after")
    def _check(self) -> ImagePreprocessing:
        if self.size is not None and self.shortest_edge is not None:
            raise ValueError("give 'size' or 'shortest_edge', not both")
        for name in ("size", "crop"):
            if getattr(self, name) is not None and min(pair(getattr(self, name))) < 1:
                raise ValueError(f"{name!r} must be at least 1")
        if len(self.mean) != len(self.std):
            raise ValueError(f"'mean' has {len(self.mean)} values and 'std' {len(self.std)}")
        if any(value <= 0 for value in self.std):
            raise ValueError("'std' must be above 0")
        if self.channels and len(self.mean) not in (0, 1, self.channels):
            raise ValueError(f"'mean' has {len(self.mean)} values for {self.channels} channels")
        return self

    @property
    def output_size(self) -> tuple[int, int] | None:
        """Height and width of every image afterwards, None if they keep sizes of their own."""
        size = self.crop if self.crop is not None else self.size
        return pair(size) if size is not None else None


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width."""
    return (size, size) if isinstance(size, int) else size


_GEOMETRY = ("size", "shortest_edge", "crop")


def complete(given: ImagePreprocessing, folder: Path, card: str) -> ImagePreprocessing:
    """Return the card's settings, and those of the model's own files where it says nothing.

    A card that says anything of sizes says all of them.

    Raises:
        CardError: if the model's files ask for steps that are not known.
    """
    own = _of_transformers(folder) or _of_timm(folder)
    stated_sizes = any(name in given.model_fields_set for name in _GEOMETRY)
    unknown = _unknown_step(folder)
    if unknown and not stated_sizes:
        raise CardError(
            f"Card {card!r}: {folder / 'preprocessor_config.json'} asks for {unknown}, which is "
            "not known here. Say in 'data.preprocessing' how images become inputs: 'size', or "
            "'shortest_edge' and 'crop', 'mean' and 'std'."
        )
    if stated_sizes:
        own = {name: value for name, value in own.items() if name not in _GEOMETRY}
    if {"mean", "std"} & given.model_fields_set:
        own = {name: value for name, value in own.items() if name not in ("mean", "std")}
    stated = {name: getattr(given, name) for name in given.model_fields_set}
    try:
        return ImagePreprocessing.model_validate({**own, **stated})
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise CardError(
            f"Card {card!r}: how the files in {folder} prepare images cannot be read: {reason}. "
            "Say it in 'data.preprocessing'."
        ) from error


def _unknown_step(folder: Path) -> str:
    """Return what preprocessor_config.json asks for besides the steps here, "" for nothing."""
    settings = _read(folder / "preprocessor_config.json")
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    if kind.startswith(_OTHER_KINDS):
        return repr(kind)
    return next((repr(name) for name in _OTHER_STEPS if settings.get(name) is True), "")


# EfficientNet's shift and second normalization, and padding to a multiple.
_OTHER_STEPS = ("rescale_offset", "include_top", "do_pad", "do_color_quantize")
# Those that compute sizes in a way of their own.
_OTHER_KINDS = ("GLPN", "ImageGPT", "Levit", "Perceiver", "Siglip2", "TextNet")


def _of_transformers(folder: Path) -> dict[str, Any]:
    """Return the settings in preprocessor_config.json, none if there is no such file."""
    settings = _read(folder / "preprocessor_config.json")
    if not settings:
        return {}
    found: dict[str, Any] = {}
    crop = settings.get("crop_size") if settings.get("do_center_crop") else None
    size = settings.get("size") if settings.get("do_resize", True) else None
    if isinstance(size, int):  # as older versions wrote it
        size = {"shortest_edge" if crop is not None else "square": size}
    if isinstance(size, Mapping):
        edge = size.get("shortest_edge")
        share = settings.get("crop_pct")
        if "height" in size:
            found["size"] = (size["height"], size["width"])
        elif "square" in size:
            found["size"] = size["square"]
        elif isinstance(edge, int) and isinstance(share, float):  # ConvNeXT's way
            found |= (
                {"shortest_edge": int(edge / share), "crop": edge} if edge < 384 else {"size": edge}
            )
        elif isinstance(edge, int):
            found["shortest_edge"] = edge
    if isinstance(crop, int):
        found["crop"] = crop
    elif isinstance(crop, Mapping):
        found["crop"] = (crop.get("height"), crop.get("width"))
    resample = settings.get("resample")
    if isinstance(resample, int) and 0 <= resample < len(get_args(Interpolation)):
        found["interpolation"] = get_args(Interpolation)[resample]
    if settings.get("do_convert_rgb"):
        found["channels"] = 3
    if settings.get("do_flip_channel_order"):
        found |= {"channels": 3, "bgr": True}
    if not settings.get("do_rescale", True):
        found["rescale"] = 1.0
    elif isinstance(settings.get("rescale_factor"), float):
        found["rescale"] = settings["rescale_factor"]
    if settings.get("do_normalize") and settings.get("image_mean"):
        found |= {"mean": _many(settings["image_mean"]), "std": _many(settings.get("image_std"))}
    return found


def _of_timm(folder: Path) -> dict[str, Any]:
    """Return the settings in a config.json of timm's, as its evaluation transform takes them."""
    settings = _read(folder / "config.json").get("pretrained_cfg")
    if not isinstance(settings, Mapping) or not isinstance(settings.get("input_size"), list):
        return {}
    channels, *size = settings["input_size"]
    found: dict[str, Any] = {"channels": channels if channels == 1 else 3, "crop": tuple(size)}
    share = settings.get("crop_pct") or 0.875
    if settings.get("crop_mode") == "squash" or size[0] != size[1]:
        found["size"] = tuple(int(edge / share) for edge in size)
    else:
        found["shortest_edge"] = int(size[0] / share)
    if settings.get("interpolation") in get_args(Interpolation):
        found["interpolation"] = settings["interpolation"]
    if settings.get("mean"):
        found |= {"mean": _many(settings["mean"]), "std": _many(settings.get("std"))}
    return found


def _many(values: Any) -> Any:
    return (values,) if isinstance(values, (int, float)) else values


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
