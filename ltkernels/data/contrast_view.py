"""The augmentation of contrastive learning: crops, colours, blur, as batched tensor operations.

Chen et al., "Improved baselines with momentum contrastive learning" (MoCo v2), 2020, whose
augmentation is SimCLR's with half its strength. The functions take float images in [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .transforms import _check_batch, flip

__all__ = ["ContrastView", "color_jitter", "gaussian_blur", "grayscale", "random_resized_crop"]

_LUMA = (0.299, 0.587, 0.114)


def _uniform(
    low: float, high: float, n: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """n numbers, ``[n, 1, 1, 1]``."""
    drawn = torch.rand(n, generator=generator, device=generator.device).to(device)
    return (low + (high - low) * drawn)[:, None, None, None]


def _sometimes(images: Tensor, changed: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Each changed image with probability p, else the image."""
    return torch.where(_uniform(0, 1, len(images), generator, images.device) < p, changed, images)


def random_resized_crop(
    images: Tensor,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Cut a random box out of each image and bring it back to the image's size, bilinearly.

    Area and logarithm of the aspect ratio are uniform. A box that is longer than the image is cut
    to the image's side; torchvision draws up to ten others first.

    Args:
        images: float ``[N, channels, H, W]``.
        generator: source of the 4 N numbers.
        scale: smallest and largest area of the box, of the image's.
        ratio: smallest and largest width over height, relative to the image's.

    Returns:
        Tensor of the shape of `images`.

    Raises:
        ValueError: `images` is not 4-D, or a range is empty or not positive.
    """
    _check_batch("random_resized_crop", images)
    for name, (low, high) in (("scale", scale), ("ratio", ratio)):
        if not 0 < low <= high:
            raise ValueError(
                f"`random_resized_crop`: expected `{name}` to be a rising pair above 0, got "
                f"{(low, high)}"
            )
    draw = partial(_uniform, n=len(images), generator=generator, device=images.device)
    area = draw(*scale).flatten()
    aspect = draw(math.log(ratio[0]), math.log(ratio[1])).flatten().exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    # In the coordinates of affine_grid, where the image is [-1, 1] and the box has these centres.
    x = (1 - width) * draw(-1, 1).flatten()
    y = (1 - height) * draw(-1, 1).flatten()
    zero = torch.zeros_like(x)
    boxes = torch.stack([width, zero, x, zero, height, y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(boxes.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def color_jitter(
    images: Tensor,
    generator: torch.Generator,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
) -> Tensor:
    """Change brightness, contrast, saturation and hue by random amounts, in random order.

    Factors are uniform on ``1 - strength ... 1 + strength``, the hue's shift on ``-hue ... hue`` of
    a turn; every image has its own order. Saturation and hue of images without three channels stay.

    Args:
        images: float ``[N, channels, H, W]`` in [0, 1].
        generator: source of the numbers.
        brightness: strength, 0 to 1.
        contrast: strength, 0 to 1.
        saturation: strength, 0 to 1.
        hue: strength, 0 to 1/2.

    Returns:
        Tensor of the shape of `images`, in [0, 1].

    Raises:
        ValueError: `images` is not 4-D or a strength is out of range.
    """
    _check_batch("color_jitter", images)
    strengths = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, strength, most in (*((k, v, 1.0) for k, v in strengths.items()), ("hue", hue, 0.5)):
        if not 0 <= strength <= most:
            raise ValueError(
                f"`color_jitter`: expected `{name}` to be in 0..{most:g}, got {strength}"
            )
    draw = partial(_uniform, n=len(images), generator=generator, device=images.device)
    blends = (_black, _mean_grey, _grey)
    factors = [draw(1 - strength, 1 + strength) for strength in strengths.values()]
    turn = draw(-hue, hue)
    keys = torch.rand((len(images), 4), generator=generator, device=generator.device)
    order = keys.argsort(1).to(images.device)
    out = images
    for place in range(4):
        step = order[:, place]
        # Every step of every image at once costs less than taking the images apart.
        for kind, (origin, factor) in enumerate(zip(blends, factors, strict=True)):
            changed = torch.lerp(origin(out), out, factor).clamp(0, 1)
            out = torch.where((step == kind)[:, None, None, None], changed, out)
        if images.shape[1] == 3 and hue > 0:
            out = torch.where((step == 3)[:, None, None, None], _turn_hue(out, turn), out)
    return out


def _black(images: Tensor) -> Tensor:
    return torch.zeros_like(images)


def _grey(images: Tensor) -> Tensor:
    """Luma in every channel."""
    if images.shape[1] != 3:
        return images
    luma = images.new_tensor(_LUMA)[:, None, None]
    return (images * luma).sum(1, keepdim=True).expand_as(images)


def _mean_grey(images: Tensor) -> Tensor:
    return _grey(images).mean((1, 2, 3), keepdim=True).expand_as(images)


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """RGB images with the hue of HSV moved by so many turns ``[N, 1, 1, 1]``."""
    red, green, blue = images.unbind(1)
    value, largest = images.max(1)
    chroma = value - images.amin(1)
    safe = torch.where(chroma > 0, chroma, 1)
    sixths = torch.stack([(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe])
    hue = sixths.gather(0, largest.unsqueeze(0)).squeeze(0) + 6 * turn[:, 0]
    place = torch.tensor([5.0, 3.0, 1.0], device=images.device).to(images.dtype)[:, None, None]
    k = (place + hue.unsqueeze(1)).remainder(6)
    fade = torch.minimum(k, 4 - k).clamp(0, 1)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * fade


def grayscale(images: Tensor, generator: torch.Generator, *, p: float = 0.2) -> Tensor:
    """Take the colours out of each image with probability `p`; its channels stay as many.

    Args:
        images: float ``[N, channels, H, W]``; left alone without three channels.
        generator: source of the N draws.
        p: probability.

    Returns:
        Tensor of the shape of `images`.
    """
    _check_batch("grayscale", images)
    return _sometimes(images, _grey(images), p, generator)


def gaussian_blur(
    images: Tensor,
    generator: torch.Generator,
    *,
    sigma: tuple[float, float] = (0.1, 2.0),
    p: float = 0.5,
) -> Tensor:
    """Blur each image with probability `p` by a Gaussian of its own width.

    Exact, not cut off: one product by a matrix a direction. At the border the weights of what is
    inside are brought to a sum of 1.

    Args:
        images: float ``[N, channels, H, W]``.
        generator: source of the 2 N numbers.
        sigma: smallest and largest standard deviation in pixels, > 0.
        p: probability.

    Returns:
        Tensor of the shape of `images`.

    Raises:
        ValueError: `images` is not 4-D, or `sigma` is not a rising pair above 0.
    """
    _check_batch("gaussian_blur", images)
    if not 0 < sigma[0] <= sigma[1]:
        raise ValueError(
            f"`gaussian_blur`: expected `sigma` to be a rising pair above 0, got {sigma}"
        )
    width = _uniform(*sigma, len(images), generator, images.device)

    def kernel(size: int) -> Tensor:
        at = torch.arange(size, dtype=images.dtype, device=images.device)
        weight = (-((at[:, None] - at).square()) / (2 * width.square())).exp()
        return weight / weight.sum(3, keepdim=True)

    blurred = kernel(images.shape[2]) @ images @ kernel(images.shape[3]).mT
    return _sometimes(images, blurred, p, generator)


@dataclass(frozen=True)
class ContrastView:
    """MoCo v2's augmentation: resized crop, flip, colours, greys, blur, normalisation.

    Called on a uint8 batch and a generator, like `Augmentation`.

    Args:
        mean: per channel, of images / 255.
        std: per channel, of images / 255, > 0.
        flip: whether mirrored images are images of the same thing.
        crop: smallest area of the crop.
        jitter: strength of brightness, contrast and saturation; a quarter of it is the hue's.
        jitter_p: probability that colours are changed.
        grayscale_p: probability that they are taken out.
        blur: largest standard deviation of the blur in pixels (at 224 pixels MoCo v2's is 2); 0 is
            none.
        blur_p: probability of the blur.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    crop: float = 0.2
    jitter: float = 0.4
    jitter_p: float = 0.8
    grayscale_p: float = 0.2
    blur: float = 2.0
    blur_p: float = 0.5

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment and normalise a uint8 batch ``[N, channels, H, W]``; returns float32."""
        out = random_resized_crop(images.float() / 255, generator, scale=(self.crop, 1.0))
        if self.flip:
            out = flip(out, generator)
        jittered = color_jitter(
            out,
            generator,
            brightness=self.jitter,
            contrast=self.jitter,
            saturation=self.jitter,
            hue=self.jitter / 4,
        )
        out = _sometimes(out, jittered, self.jitter_p, generator)
        if images.shape[1] == 3:
            out = grayscale(out, generator, p=self.grayscale_p)
        if self.blur > 0:
            sigma = (min(0.1, self.blur), self.blur)
            out = gaussian_blur(out, generator, sigma=sigma, p=self.blur_p)
        mean, std = (out.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (out - mean) / std
