"""Training-time image transforms as batched tensor operations.

Every function takes a whole batch ``[N, channels, H, W]`` and draws one random number set per image
from an explicit ``torch.Generator``. The numbers are drawn on the generator's device and moved to
the images' device, so a CPU generator gives the same transforms wherever the images are.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Inputs

__all__ = [
    "Augmentation",
    "Transform",
    "affine",
    "channel_statistics",
    "cutout",
    "flip",
    "mixup",
    "normalize",
    "rotate",
    "shift",
]


def _check_batch(function: str, images: Tensor) -> None:
    if images.dim() != 4:
        raise ValueError(
            f"`{function}`: expected `images` to be [N, channels, H, W], got {list(images.shape)}"
        )


def _draw_integers(
    low: int, high: int, n: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """n integers in [low, high), drawn on the generator's device, moved to `device`."""
    drawn = torch.randint(low, high, (n,), generator=generator, device=generator.device)
    return drawn.to(device)


def shift(images: Tensor, pixels: int, generator: torch.Generator, *, fill: float = 0) -> Tensor:
    """Shift each image by its own random offset: pad by `pixels` on every side, crop at random.

    Both offsets are uniform on ``-pixels ... pixels``; this is the "random crop with padding" of
    the CIFAR recipes.

    Args:
        images: ``[N, channels, H, W]``, any dtype.
        pixels: largest shift in pixels, >= 0.
        generator: source of the 2 N offsets.
        fill: value of the pixels that come in from outside.

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: `images` is not 4-D or `pixels` is negative.
    """
    _check_batch("shift", images)
    if pixels < 0:
        raise ValueError(f"`shift`: expected `pixels` to be >= 0, got {pixels}")
    if pixels == 0:
        return images
    n, _, height, width = images.shape
    top = _draw_integers(0, 2 * pixels + 1, n, generator, images.device)
    left = _draw_integers(0, 2 * pixels + 1, n, generator, images.device)
    padded = F.pad(images, (pixels, pixels, pixels, pixels), value=fill)
    # A view that holds every crop, [N, channels, tops, lefts, H, W]; indexing copies one an image.
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(n, device=images.device), :, top, left]


def flip(images: Tensor, generator: torch.Generator, *, p: float = 0.5) -> Tensor:
    """Mirror each image left to right with probability `p`.

    Args:
        images: ``[N, channels, H, W]``, any dtype.
        generator: source of the N draws.
        p: probability in [0, 1].

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: `images` is not 4-D or `p` lies outside [0, 1].
    """
    _check_batch("flip", images)
    if not 0 <= p <= 1:
        raise ValueError(f"`flip`: expected `p` to be in [0, 1], got {p}")
    drawn = torch.rand(images.shape[0], generator=generator, device=generator.device) < p
    return torch.where(drawn.to(images.device)[:, None, None, None], images.flip(3), images)


