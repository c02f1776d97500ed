"""Losses as modules, built from the training images a class.

Each takes `class_counts` first (the keyword `cls_num_list` is accepted for it) where it needs
them, keeps its state in buffers, and follows its schedule through `on_epoch_start(epoch)`
(0-based), which need never be called.
"""

from .adjusted_cross_entropy import (
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
)
from .distillation import BKDLoss, KDLoss
from .ecl import ECLLoss
from .lfme import LFMELoss
from .ncl import NCLLoss
from .outlier_exposure import OutlierExposureLoss
from .ride import RIDEDistillLoss, RIDELoss

__all__ = [
    "BKDLoss",
    "BalancedSoftmaxLoss",
    "ClassBalancedLoss",
    "ECLLoss",
    "FocalLoss",
    "KDLoss",
    "LDAMLoss",
    "LFMELoss",
    "LogitAdjustedLoss",
    "NCLLoss",
    "OutlierExposureLoss",
    "RIDEDistillLoss",
    "RIDELoss",
]
