"""Distillation losses: plain (KD) and balanced (BKD)."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from .. import _checks
from .. import functional as F
from .._checks import ClassCounts, Reduction
from ..reference.distillation import kl_per_class
from ..schedules import Preset, check_preset
from ._base import ClassWeight, Reweighted, counts_of


class _DistillationLoss(Reweighted):
    """Cross-entropy + alpha T^2 KL(teacher || student), in the call forms of KD and BKD."""

    def __init__(
        self,
        counts: Tensor | None,
        T: float,
        weight: ClassWeight,
        alpha: float,
        drw_epoch: int | None,
        beta: float,
        reduction: Reduction,
    ) -> None:
        super().__init__(counts, weight, drw_epoch, beta, reduction)
        name = type(self).__name__
        self.T = _checks.positive(name, "T", T)
        self.alpha = _checks.number(name, "alpha", alpha)

    @overload
    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        alpha: None = None,
        *,
        target_b: Tensor | None = None,
        lam: float | Tensor | None = None,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        alpha: float,
        *,
        target_b: Tensor | None = None,
        lam: float | Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        alpha: float | None = None,
        *,
        target_b: Tensor | None = None,
        lam: float | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The loss; with `alpha` given, the pair (loss, KL a class) of the official code.

        Args:
            student: logits `[N, C]`.
            teacher: logits `[N, C]`, a constant.
            target: class indices int64 `[N]`, or probabilities `[N, C]` where the cross-entropy
                is not weighted.
            alpha: factor of the distillation term in this call, instead of the module's.
            target_b, lam: mixup's second labels and the share of the first.

        Returns:
            The loss. With `alpha`: also the KL's terms a class, `[C]`, means over the batch
            without T^2 and without gradient, which cost a second pass.
        """
        loss = self._loss(
            student, teacher, target, self.alpha if alpha is None else alpha, target_b, lam
        )
        if alpha is None:
            return loss
        with torch.no_grad():
            return loss, kl_per_class(student, teacher, self._teacher_weight(), self.T)

    def _teacher_weight(self) -> Tensor | None:
        """The class weights that balance the teacher."""
        return None

    def _loss(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        alpha: float,
        target_b: Tensor | None,
        lam: float | Tensor | None,
    ) -> Tensor:
        return F.bkd_loss(
            student,
            teacher,
            target,
            self._teacher_weight(),
            self.T,
            alpha,
            target_b=target_b,
            lam=lam,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        parts = [f"T={self.T:g}", f"alpha={self.alpha:g}"]
        if self.class_weight is not None:
            parts.append(f"class_weight=[{len(self.class_weight)}]")
        if self.drw_epoch is not None:
            parts.append(f"drw_epoch={self.drw_epoch}")
        return ", ".join([*parts, f"reduction={self.reduction!r}"])


class BKDLoss(_DistillationLoss):
    r"""Balanced knowledge distillation.

    .. math::
        L = CE(z^s, y) + \alpha T^2 KL(q \Vert p), \quad
        q = \mathrm{softmax}(z^t / T + \log w), \quad p = \mathrm{softmax}(z^s / T)

    Two call forms: `loss(student, teacher, target)` is the paper's, a tensor from one pass over
    both logits; `loss(student, teacher, target, alpha)` is the official code's, the pair
    `(loss, kd)` with the KL a class. Constructor and call take the official arguments in their
    order, so that swapping the import is the whole migration. Paper and code agree on the loss;
    the teacher is always a constant here.

    Args:
        class_counts: training images a class, `[C]`.
        T: temperature.
        weight: w: "effective_number" (of the counts), "inverse_frequency", class weights `[C]`,
            or None for plain distillation, which is what the official class does with None.
        alpha: factor of the distillation term where the call does not name it.
        drw_epoch: w is in force from this epoch on (0-based; the paper defers to 160 on CIFAR-10
            and not at all on CIFAR-100). Until then, and while `on_epoch_start` is never called,
            it is 1.
        beta: of the effective number.
        reduction: "mean" over N, "sum", or "none" (`[N]`).
        cls_num_list: another name of `class_counts`.

    Source: Zhang et al., "Balanced knowledge distillation for long-tailed learning",
    Neurocomputing 2023, eqs. 2 and 6-8; code EricZsy/BalancedKnowledgeDistillation.
    """

    def __init__(
        self,
        class_counts: ClassCounts | None = None,
        T: float = 2.0,
        weight: ClassWeight = "effective_number",
        *,
        alpha: float = 1.0,
        drw_epoch: int | None = None,
        beta: float = 0.9999,
        reduction: Reduction = "mean",
        cls_num_list: ClassCounts | None = None,
    ) -> None:
        counts = counts_of("BKDLoss", class_counts, cls_num_list)
        super().__init__(counts, T, weight, alpha, drw_epoch, beta, reduction)

    def _teacher_weight(self) -> Tensor | None:
        return self.class_weight


class KDLoss(_DistillationLoss):
    r"""Plain knowledge distillation: CE(z^s, y) + alpha T^2 KL(softmax(z^t/T) || softmax(z^s/T)).

    The call forms are those of `BKDLoss`.

    Args:
        class_counts: training images a class, `[C]`; needed for a named `weight` only.
        T: temperature.
        weight: class weights of the cross-entropy: `[C]`, "effective_number",
            "inverse_frequency", or None.
        alpha, drw_epoch, beta, reduction, cls_num_list: as `BKDLoss`.
        preset: "official" weighs the cross-entropy by `weight` (a mean over the weights, as
            `F.cross_entropy`), as the released `KDLoss` does and its training code uses it;
            "paper" never weighs it, as in the paper's KD baseline.
        ce_weight: whether `weight` applies, instead of the preset's choice.

    Source: Hinton et al., "Distilling the knowledge in a neural network", 2015; code
    EricZsy/BalancedKnowledgeDistillation.
    """

    def __init__(
        self,
        class_counts: ClassCounts | None = None,
        T: float = 2.0,
        weight: ClassWeight = None,
        *,
        alpha: float = 1.0,
        drw_epoch: int | None = None,
        beta: float = 0.9999,
        preset: Preset = "official",
        ce_weight: bool | None = None,
        reduction: Reduction = "mean",
        cls_num_list: ClassCounts | None = None,
    ) -> None:
        check_preset("KDLoss", preset)
        counts = counts_of("KDLoss", class_counts, cls_num_list)
        super().__init__(counts, T, weight, alpha, drw_epoch, beta, reduction)
        self.ce_weight = preset == "official" if ce_weight is None else ce_weight

    def _loss(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        alpha: float,
        target_b: Tensor | None,
        lam: float | Tensor | None,
    ) -> Tensor:
        if self.class_weight is None or not self.ce_weight:
            return super()._loss(student, teacher, target, alpha, target_b, lam)
        ce = self._weighted_ce(student, target)
        if target_b is not None:
            if lam is None:
                raise ValueError("`KDLoss`: expected `lam` where `target_b` is given")
            ce = lam * ce + (1 - lam) * self._weighted_ce(student, target_b)
        if alpha == 0:
            return ce
        return ce + alpha * F.kd_loss(student, teacher, self.T, reduction=self.reduction)

    def _weighted_ce(self, student: Tensor, target: Tensor) -> Tensor:
        return F.adjusted_cross_entropy(
            student, target, class_weight=self.class_weight, reduction=self.reduction
        )
