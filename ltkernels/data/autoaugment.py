"""The AutoAugment policy for CIFAR-10 as batched tensor operations.

Cubuk et al., "AutoAugment: Learning augmentation policies from data", CVPR 2019, table 7; the
policy that long-tailed CIFAR recipes (PaCo, NCL, ECL) take for CIFAR-100, too. The operations are
those of Pillow on uint8 images, so that an image becomes the very one that Pillow makes of it,
but for geometric operations' interpolation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .transforms import _check_batch, affine, cutout, flip, normalize, shift

__all__ = ["CIFAR_POLICY", "OPERATIONS", "PolicyView", "apply_operation", "auto_augment"]

Choice = tuple[str, float, int]
"""Operation, its probability, its magnitude 0 to 9."""

CIFAR_POLICY: tuple[tuple[Choice, Choice], ...] = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("auto_contrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("auto_contrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 1)),
)
"""25 pairs of operations; an image goes through one."""


def auto_augment(images: Tensor, generator: torch.Generator, *, fill: int = 128) -> Tensor:
    """Take each image through a random pair of operations of the CIFAR-10 policy.

    Args:
        images: uint8 ``[N, 3, H, W]``.
        generator: source of the numbers: pair, whether and with which sign each operation acts.
        fill: value of what geometric operations bring in from outside.

    Returns:
        uint8 tensor of the shape of `images`.

    Raises:
        TypeError: `images` are not uint8.
        ValueError: `images` are not ``[N, 3, H, W]``.
    """
    _check(images)
    n, device = len(images), generator.device
    pair = torch.randint(len(CIFAR_POLICY), (n,), generator=generator, device=device)
    acts = torch.rand((n, 2), generator=generator, device=device)
    sign = torch.randint(0, 2, (n, 2), generator=generator, device=device) * 2 - 1
    out = images.clone()
    for place in range(2):
        chosen: dict[tuple[str, int], list[Tensor]] = {}
        for index, choices in enumerate(CIFAR_POLICY):
            name, probability, magnitude = choices[place]
            which = (pair == index) & (acts[:, place] < probability)
            chosen.setdefault((name, magnitude), []).append(which)
        for (name, magnitude), masks in chosen.items():
            rows = torch.stack(masks).any(0).nonzero().flatten()
            if len(rows):
                signs = sign[rows, place].to(images.device)
                rows = rows.to(images.device)
                out[rows] = apply_operation(out[rows], name, magnitude, signs, fill=fill)
    return out


def apply_operation(
    images: Tensor, name: str, magnitude: int, sign: Tensor, *, fill: int = 128
) -> Tensor:
    """One operation on every image.

    Args:
        images: uint8 ``[N, 3, H, W]``.
        name: one of :data:`OPERATIONS`.
        magnitude: 0 to 9; operations without a strength do not read it.
        sign: +1 or -1 an image, ``[N]``; which way operations that have two go.
        fill: value of what geometric operations bring in from outside.

    Returns:
        uint8 tensor of the shape of `images`.

    Raises:
        TypeError: `images` are not uint8.
        ValueError: another shape, an unknown name, or a magnitude out of range.
    """
    _check(images)
    if name not in OPERATIONS:
        raise ValueError(
            f"`apply_operation`: expected `name` to be one of {', '.join(OPERATIONS)}, got {name!r}"
        )
    if not 0 <= magnitude <= 9:
        raise ValueError(f"`apply_operation`: expected `magnitude` in 0..9, got {magnitude}")
    return OPERATIONS[name](images, magnitude / 9, sign.float(), fill)


def _check(images: Tensor) -> None:
    _check_batch("auto_augment", images)
    if images.shape[1] != 3:
        raise ValueError(
            f"`auto_augment`: expected `images` to be [N, 3, H, W], got {list(images.shape)}"
        )
    if images.dtype != torch.uint8:
        raise TypeError(f"`auto_augment`: expected `images` to be torch.uint8, got {images.dtype}")


# -- geometry: the strength is a part of the range that the paper searched ------------------------


def _shear_x(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    one, zero = torch.ones_like(sign), torch.zeros_like(sign)
    return affine(images, [one, 0.3 * strength * sign, zero, zero, one, zero], fill)


def _shear_y(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    one, zero = torch.ones_like(sign), torch.zeros_like(sign)
    return affine(images, [one, zero, zero, 0.3 * strength * sign, one, zero], fill)


def _translate_x(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    one, zero = torch.ones_like(sign), torch.zeros_like(sign)
    pixels = (150 / 331 * strength * images.shape[3] * sign).round()
    return affine(images, [one, zero, pixels, zero, one, zero], fill)


def _translate_y(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    one, zero = torch.ones_like(sign), torch.zeros_like(sign)
    pixels = (150 / 331 * strength * images.shape[2] * sign).round()
    return affine(images, [one, zero, zero, zero, one, pixels], fill)


def _rotate(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    angle = torch.deg2rad(30 * strength * sign)
    zero = torch.zeros_like(angle)
    return affine(images, [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero], fill)


# -- colours: a blend with an origin by the factor 1 +- 0.9 strength, as Pillow's enhancers -------


def _blend(images: Tensor, origin: Tensor, strength: float, sign: Tensor) -> Tensor:
    factor = (1 + 0.9 * strength * sign)[:, None, None, None]
    origin = origin.float()
    blended = origin + factor * (images.float() - origin)
    return blended.clamp(0, 255).to(torch.uint8)  # Pillow cuts off, too


def _luma(images: Tensor) -> Tensor:
    """Pillow's grey value, ``[N, 1, H, W]``, rounded as there."""
    red, green, blue = images.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16).unsqueeze(1)


