"""The two views of an image that contrastive learning compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from .contrast_view import ContrastView
from .transforms import Augmentation

__all__ = ["VIEWS", "View", "make_view"]

View: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""uint8 images and a generator -> float32 images, augmented and normalised."""

VIEWS = ("dataset", "contrast")
"""Names that :func:`make_view` takes."""


def make_view(
    name: str, augmentation: Augmentation, *, cutout: int | None = None, crop: float = 0.2
) -> View:
    """A view of a data set's images.

    Args:
        name: ``"dataset"`` for the data set's own augmentation; ``"contrast"`` for MoCo v2's
            (:class:`ContrastView`), which mirrors images where the data set's does.
        augmentation: of the data set.
        cutout: side of the square that is blanked in ``"dataset"``; None is the data set's own.
        crop: smallest area of the crop of ``"contrast"``.

    Returns:
        The view.

    Raises:
        ValueError: unknown `name`.
    """
    if name == "contrast":
        return ContrastView(augmentation.mean, augmentation.std, augmentation.flip, crop)
    if name != "dataset":
        raise ValueError(
            f"`make_view`: expected `name` to be one of {', '.join(VIEWS)}, got {name!r}"
        )
    return augmentation if cutout is None else dataclasses.replace(augmentation, cutout=cutout)
