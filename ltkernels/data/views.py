"""The two views of an image that contrastive learning compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .autoaugment import PolicyView
from .contrast_view import ContrastView
from .randaugment import RandAugmentView
from .transforms import Augmentation

__all__ = ["VIEWS", "View", "make_view"]

View: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""uint8 images and a generator -> float32 images, augmented and normalised."""

VIEWS = ("dataset", "autoaugment", "randaugment", "contrast")
"""Names that :func:`make_view` takes."""


def make_view(
    name: str, augmentation: Augmentation, *, cutout: int | None = None, crop: float = 0.2
) -> View:
    """A view of a data set's images.

    Args:
        name: ``"dataset"`` for the data set's own augmentation; ``"autoaugment"`` with the CIFAR
            policy in it (:class:`PolicyView`, colour images only); ``"randaugment"``
            (:class:`RandAugmentView`, likewise); ``"contrast"`` for MoCo v2's
            (:class:`ContrastView`), which mirrors images where the data set's does.
        augmentation: of the data set.
        cutout: side of the square that is blanked, but for ``"contrast"``; None is the data set's.
        crop: smallest area of the crop of ``"contrast"``.

    Returns:
        The view.

    Raises:
        ValueError: unknown `name`, or an augmentation of colours for images without.
    """
    if name == "contrast":
        return ContrastView(augmentation.mean, augmentation.std, augmentation.flip, crop)
    size = augmentation.cutout if cutout is None else cutout
    if name in ("autoaugment", "randaugment") and len(augmentation.mean) != 3:
        raise ValueError(
            f"`make_view`: expected images of 3 channels for {name!r}, got {len(augmentation.mean)}"
        )
    if name == "randaugment":
        return RandAugmentView(augmentation.mean, augmentation.std, augmentation.flip, size)
    if name == "autoaugment":
        return PolicyView(
            augmentation.mean, augmentation.std, augmentation.shift, augmentation.flip, size
        )
    if name != "dataset":
        raise ValueError(
            f"`make_view`: expected `name` to be one of {', '.join(VIEWS)}, got {name!r}"
        )
    return dataclasses.replace(augmentation, cutout=size)
