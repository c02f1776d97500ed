"""NCL: experts that teach each other, on all categories and on the hard ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Literal

import torch
from torch import Tensor

from .. import _checks
from .. import functional as F
from .._checks import ClassCounts, ExpertReduction, Experts, Reduction
from ..reference._rows import log_softmax_rows, reduce
from ..schedules import Preset, check_preset
from ._base import Reweighted, required_counts


class NCLLoss(Reweighted):
    r"""Nested collaborative learning: balanced softmax and mutual distillation, nested.

    .. math::
        L = \sum_k \big[ r \, CE(a^k, y) + r_h \, CE(a^k|_H, y) \big]
            + \frac{1}{K - 1} \sum_k \sum_{q \ne k} \big[ \lambda \, KL(p^k \Vert p^q)
            + \lambda_h \, KL(p^k|_H \Vert p^q|_H) \big], \quad
        a^k = z^k + \log n, \quad p^k = \mathrm{softmax}(a^k)

    H are the hard categories of a sample: its label and the classes the first expert finds most
    likely, `hcm_n` together. Distillation has a gradient to both distributions.

    Args:
        class_counts: training images a class, `[C]`.
        hcm_n: the number of hard categories; None is 3/10 of C, as in the released configurations
            (3, 30, 300, 2442; 122 for Places-LT).
        ce_ratio: r.
        hcm_ratio: r_h.
        diversity_factor: lambda.
        diversity_factor_hcm: lambda_h.
        preset: "official" or "paper", which differ in `masking`.
        masking: how the other categories leave. "zero" sets their adjusted logits a to 0, so that
            they stay in the softmax (official); "exclude" takes them out, as logits of -inf would
            (paper).
        eps: added to p^q inside its logarithm. The official code has 1e-9, which guards against
            log 0; log-softmax needs none. An eps > 0 is computed in plain PyTorch.
        expert_reduction: "sum" over the experts (official), or "mean", all of it / K.
        reduction: "mean" over N, "sum", or "none" (`[N]`).
        cls_num_list: another name of `class_counts`.

    Source: Li et al., "Nested collaborative learning for long-tailed visual recognition",
    CVPR 2022; code Bazinga699/NCL.
    """

    log_count: Tensor

    def __init__(
        self,
        class_counts: ClassCounts | None = None,
        hcm_n: int | None = None,
        *,
        ce_ratio: float = 1.0,
        hcm_ratio: float = 1.0,
        diversity_factor: float = 0.6,
        diversity_factor_hcm: float = 0.6,
        preset: Preset = "official",
        masking: Literal["zero", "exclude"] | None = None,
        eps: float = 0.0,
        expert_reduction: ExpertReduction = "sum",
        reduction: Reduction = "mean",
        cls_num_list: ClassCounts | None = None,
    ) -> None:
        name = "NCLLoss"
        counts = required_counts(name, class_counts, cls_num_list)
        super().__init__(counts, None, None, 0.0, reduction)
        check_preset(name, preset)
        classes = len(counts)
        self.hcm_n = max(3 * classes // 10, 1) if hcm_n is None else hcm_n
        if isinstance(hcm_n, bool) or not isinstance(self.hcm_n, int):
            raise TypeError(f"`{name}`: expected `hcm_n` to be an int, got {hcm_n!r}")
        if not 1 <= self.hcm_n <= classes:
            raise ValueError(f"`{name}`: expected `hcm_n` in 1..C = 1..{classes}, got {hcm_n}")
        self.ce_ratio = _checks.number(name, "ce_ratio", ce_ratio)
        self.hcm_ratio = _checks.number(name, "hcm_ratio", hcm_ratio)
        self.diversity_factor = _checks.number(name, "diversity_factor", diversity_factor)
        self.diversity_factor_hcm = _checks.number(
            name, "diversity_factor_hcm", diversity_factor_hcm
        )
        self.masking = masking or ("zero" if preset == "official" else "exclude")
        _checks.one_of(name, "masking", self.masking, "zero", "exclude")
        if _checks.number(name, "eps", eps) < 0:
            raise ValueError(f"`{name}`: expected `eps` >= 0, got {eps}")
        self.eps = eps
        self.expert_reduction: ExpertReduction = expert_reduction
        _checks.one_of(name, "expert_reduction", expert_reduction, "sum", "mean")
        # Not normalised: the constant counts where logits beside them are set to 0.
        self.register_buffer("log_count", counts.log())

    def forward(self, expert_logits: Experts, target: Tensor) -> Tensor:
        """The loss of K experts' raw logits `[N, C]` and class indices int64 `[N]`."""
        experts = _checks.expert_logits("NCLLoss", "expert_logits", expert_logits)
        log_count = self.log_count.to(_checks.compute_dtype(*experts))
        if experts[0].shape[1] != len(log_count):
            raise ValueError(
                f"`NCLLoss`: expected `expert_logits` of C = {len(log_count)} classes, "
                f"got {experts[0].shape[1]}"
            )
        adjusted = [z + log_count for z in experts]
        loss = self._nested(adjusted, target, self.ce_ratio, self.diversity_factor)
        if self.hcm_ratio != 0 or self.diversity_factor_hcm != 0:
            hard, label = self._hard(experts[0], adjusted, target)
            loss = loss + self._nested(hard, label, self.hcm_ratio, self.diversity_factor_hcm)
        return loss if self.expert_reduction == "sum" else loss / len(experts)

    def _hard(
        self, chooser: Tensor, adjusted: Sequence[Tensor], target: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """The logits of the hard categories, and where the label is among them."""
        label_first = chooser.detach().scatter(1, target.unsqueeze(1), float("inf"))
        chosen = label_first.topk(self.hcm_n, dim=1).indices  # [N, hcm_n]
        if self.masking == "exclude":
            return [a.gather(1, chosen) for a in adjusted], torch.zeros_like(target)
        mask = torch.zeros_like(chooser, dtype=torch.bool).scatter(1, chosen, True)
        return [torch.where(mask, a, 0.0) for a in adjusted], target

    def _nested(
        self, logits: Sequence[Tensor], target: Tensor, ce_ratio: float, factor: float
    ) -> Tensor:
        """ce_ratio times the cross-entropies, plus factor times the mutual distillation."""
        # Mutual distillation without the epsilon is RIDE's pairwise diversity with another sign.
        one_pass = self.eps == 0 and ce_ratio != 0
        loss = ce_ratio * F.ride_loss(
            logits,
            target,
            diversity_factor=factor / ce_ratio if one_pass else 0.0,
            pairwise=True,
            reduction=self.reduction,
        )
        if one_pass or factor == 0 or len(logits) == 1:
            return loss
        return loss + factor * self._mutual_distillation(logits)

    def _mutual_distillation(self, logits: Sequence[Tensor]) -> Tensor:
        count = len(logits)
        if self.eps == 0:
            return count * F.collaborative_kd_loss(logits, reduction=self.reduction)
        log_p = [log_softmax_rows(a) for a in logits]
        guarded = [(x.exp() + self.eps).log() for x in log_p]
        row_loss = torch.stack(
            [
                (log_p[k].exp() * torch.where(log_p[k].exp() == 0, 0.0, log_p[k] - guarded[q])).sum(
                    1
                )
                for k, q in permutations(range(count), 2)
            ]
        ).sum(dim=0)
        return reduce(row_loss / (count - 1), self.reduction)

    def extra_repr(self) -> str:
        return (
            f"log_count=[{len(self.log_count)}], hcm_n={self.hcm_n}, masking={self.masking!r}, "
            f"diversity_factor={self.diversity_factor:g}, reduction={self.reduction!r}"
        )
