"""Images of a dataset as tensors: decoded, resized, cropped and changed at random."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from zoopress.optional import import_optional
from zoopress.tasks import File
from zoopress_zoo.image_settings import Augmentation, ImagePreprocessing, Interpolation, pair

if TYPE_CHECKING:
    from PIL.Image import Image

_THUMBNAIL = 96
_DARK = 64
_BENDS = 5


def image_shape(value: Any) -> tuple[int, int, int]:
    """Return height, width and channels (1 or 3) of an image, without decoding its pixels.

    Raises:
        ValueError: if it is not an image.
    """
    if isinstance(value, File):
        image = _open(value)
        # Cameras note that a picture lies on its side, which decoding puts right.
        turned = image.getexif().get(0x0112, 1) >= 5
        height, width = (image.width, image.height) if turned else (image.height, image.width)
        return height, width, _channels(image.mode)
    array = _array(value)
    return array.shape[0], array.shape[1], array.shape[2]


def decode(value: Any, channels: int | None = None) -> np.ndarray[Any, Any]:
    """Return the pixels [height, width, channels] of an image, uint8.

    Raises:
        ValueError: if it is not an image of 8 bits a channel.
    """
    if not isinstance(value, File):
        array = _array(value)
        if channels in (None, array.shape[2]):
            return array
        image: Image = _picture(array)
    else:
        image = _open(value)
        wanted = channels or _channels(image.mode)
        try:
            image = _pillow("ImageOps").exif_transpose(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{value.name or 'it'} is damaged: {error}") from error
        channels = wanted
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def prepare(value: Any, settings: ImagePreprocessing) -> np.ndarray[Any, Any]:
    """Return the pixels [height, width, channels] of an image, uint8, resized and cropped.

    Raises:
        ValueError: if it is not an image.
    """
    pixels = decode(value, _wanted_channels(settings))
    height, width = pixels.shape[:2]
    if settings.size is not None:
        pixels = resize(pixels, pair(settings.size), settings.interpolation)
    elif settings.shortest_edge is not None:
        size = edge_size(height, width, settings.shortest_edge)
        pixels = resize(pixels, size, settings.interpolation)
    if settings.crop is not None:
        pixels = center_crop(pixels, pair(settings.crop))
    return pixels


def as_tensor(images: Sequence[np.ndarray[Any, Any]]) -> Tensor:
    """Return images [height, width, channels] as one [n, channels, height, width], float, 0 to 255.

    Augmentation and `normalize` come after it.
    """
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()


def resize(
    pixels: np.ndarray[Any, Any], size: tuple[int, int], interpolation: Interpolation
) -> np.ndarray[Any, Any]:
    """Return pixels [height, width, channels] at another height and width."""
    if pixels.shape[:2] == size:
        return pixels
    how = _pillow().Resampling[interpolation.upper()]
    resized = np.asarray(_picture(pixels).resize((size[1], size[0]), resample=how))
    return resized if resized.ndim == 3 else resized[..., None]


def edge_size(height: int, width: int, shortest: int) -> tuple[int, int]:
    """Return the height and width of an image whose shorter edge gets a length."""
    longest = int(shortest * max(height, width) / min(height, width))
    return (shortest, longest) if height <= width else (longest, shortest)


def center_crop(pixels: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Return the middle [height, width, channels] of pixels; what lies outside of them is 0."""
    for axis, wanted in enumerate(size):
        missing = wanted - pixels.shape[axis]
        if missing > 0:
            before = math.ceil(missing / 2)
            pads = [(0, 0)] * 3
            pads[axis] = (before, missing - before)
            pixels = np.pad(pixels, pads)
    top, left = (pixels.shape[0] - size[0]) // 2, (pixels.shape[1] - size[1]) // 2
    return pixels[top : top + size[0], left : left + size[1]]


def normalize(images: Tensor, settings: ImagePreprocessing) -> Tensor:
    """Return images [n, channels, height, width] with values 0 to 255 as the model takes them.

    Raises:
        ValueError: if the settings are for another number of channels.
    """
    images = (images.flip(1) if settings.bgr else images) * settings.rescale
    if not settings.mean:
        return images
    if len(settings.mean) not in (1, images.shape[1]):
        raise ValueError(
            f"'mean' and 'std' are for {len(settings.mean)} channels, the images have "
            f"{images.shape[1]}"
        )
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (settings.mean, settings.std))
    return (images - mean) / std


