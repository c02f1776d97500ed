"""Weights that make the images of a validation set count as those of a balanced one."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["balanced_weight"]


def balanced_weight(target: Tensor) -> Tensor:
    """A weight for each image, so that every class present weighs the same.

    The paper fits its fusion on a balanced validation set; images held out of a long-tailed
    training set are as long-tailed as that, and a fusion fitted on them as they are would learn
    the training prior again.

    Args:
        target: int64 ``[N]``, class of each image.

    Returns:
        float64 ``[N]`` with mean 1: ``N / (C_present n_y)``.

    Raises:
        TypeError, ValueError: `target` is not int64 ``[N]`` with N > 0.
    """
    if target.dtype != torch.int64:
        raise TypeError(f"`balanced_weight`: expected `target` to be int64, got {target.dtype}")
    if target.dim() != 1 or len(target) == 0:
        raise ValueError(
            f"`balanced_weight`: expected `target` to be [N], N > 0, got {list(target.shape)}"
        )
    counts = torch.bincount(target)
    return len(target) / (int((counts > 0).sum()) * counts[target].double())