def affine(images: Tensor, rows: list[Tensor], fill: int) -> Tensor:
    """Take the value of each pixel from where a matrix about the centre puts it; nearest pixel.

    Args:
        images: uint8 ``[N, channels, H, W]``.
        rows: the six entries ``a, b, c, d, e, f`` in pixels, ``[N]`` each: the pixel ``(x, y)``
            comes from ``(a x + b y + c, d x + e y + f)``.
        fill: value of what comes in from outside.

    Returns:
        uint8 tensor of the shape of `images`.
    """
    n, _, height, width = images.shape
    a, b, c, d, e, f = rows
    # affine_grid measures in half sides of the image.
    theta = torch.stack(
        [a, b * height / width, 2 * c / width, d * width / height, e, 2 * f / height], dim=1
    ).view(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(
        images.float() - fill, grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return (moved + fill).to(torch.uint8)


def rotate(images: Tensor, degrees: float, generator: torch.Generator, *, fill: int = 0) -> Tensor:
    """Turn each image about its centre by an angle uniform on ``-degrees ... degrees``.

    The nearest pixel is taken, as by torchvision's ``RandomRotation``.

    Args:
        images: uint8 ``[N, channels, H, W]``.
        degrees: largest angle, >= 0.
        generator: source of the N angles.
        fill: value of the corners that come in from outside.

    Returns:
        uint8 tensor of the shape of `images`.

    Raises:
        ValueError: `images` is not 4-D or `degrees` is negative.
    """
    _check_batch("rotate", images)
    if degrees < 0:
        raise ValueError(f"`rotate`: expected `degrees` to be >= 0, got {degrees}")
    if degrees == 0:
        return images
    drawn = torch.rand(len(images), generator=generator, device=generator.device)
    angle = torch.deg2rad(degrees * (2 * drawn - 1)).to(images.device)
    zero, sin, cos = torch.zeros_like(angle), angle.sin(), angle.cos()
    return affine(images, [cos, -sin, zero, sin, cos, zero], fill)


def cutout(images: Tensor, size: int, generator: torch.Generator, *, fill: float = 0) -> Tensor:
    """Blank one square of side `size` per image, its centre uniform over the pixels.

    Squares are clipped at the border, as in the original: DeVries and Taylor, "Improved
    Regularization of Convolutional Neural Networks with Cutout", 2017.

    Args:
        images: ``[N, channels, H, W]``, any dtype.
        size: side of the square in pixels, >= 0.
        generator: source of the 2 N coordinates.
        fill: value written into the square (0 is the mean colour of normalised images).

    Returns:
        Tensor of the shape and dtype of `images`.

    Raises:
        ValueError: `images` is not 4-D or `size` is negative.
    """
    _check_batch("cutout", images)
    if size < 0:
        raise ValueError(f"`cutout`: expected `size` to be >= 0, got {size}")
    if size == 0:
        return images
    n, _, height, width = images.shape
    top = _draw_integers(0, height, n, generator, images.device) - size // 2
    left = _draw_integers(0, width, n, generator, images.device) - size // 2
    rows = torch.arange(height, device=images.device) - top[:, None]
    columns = torch.arange(width, device=images.device) - left[:, None]
    in_rows = (rows >= 0) & (rows < size)
    in_columns = (columns >= 0) & (columns < size)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], fill)


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn uint8 images into normalised float32: ``(images / 255 - mean) / std`` per channel.

    Args:
        images: uint8 ``[N, channels, H, W]``.
        mean: one value a channel, of images / 255.
        std: one value a channel, of images / 255, > 0.

    Returns:
        float32 tensor of the shape of `images`.

    Raises:
        TypeError: `images` is not uint8.
        ValueError: `images` is not 4-D, or `mean` or `std` do not have one value a channel.
    """
    _check_batch("normalize", images)
    if images.dtype != torch.uint8:
        raise TypeError(f"`normalize`: expected `images` to be torch.uint8, got {images.dtype}")
    channels = images.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise ValueError(
            f"`normalize`: expected `mean` and `std` to have one value for each of {channels} "
            f"channels, got {len(mean)} and {len(std)}"
        )
    mean_255 = torch.tensor([255 * m for m in mean], device=images.device)[:, None, None]
    std_255 = torch.tensor([255 * s for s in std], device=images.device)[:, None, None]
    return images.float().sub_(mean_255).div_(std_255)


def mixup(
    images: Tensor, labels: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Mix each image with another of its batch: ``lam * x + (1 - lam) * x[permutation]``.

    ``lam ~ Beta(alpha, alpha)``, one a batch. Zhang et al., "mixup: Beyond Empirical Risk
    Minimization", 2018. The loss that goes with it is
    ``lam * loss(logits, labels_a) + (1 - lam) * loss(logits, labels_b)``.

    Args:
        images: floating-point ``[N, ...]``, already normalised.
        labels: ``[N]``.
        alpha: parameter of the Beta distribution, >= 0; 0 leaves the batch as it is (lam = 1).
        generator: source of lam and of the permutation.

    Returns:
        ``(images, labels_a, labels_b, lam)``: mixed images, labels of the first and of the second
        image of each pair, and the weight of the first as a float.

    Raises:
        TypeError: `images` are not floating-point.
        ValueError: `alpha` is negative or `labels` do not have the batch's length.
    """
    if not images.is_floating_point():
        raise TypeError(f"`mixup`: expected `images` to be floating-point, got {images.dtype}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"`mixup`: expected `labels` to be [N] = [{images.shape[0]}], got {list(labels.shape)}"
        )
    if alpha < 0:
        raise ValueError(f"`mixup`: expected `alpha` to be >= 0, got {alpha}")
    if alpha == 0:
        return images, labels, labels, 1.0
    # torch's Beta distribution takes no generator; the standard library's sampler takes a seed.
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    lam = random.Random(int(seed)).betavariate(alpha, alpha)
    permutation = torch.randperm(len(labels), generator=generator, device=generator.device)
    permutation = permutation.to(images.device)
    mixed = torch.lerp(images[permutation], images, lam)
    return mixed, labels, labels[permutation], lam


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of images / 255 per channel.

    Args:
        images: uint8 ``[N, channels, H, W]``, not empty.

    Returns:
        ``(mean, std)``, one float a channel each.
    """
    mean, std = [], []
    for channel in images.unbind(1):
        # A histogram is exact and needs no floating-point copy of the images.
        histogram = torch.bincount(channel.flatten(), minlength=256).double()
        value = torch.arange(256, dtype=torch.float64) / 255
        weight = histogram / histogram.sum()
        centre = (weight * value).sum()
        mean.append(float(centre))
        std.append(float((weight * (value - centre) ** 2).sum().sqrt()))
    return tuple(mean), tuple(std)


class Transform(Protocol):
    """What a batch of a data set's inputs goes through before the network sees it."""

    def __call__(self, inputs: Tensor, generator: torch.Generator, /) -> Tensor:
        """A training batch, augmented; the same generator state gives the same batch."""

    def normalize(self, inputs: Tensor, /) -> Tensor:
        """A batch as it is evaluated, without randomness."""

    def fitted(self, inputs: Inputs, /) -> Transform:
        """The same transform with what it takes from the training inputs taken from these."""