def augment(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """Return images [n, channels, height, width], each moved, flipped, cut out, turned and bent.

    What comes in from outside is 0. One map does all of it, so that pixels are interpolated once;
    whole shifts and flips move them as they are.

    Source: Simard et al. 2003, doi:10.1109/ICDAR.2003.1227801 (elastic), with cubic interpolation
    between few random points in the place of a smoothed random field.
    """
    if settings == Augmentation():
        return images
    count, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    scale = uniform(settings.crop, 1.0).sqrt()
    angle = uniform(-settings.rotate, settings.rotate).deg2rad()
    flips = torch.randint(0, 2, (count,), generator=generator) if settings.flip else None
    sign = 1 - 2.0 * flips if flips is not None else torch.ones(count)
    span = 2 * settings.shift + 1
    moves = torch.randint(0, span, (2, count), generator=generator) - settings.shift
    # In the map's coordinates an image reaches from -1 to 1; a cut-out stays inside of it.
    x = uniform(-1, 1) * (1 - scale) + 2.0 * moves[0] / width
    y = uniform(-1, 1) * (1 - scale) + 2.0 * moves[1] / height
    most = math.log1p(settings.scale)
    wide, high = scale * uniform(-most, most).exp(), scale * uniform(-most, most).exp()
    slant = high * uniform(-settings.shear, settings.shear).deg2rad().tan()
    cosine, sine, ratio = angle.cos(), angle.sin(), height / width
    # Stretched and slanted, then turned.
    rows = [
        torch.stack([sign * cosine * wide, (cosine * slant - sine * high) * ratio, x], 1),
        torch.stack([sign * sine * wide / ratio, sine * slant + cosine * high, y], 1),
    ]
    grid = affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    if settings.elastic:
        size = settings.elastic * 2 / torch.tensor([width, height]).view(1, 2, 1, 1)
        points = torch.randn(count, 2, _BENDS, _BENDS, generator=generator) * size
        bent = interpolate(points, (height, width), mode="bicubic", align_corners=True)
        grid = grid + bent.permute(0, 2, 3, 1)
    return grid_sample(images, grid, align_corners=False)


def prepared_shape(value: Any, settings: ImagePreprocessing) -> tuple[int, int, int]:
    """Return the shape [channels, height, width] that `prepare` gives, without decoding pixels.

    Raises:
        ValueError: if it is not an image.
    """
    height, width, own = image_shape(value)
    channels = _wanted_channels(settings) or own
    if settings.output_size is not None:
        return (channels, *settings.output_size)
    if settings.shortest_edge is not None:
        return (channels, *edge_size(height, width, settings.shortest_edge))
    return channels, height, width


def as_address(value: Any) -> str:
    """Return an image as a `data:image/png` address, at most 96 pixels wide and high.

    Raises:
        ValueError: if it is not an image.
    """
    picture = _picture(decode(value))
    brightest = max(level for level, count in enumerate(picture.convert("L").histogram()) if count)
    if 0 < brightest < _DARK:  # of another scale than 0 to 255, such as 0 to 16
        brighter = [min(255, level * 255 // brightest) for level in range(256)]
        picture = picture.point(brighter * len(picture.getbands()))
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _wanted_channels(settings: ImagePreprocessing) -> int | None:
    return settings.channels or (len(settings.mean) if len(settings.mean) > 1 else None)


def _pillow(module: str = "Image") -> Any:
    """Import a module of Pillow.

    Raises:
        ValueError: if Pillow is not installed.
    """
    return import_optional(
        f"PIL.{module}",
        "reading and resizing images needs Pillow",
        "pip install 'zoopress[data]'",
        ValueError,
    )


def _open(value: File) -> Image:
    pillow = _pillow()
    try:
        image: Image = pillow.open(io.BytesIO(value.content))
    except pillow.UnidentifiedImageError as error:
        raise ValueError(f"{value.name or 'it'} is no image that Pillow can read") from error
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise ValueError(f"{value.name or 'it'}: {error}") from error
    return image


def _picture(pixels: np.ndarray[Any, Any]) -> Image:
    image: Image = _pillow().fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return image


def _array(value: Any) -> np.ndarray[Any, Any]:
    """Return an image that is an array or nested lists as [height, width, channels], uint8."""
    array = np.asarray(value)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise ValueError(
            f"expected an image [height, width] or [height, width, 1 or 3], got {array.shape}"
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise ValueError(f"the values of an image must be integers 0 to 255, not {array.dtype}")
    return array.astype(np.uint8)


def _channels(mode: str) -> int:
    """Return how many channels an image of one of Pillow's modes is decoded to."""
    if mode.startswith(("I", "F")):
        raise ValueError(f"an image of mode {mode!r} has more than 8 bits a channel; convert it")
    return 1 if mode in ("1", "L", "LA", "La") else 3
