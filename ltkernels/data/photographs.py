"""The augmentation of photographs after they are cropped: flip and colours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .contrast_view import color_jitter
from .transforms import Augmentation

__all__ = ["PhotoAugmentation"]


@dataclass(frozen=True)
class PhotoAugmentation(Augmentation):
    """:class:`Augmentation` with colour jitter after the flip, on the device of the images.

    Args:
        jitter: strength of brightness, contrast and saturation, in random order; 0 is off.
    """

    jitter: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.jitter <= 1:
            raise ValueError(
                f"`PhotoAugmentation`: expected `jitter` to be in 0..1, got {self.jitter}"
            )

    def _colours(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if not self.jitter:
            return super()._colours(images, generator)
        strength = dict.fromkeys(("brightness", "contrast", "saturation"), self.jitter)
        coloured = color_jitter(images.float() / 255, generator, **strength, hue=0)
        mean, std = (coloured.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (coloured - mean) / std