@dataclass(frozen=True)
class Augmentation:
    """What a training batch goes through: shift, flip, turn, normalisation, cutout, in this order.

    Call it on a uint8 batch and a generator to get the float32 training batch; use
    :meth:`normalize` for evaluation. The same generator state gives the same batch. Change a field
    with ``dataclasses.replace``.

    Args:
        mean: per channel, of images / 255.
        std: per channel, of images / 255, > 0.
        shift: largest shift in pixels (pad-and-crop); 0 is off.
        flip: mirror each image left to right with probability 1/2.
        rotation: largest angle in degrees by which an image is turned; 0 is off.
        cutout: side in pixels of a square set to the mean colour; 0 is off.
        fill: uint8 value of pixels that come in from outside.

    Raises:
        ValueError: lengths of `mean` and `std` differ, a `std` is not positive, or a size is
            negative.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: int = 0
    flip: bool = False
    rotation: float = 0
    cutout: int = 0
    fill: int = 0

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"`Augmentation`: expected `mean` and `std` to have the same length, got "
                f"{len(self.mean)} and {len(self.std)}"
            )
        if not all(s > 0 for s in self.std):
            raise ValueError(f"`Augmentation`: expected `std` to be positive, got {self.std}")
        for name in ("shift", "rotation", "cutout"):
            size = getattr(self, name)
            if size < 0:
                raise ValueError(f"`Augmentation`: expected `{name}` to be >= 0, got {size}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment and normalise a uint8 batch ``[N, channels, H, W]``; returns float32."""
        images = shift(images, self.shift, generator, fill=self.fill)
        if self.flip:
            images = flip(images, generator)
        images = rotate(images, self.rotation, generator, fill=self.fill)
        return cutout(self._colours(images, generator), self.cutout, generator)

    def _colours(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Moved uint8 images as normalised float32; a subclass may change colours here."""
        return normalize(images, self.mean, self.std)

    def normalize(self, images: Tensor) -> Tensor:
        """Only the normalisation, for evaluation: uint8 ``[N, channels, H, W]`` to float32."""
        return normalize(images, self.mean, self.std)

    def fitted(self, inputs: Inputs) -> Augmentation:
        """The same augmentation with mean and std of other images.

        Images that are not in memory keep the ones they have.
        """
        if not isinstance(inputs, Tensor):
            return self
        mean, std = channel_statistics(inputs)
        return dataclasses.replace(self, mean=mean, std=std)
