"""From an image file to a square of pixels: decoding, cropping, scaling, with Pillow.

Crops and sizes are those of the ImageNet recipes: a training image is a random part (8 % to 100 %
of the area, 3/4 to 4/3 as wide as high), an evaluated one the centre after the shorter side was
brought to 256 pixels for crops of 224. A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that
still has the pixels wanted, and only the part that is kept is scaled.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "Array",
    "Box",
    "ImageOptions",
    "centre_box",
    "pillow",
    "random_box",
    "render",
    "resized_side",
]

Array: TypeAlias = np.ndarray[Any, Any]

Box: TypeAlias = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels of the whole image."""

_RATIO = (3 / 4, 4 / 3)


def pillow() -> Any:
    """The module ``PIL.Image``.

    Raises:
        ModuleNotFoundError: Pillow is not installed; the message says how to get it.
    """
    try:
        import PIL.Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "image files are read with Pillow: `pip install pillow` (or `ltkernels[images]`)"
        ) from error
    return PIL.Image


@dataclass(frozen=True)
class ImageOptions:
    """How image files are loaded.

    Args:
        size: side of the squares in pixels.
        min_area: smallest area of a training crop, relative to the image's.
        interpolation: ``"bilinear"`` or ``"bicubic"``, both antialiased.
        jitter: strength of brightness, contrast and saturation; None is the data set's own.
        workers: processes that load ahead; 0 loads in this one, when a batch is asked for.

    Raises:
        ValueError: a value is out of range.
    """

    size: int = 224
    min_area: float = 0.08
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    jitter: float | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        for name, good, expected in (
            ("size", self.size >= 1, "to be >= 1"),
            ("min_area", 0 < self.min_area <= 1, "to be above 0 and at most 1"),
            ("interpolation", self.interpolation in ("bilinear", "bicubic"), "to be known"),
            ("jitter", self.jitter is None or 0 <= self.jitter <= 1, "to be None or in 0..1"),
            ("workers", self.workers >= 0, "to be >= 0"),
        ):
            if not good:
                raise ValueError(
                    f"`ImageOptions`: expected `{name}` {expected}, got {getattr(self, name)!r}"
                )


def resized_side(size: int) -> int:
    """Shorter side to which an evaluated image is scaled before its centre is taken: 256 of 224."""
    return round(size * 256 / 224)


def random_box(width: int, height: int, min_area: float, stream: random.Random) -> Box:
    """A random part of an image, as torchvision's ``RandomResizedCrop`` draws it.

    Area uniform on ``min_area ... 1`` of the image's, logarithm of the aspect uniform on that of
    3/4 ... 4/3; ten draws until one fits, else the largest part in the middle that has the aspect.

    Args:
        width: of the image.
        height: of the image.
        min_area: smallest area, relative to the image's.
        stream: source of the numbers.
    """

    # random() is frozen by Python's compatibility policy, the module's other draws are not.
    def between(low: float, high: float) -> float:
        return low + (high - low) * stream.random()

    for _ in range(10):
        area = width * height * between(min_area, 1.0)
        aspect = math.exp(between(*map(math.log, _RATIO)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(between(0, width - w + 1))
            top = int(between(0, height - h + 1))
            return left, top, left + w, top + h
    narrow, wide = _RATIO
    w = min(width, round(height * wide))
    h = min(height, round(width / narrow))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def centre_box(width: int, height: int, size: int) -> Box:
    """The part that remains when the shorter side is scaled and the centre is cut out.

    Args:
        width: of the image.
        height: of the image.
        size: side of the centre after scaling.
    """
    side, shorter = resized_side(size), min(width, height)
    scaled = [int(side * length / shorter) for length in (width, height)]
    left, top = (round((length - size) / 2) for length in scaled)
    x, y = width / scaled[0], height / scaled[1]
    return left * x, top * y, (left + size) * x, (top + size) * y


def render(image: Image, box: Box, size: int, interpolation: str, *, gap: float) -> Array:
    """Decode an opened image and scale a part of it to a square.

    Args:
        image: opened and not yet decoded.
        box: the part.
        size: side of the square.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        gap: how many times the wanted pixels a JPEG that is decoded at a fraction of its size must
            still have a side; 1 is fastest, from 2 on the result is hardly another.

    Returns:
        uint8 ``[size, size, 3]``.
    """
    module = pillow()
    width, height = image.size
    wanted = (
        math.ceil(gap * size * width / (box[2] - box[0])),
        math.ceil(gap * size * height / (box[3] - box[1])),
    )
    drafted = image.draft("RGB", wanted)
    if drafted is not None:
        x, y = drafted[1][2] / width, drafted[1][3] / height
        box = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    kernel = module.Resampling[interpolation.upper()]
    # Rounding may leave an edge a hair outside.
    inside = (
        max(box[0], 0.0),
        max(box[1], 0.0),
        min(box[2], float(rgb.width)),
        min(box[3], float(rgb.height)),
    )
    return np.asarray(rgb.resize((size, size), kernel, box=inside, reducing_gap=max(gap, 2.0)))
