"""LFME: one student, taught by experts of subsets of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .. import _checks
from .. import functional as F
from .._checks import ClassCounts, Reduction
from ..metrics import Rule, shot_groups
from ..reference._rows import NEG_INF, reduce
from ..schedules import Preset, check_preset
from ._base import Reweighted, counts_of

SHOTS = ("many", "medium", "few")


class LFMELoss(Reweighted):
    r"""Learning from multiple experts: weighted cross-entropy plus distillation on every subset.

    .. math::
        L = \frac{1}{N} \sum_i \Big[ v_i \, CE(z_i, y_i)
            + \sum_l w_l \, KL(\mathrm{softmax}(z^l_i / T) \Vert \mathrm{softmax}(z_i|_{S_l} / T))
            \Big] \text{ (paper)}

    with the student's logits restricted to the classes S_l of expert l. In the official code v_i
    multiplies the student's logits instead, in both terms: an inverse temperature of each sample.
    w_l (`schedules.expert_weight`) and v_i (`schedules.instance_weight`) belong to the training
    and are given with each call.

    Args:
        class_counts: training images a class, `[C]`, by which classes are many-, medium- and
            few-shot. Subsets without a class are dropped: see `subset_names`.
        T: temperature of the distillation.
        rule: thresholds of the subsets, as in `metrics.shot_groups`; "liu" is LFME's.
        subsets: the classes of each expert, int64, instead of those of `class_counts`. An expert's
            logits are in the order of its classes.
        preset: "official" or "paper", which differ in `instance_weight_on`.
        instance_weight_on: v multiplies the "logits" (official) or the "loss" (paper).
        t2: factor T^2 of the distillation; neither paper nor code has one.
        form: "kl", or "ce" for the cross-entropy the paper prints: another value, the same
            gradient.
        focal_gamma: of the focal loss in the place of CE ("LFME + focal loss"); 0 is CE.
        reduction: "mean" over N (both codes' loss; the paper prints a sum), "sum", or "none".
        cls_num_list: another name of `class_counts`.

    Source: Xiang et al., "Learning from multiple experts: self-paced knowledge distillation for
    long-tailed classification", ECCV 2020, sec. 4; code xiangly55/LFME.
    """

    def __init__(
        self,
        class_counts: ClassCounts | None = None,
        T: float = 2.0,
        *,
        rule: Rule = "liu",
        subsets: Sequence[Tensor | Sequence[int]] | None = None,
        preset: Preset = "official",
        instance_weight_on: Literal["logits", "loss"] | None = None,
        t2: bool | float = False,
        form: Literal["kl", "ce"] = "kl",
        focal_gamma: float = 0.0,
        reduction: Reduction = "mean",
        cls_num_list: ClassCounts | None = None,
    ) -> None:
        name = "LFMELoss"
        counts = counts_of(name, class_counts, cls_num_list)
        super().__init__(counts, None, None, 0.0, reduction)
        self.T = _checks.positive(name, "T", T)
        check_preset(name, preset)
        self.instance_weight_on = instance_weight_on or (
            "logits" if preset == "official" else "loss"
        )
        _checks.one_of(name, "instance_weight_on", self.instance_weight_on, "logits", "loss")
        self.t2 = t2
        _checks.one_of(name, "form", form, "kl", "ce")
        self.form = form
        if focal_gamma < 0:
            raise ValueError(f"`{name}`: expected `focal_gamma` >= 0, got {focal_gamma}")
        self.focal_gamma = focal_gamma
        self.subset_names: tuple[str, ...]
        if subsets is None:
            if counts is None:
                raise TypeError(f"`{name}`: expected `class_counts` or `subsets`, got neither")
            group = shot_groups(counts, rule)
            named = {shot: (group == i).nonzero().flatten() for i, shot in enumerate(SHOTS)}
            named = {shot: classes for shot, classes in named.items() if len(classes)}
        else:
            named = {str(i): torch.as_tensor(classes) for i, classes in enumerate(subsets)}
        self.subset_names = tuple(named)
        for subset, classes in named.items():
            self.register_buffer(f"classes_{subset}", classes)

    @property
    def subsets(self) -> tuple[Tensor, ...]:
        """The classes of each expert, int64, in the order the experts are given."""
        return tuple(getattr(self, f"classes_{name}") for name in self.subset_names)

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        expert_logits: Sequence[Tensor],
        expert_weight: Sequence[float] | Sequence[Tensor] | Tensor | None = None,
        instance_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            logits: the student's, `[N, C]`, or its log-probabilities.
            target: class indices int64 `[N]`.
            expert_logits: of each subset's expert, `[N, S_l]`, constants.
            expert_weight: w, one number an expert, or `[L]`; None for ones.
            instance_weight: v, `[N]`, a constant; None for ones.
        """
        experts = len(self.subset_names)
        for argument, given in (("expert_logits", expert_logits), ("expert_weight", expert_weight)):
            if given is not None and len(given) != experts:
                raise ValueError(
                    f"`LFMELoss`: expected `{argument}` of L = {experts} experts "
                    f"{self.subset_names}, got {len(given)}"
                )
        weight = _numbers_or_vector(expert_weight, logits)
        student, loss = self._student_and_cross_entropy(logits, target, instance_weight)
        divergence = F.kd_loss(
            student,
            expert_logits,
            self.T,
            classes=self.subsets,
            subset_weight=weight,
            t2=self.t2,
            reduction=self.reduction,
        )
        loss = loss + divergence
        if self.form == "ce":
            loss = loss + self._entropy(expert_logits, weight, loss.dtype)
        return loss

    def classification(
        self, logits: Tensor, target: Tensor, instance_weight: Tensor | None = None
    ) -> Tensor:
        """The part of the loss that needs no expert. Args: as :meth:`forward`."""
        return self._student_and_cross_entropy(logits, target, instance_weight)[1]

    def _student_and_cross_entropy(
        self, logits: Tensor, target: Tensor, instance_weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if instance_weight is None:
            return logits, self._cross_entropy(logits, target, self.reduction)
        _checks.logits("LFMELoss", "logits", logits)
        _checks.vector("LFMELoss", "instance_weight", instance_weight, "N", len(logits), logits)
        v = instance_weight.detach().to(_checks.compute_dtype(logits))
        if self.instance_weight_on == "logits":
            # On log-probabilities, as in the code, v would do the same: a row's constant cancels.
            # A v of 0 leaves out what is left out already.
            student = torch.where(logits == NEG_INF, NEG_INF, v.unsqueeze(1) * logits)
            return student, self._cross_entropy(student, target, self.reduction)
        row_loss = v * self._cross_entropy(logits, target, "none")
        return logits, reduce(row_loss, self.reduction)

    def _cross_entropy(self, logits: Tensor, target: Tensor, reduction: Reduction) -> Tensor:
        return F.adjusted_cross_entropy(
            logits, target, focal_gamma=self.focal_gamma, reduction=reduction
        )

    def _entropy(
        self,
        expert_logits: Sequence[Tensor],
        expert_weight: Sequence[float] | Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """What the cross-entropy has more than the divergence: a constant, the experts' entropy."""
        factor = self.T**2 if self.t2 is True else 1.0 if self.t2 is False else self.t2
        rows = [
            torch.special.entr(torch.softmax(x.detach().to(dtype) / self.T, dim=1)).sum(dim=1)
            for x in expert_logits
        ]
        weights = [1.0] * len(rows) if expert_weight is None else expert_weight
        total = sum(w * row for w, row in zip(weights, rows, strict=True))
        assert isinstance(total, Tensor)
        return factor * reduce(total, self.reduction)

    def extra_repr(self) -> str:
        sizes = ", ".join(
            f"{name}=[{len(classes)}]"
            for name, classes in zip(self.subset_names, self.subsets, strict=True)
        )
        return (
            f"{sizes}, T={self.T:g}, instance_weight_on={self.instance_weight_on!r}, "
            f"form={self.form!r}, reduction={self.reduction!r}"
        )


def _numbers_or_vector(
    weight: Sequence[float] | Sequence[Tensor] | Tensor | None, logits: Tensor
) -> Sequence[float] | Tensor | None:
    """Expert weights as `kd_loss` takes them, from what `schedules.expert_weight` gives."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor):
        if not any(isinstance(w, Tensor) for w in weight):
            return weight  # type: ignore[return-value]
        weight = torch.stack([torch.as_tensor(w) for w in weight])
    if weight.device != logits.device and weight.device.type == "cpu":
        return weight.tolist()  # numbers travel with the call, a tensor would wait for a copy
    return weight if weight.is_floating_point() else weight.to(torch.float32)
