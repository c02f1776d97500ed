"""The learning rate of every step."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltkernels.train.tables import ScheduleConfig

__all__ = ["lr_factor"]


def lr_factor(
    schedule: ScheduleConfig, epoch: int, epochs: int, step: int = 0, steps_per_epoch: int = 1
) -> float:
    """Factor of the base learning rate at one step.

    ``f = (k + 1) / K`` in the ``K`` steps (epochs) of warm-up; then the factor of the last
    milestone reached, or ``(1 + cos(pi u)) / 2`` with ``u`` the done fraction of the rest.

    Args:
        schedule: kind, warm-up, milestones.
        epoch: 0-based epoch.
        epochs: epochs of the run.
        step: 0-based step in the epoch.
        steps_per_epoch: steps of an epoch.

    Returns:
        The factor; constant in an epoch with ``schedule.per_epoch``, which is the schedule of the
        LDAM-DRW and BKD codes (warm-up 5 of 200 epochs, milestones after epochs 160 and 180).
    """
    if schedule.per_epoch:
        done, total = epoch, epochs
    else:
        done, total = epoch * steps_per_epoch + step, epochs * steps_per_epoch
    warmup = round(schedule.warmup * total)
    if done < warmup:
        return (done + 1) / warmup
    if schedule.kind == "cosine":
        return (1 + math.cos(math.pi * (done - warmup) / max(1, total - warmup))) / 2
    reached = bisect_right(schedule.milestones, done / total)
    return schedule.factors[reached - 1] if reached else 1.0
