"""RandAugment as batched tensor operations.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space",
NeurIPS 2020: operations of AutoAugment, uniformly drawn, all with one magnitude. Its ImageNet
setting for ResNet-50 is two operations of magnitude 9 of 10.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .autoaugment import OPERATIONS, _check
from .transforms import cutout, flip, normalize

__all__ = ["RandAugmentView", "rand_augment"]

# The paper's fourteen: the identity in place of AutoAugment's inversion.
_NAMES = ("identity", *(name for name in OPERATIONS if name != "invert"))


def rand_augment(
    images: Tensor,
    generator: torch.Generator,
    *,
    operations: int = 2,
    magnitude: int = 9,
    fill: int = 128,
) -> Tensor:
    """Take each image through operations of its own.

    Args:
        images: uint8 ``[N, 3, H, W]``.
        generator: source of the numbers: which operations, and with which sign they act.
        operations: how many, one after the other.
        magnitude: strength of all, 0 to 10.
        fill: value of what geometric operations bring in from outside.

    Returns:
        uint8 tensor of the shape of `images`.

    Raises:
        TypeError: `images` are not uint8.
        ValueError: another shape, or a number out of range.
    """
    _check(images)
    if operations < 0 or not 0 <= magnitude <= 10:
        raise ValueError(
            "`rand_augment`: expected `operations` to be >= 0 and `magnitude` in 0..10, got "
            f"{operations} and {magnitude}"
        )
    size, device = (len(images), operations), generator.device
    which = torch.randint(len(_NAMES), size, generator=generator, device=device)
    sign = torch.randint(0, 2, size, generator=generator, device=device) * 2 - 1
    out = images.clone()
    for step in range(operations):
        for index, name in enumerate(_NAMES):
            rows = (which[:, step] == index).nonzero().flatten()
            if name != "identity" and len(rows):
                signs = sign[rows, step].to(images.device).float()
                rows = rows.to(images.device)
                out[rows] = OPERATIONS[name](out[rows], magnitude / 10, signs, fill)
    return out


@dataclass(frozen=True)
class RandAugmentView:
    """Flip, RandAugment, normalisation, cutout, in this order.

    Called on a uint8 batch and a generator, like `Augmentation`.

    Args:
        mean: per channel, of images / 255.
        std: per channel, of images / 255, > 0.
        flip: whether mirrored images are images of the same thing.
        cutout: side of the square set to the mean colour; 0 is none.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    cutout: int = 0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment and normalise a uint8 batch ``[N, 3, H, W]``; returns float32."""
        if self.flip:
            images = flip(images, generator)
        images = rand_augment(images, generator)
        return cutout(normalize(images, self.mean, self.std), self.cutout, generator)