def _brightness(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    return _blend(images, torch.zeros_like(images), strength, sign)


def _color(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    return _blend(images, _luma(images), strength, sign)


def _contrast(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    mean = (_luma(images).float().mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return _blend(images, mean, strength, sign)


def _sharpness(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    """Blend with Pillow's smooth filter; the border has no smooth value and stays."""
    weight = images.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=torch.float32)
    kernel = weight.expand(3, 1, 3, 3).contiguous()
    inner = F.conv2d(images.float(), kernel, groups=3)
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = (inner / 13 + 0.5).floor()
    return _blend(images, smooth, strength, sign)


# -- values ---------------------------------------------------------------------------------------


def _invert(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    return 255 - images


def _solarize(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    return torch.where(images.float() < 256 - 256 * strength, images, 255 - images)


def _posterize(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    dropped = 8 - round(8 - 4 * strength)  # low bits
    return images & (0xFF << dropped & 0xFF)


def _auto_contrast(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    values = images.flatten(2).double()
    low, high = values.amin(2, keepdim=True), values.amax(2, keepdim=True)
    span = high - low
    # 255 / tensor would be 255 times a rounded reciprocal, which Pillow's is not.
    scale = torch.full_like(span, 255) / torch.where(span > 0, span, 1)
    stretched = (values * scale - low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(span > 0, stretched, images.flatten(2)).view_as(images)


def _equalize(images: Tensor, strength: float, sign: Tensor, fill: int) -> Tensor:
    n, channels, height, width = images.shape
    values = images.flatten(2).long()
    histogram = torch.zeros(n, channels, 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(2, values, torch.ones_like(values))
    largest = values.amax(2, keepdim=True)
    step = (height * width - histogram.gather(2, largest)) // 255
    below = histogram.cumsum(2) - histogram
    table = torch.where(step > 0, (step // 2 + below) // step.clamp(min=1), 0).clamp(max=255)
    equalized = table.gather(2, values).to(torch.uint8)
    return torch.where(step > 0, equalized, images.flatten(2)).view_as(images)


OPERATIONS: dict[str, Callable[[Tensor, float, Tensor, int], Tensor]] = {
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "invert": _invert,
    "solarize": _solarize,
    "posterize": _posterize,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
}
"""Operations by name."""


@dataclass(frozen=True)
class PolicyView:
    """Shift, flip, AutoAugment, normalisation, cutout, in this order: the first view of NCL.

    Called on a uint8 batch and a generator, like `Augmentation`. The square that cutout blanks has
    the mean colour; it is black in NCL's code.

    Args:
        mean: per channel, of images / 255.
        std: per channel, of images / 255, > 0.
        shift: largest shift in pixels.
        flip: whether mirrored images are images of the same thing.
        cutout: side of the blanked square; 0 is none.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: int = 4
    flip: bool = True
    cutout: int = 16

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment and normalise a uint8 batch ``[N, 3, H, W]``; returns float32."""
        images = shift(images, self.shift, generator)
        if self.flip:
            images = flip(images, generator)
        images = auto_augment(images, generator)
        return cutout(normalize(images, self.mean, self.std), self.cutout, generator)
