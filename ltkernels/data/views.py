"""The two views of an image that contrastive learning compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .autoaugment import PolicyView
from .contrast_view import ContrastView
from .transforms import Augmentation

__all__ = ["VIEWS", "View", "make_view"]

View: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""uint8 images and a generator -> float32 images, augmented and normalised."""

VIEWS = ("dataset", "autoaugment", "contrast")
"""Names that :func:`make_view` takes."""


def make_view(
    name: str, augmentation: Augmentation, *, cutout: int | None = None, crop: float = 0.2
) -> View:
    """A view of a data set's images.

    Args:
        name: ``"dataset"`` for the data set's own augmentation; ``"autoaugment"`` with the CIFAR
            policy in it (:class:`PolicyView`, colour images only); ``"contrast"`` for MoCo v2's
            (:class:`ContrastView`), which mirrors images where the data set's does.
        augmentation: of the data set.
        cutout: side of the square that is blanked, but for ``"contrast"``; None is the data set's.
        crop: smallest area of the crop of ``"contrast"``.

    Returns:
        The view.

    Raises:
        ValueError: unknown `name`, or ``"autoaugment"`` of images that are not in colour.
    """
    if name == "contrast":
        return ContrastView(augmentation.mean, augmentation.std, augmentation.flip, crop)
    size = augmentation.cutout if cutout is None else cutout
    if name == "autoaugment":
        if len(augmentation.mean) != 3:
            raise ValueError(
                "`make_view`: expected images of 3 channels for 'autoaugment', got "
                f"{len(augmentation.mean)}"
            )
        return PolicyView(
            augmentation.mean, augmentation.std, augmentation.shift, augmentation.flip, size
        )
    if name != "dataset":
        raise ValueError(
            f"`make_view`: expected `name` to be one of {', '.join(VIEWS)}, got {name!r}"
        )
    return dataclasses.replace(augmentation, cutout=size)
