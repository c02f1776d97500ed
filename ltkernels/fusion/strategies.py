"""The strategies by name, all used in one way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from ._experts import ClassLists, Experts
from .calibration import JointCalibration
from .kl import kl_min
from .selection import ExpertSelection
from .stacking import Stacking
from .strategy import LearnedFusion
from .voting import soft_vote

__all__ = ["STRATEGIES", "KLMin", "SoftVote", "Strategy", "make_fusion"]

Strategy: TypeAlias = Literal[
    "kl_min", "soft_vote", "expert_selection", "stacking", "joint_calibration"
]

STRATEGIES: tuple[Strategy, ...] = (
    "kl_min",
    "soft_vote",
    "expert_selection",
    "stacking",
    "joint_calibration",
)
"""In the order of the paper, sec. 3.3.1 to 3.3.5."""


class _Unlearned(LearnedFusion):
    """A strategy without parameters, as a module."""

    _function: Callable[..., Tensor]

    def forward(
        self,
        expert_logits: list[Tensor] | tuple[Tensor, ...],
        classes: ClassLists | None = None,
    ) -> Tensor:
        """Log-probabilities ``[N, C]``, without gradient."""
        experts = self.check(expert_logits, classes)
        subsets = experts.subsets
        q = type(self)._function(experts.logits, subsets.classes, num_classes=subsets.num_classes)
        return q.log()

    def _fit(self, experts: Experts, target: Tensor, weight: Tensor) -> None:
        """There is nothing to fit."""


class KLMin(_Unlearned):
    """:func:`kl_min` as a module."""

    _function = staticmethod(kl_min)


class SoftVote(_Unlearned):
    """:func:`soft_vote` as a module."""

    _function = staticmethod(soft_vote)


def make_fusion(
    name: str,
    classes: ClassLists,
    num_classes: int | None = None,
    *,
    reject: bool | Sequence[bool] = True,
    per: Literal["class", "expert"] = "class",
    calibration_decay: float = 5e-4,
) -> LearnedFusion:
    """A strategy as a module: ``fit`` on validation images, then log-probabilities ``[N, C]``.

    Args:
        name: one of :data:`STRATEGIES`.
        classes: the class indices of each expert's columns.
        num_classes: C; by default the largest class plus one.
        reject: whether the experts have a reject class, one value for all or one an expert.
        per, calibration_decay: ``per`` and ``weight_decay`` of :class:`JointCalibration`.

    Raises:
        TypeError, ValueError, IndexError: an unknown name, class lists that are none.
    """
    if name == "joint_calibration":
        return JointCalibration(
            classes, num_classes, reject=reject, per=per, weight_decay=calibration_decay
        )
    kinds: dict[str, type[LearnedFusion]] = {
        "kl_min": KLMin,
        "soft_vote": SoftVote,
        "expert_selection": ExpertSelection,
        "stacking": Stacking,
    }
    if name not in kinds:
        raise ValueError(
            f"`make_fusion`: expected `name` to be one of {', '.join(STRATEGIES)}, got {name!r}"
        )
    return kinds[name](classes, num_classes, reject=reject)
