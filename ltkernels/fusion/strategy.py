"""What the fusions that are fitted on validation images have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ltkernels import _checks

from ._experts import ClassLists, Experts, check_logits, check_subsets, check_target

__all__ = ["LearnedFusion"]

Self = TypeVar("Self", bound="LearnedFusion")


class LearnedFusion(nn.Module, ABC):
    """A fusion with parameters, called as the functions are: ``fusion(expert_logits, classes)``.

    Args:
        classes: the class indices of each expert's columns.
        num_classes: C; by default the largest class plus one.
        reject: whether the experts have a reject class, one value for all or one an expert.

    Raises:
        TypeError, ValueError, IndexError: class lists that are none.
    """

    def __init__(
        self,
        classes: ClassLists,
        num_classes: int | None = None,
        *,
        reject: bool | Sequence[bool] = True,
    ) -> None:
        super().__init__()
        op = type(self).__name__
        self.subsets = check_subsets(op, classes, num_classes)
        count = len(self.subsets.classes)
        self.reject = (reject,) * count if isinstance(reject, bool) else tuple(reject)
        if len(self.reject) != count:
            raise ValueError(
                f"`{op}`: expected `reject` to be one value for each of {count} experts, "
                f"got {len(self.reject)}"
            )

    @property
    def widths(self) -> list[int]:
        """Columns of each expert's logits."""
        pairs = zip(self.subsets.classes, self.reject, strict=True)
        return [len(own) + int(reject) for own, reject in pairs]

    def check(self, expert_logits: object, classes: ClassLists | None = None) -> Experts:
        """The checked logits of the experts this fusion was made for."""
        op = type(self).__name__
        if classes is not None:
            given = check_subsets(op, classes, self.subsets.num_classes).classes
            mine = self.subsets.classes
            if [c.tolist() for c in given] != [c.tolist() for c in mine]:
                raise ValueError(
                    f"`{op}`: expected `classes` to be those it was made for: "
                    f"{[len(c) for c in mine]} of them, got {[len(c) for c in given]}"
                    if [len(c) for c in mine] != [len(c) for c in given]
                    else f"`{op}`: expected `classes` in the order it was made for"
                )
        experts = check_logits(op, expert_logits, self.subsets)
        for e, (z, width) in enumerate(zip(experts.logits, self.widths, strict=True)):
            if z.shape[1] != width:
                kind = "with" if self.reject[e] else "without"
                raise ValueError(
                    f"`{op}`: expected `expert_logits[{e}]` {kind} a reject class, "
                    f"[N, {width}], got {list(z.shape)}"
                )
        return experts

    def fit(
        self: Self,
        expert_logits: list[Tensor] | tuple[Tensor, ...],
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
    ) -> Self:
        """Fit on images that no expert was trained on; deterministic.

        Args:
            expert_logits: of each expert ``[N, S_e]`` or ``[N, S_e + 1]``, N > 0.
            target: int64 ``[N]``, the true classes.
            sample_weight: ``[N]``, >= 0; see :func:`balanced_weight`. By default 1.

        Returns:
            This fusion.

        Raises:
            TypeError, ValueError, IndexError: arguments that do not fit each other.
        """
        op = type(self).__name__
        experts = self.check(expert_logits)
        y = check_target(op, "target", target, experts)
        if experts.rows == 0:
            raise ValueError(f"`{op}`: expected `expert_logits` of at least one image, got [0, S]")
        like = experts.logits[0]
        if sample_weight is None:
            weight = torch.ones(len(y), dtype=torch.float64, device=like.device)
        else:
            weight = _checks.vector(
                op, "sample_weight", sample_weight, "N", len(y), like, non_negative=True
            ).to(like.device, torch.float64)
            if not bool(weight.sum() > 0):
                raise ValueError(f"`{op}`: expected `sample_weight` not to be 0 everywhere")
        with torch.no_grad():
            self._fit(experts, y, weight / weight.sum())
        return self

    @abstractmethod
    def _fit(self, experts: Experts, target: Tensor, weight: Tensor) -> None:
        """Set the parameters; `weight` is float64 ``[N]`` of sum 1."""

    @abstractmethod
    def forward(
        self,
        expert_logits: list[Tensor] | tuple[Tensor, ...],
        classes: ClassLists | None = None,
    ) -> Tensor:
        """Log-probabilities ``[N, C]`` of the experts' logits.

        Args:
            expert_logits: of each expert ``[N, S_e]`` or ``[N, S_e + 1]``.
            classes: may be given as to the functions; those this fusion was made for.
        """
