"""ECL: balanced experts of two heads that share logits, features and contrasts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .. import _checks
from .. import functional as F
from .._checks import ClassCounts, Direction, ExpertReduction, Experts, Reduction
from ..reference.collaboration import balance_weight
from ..reference.diversity import over_experts
from ..schedules import log_prior
from ._base import Reweighted, required_counts


class ECLLoss(Reweighted):
    r"""Effective collaborative learning: all terms of a training step.

    .. math::
        L = \frac{1}{K} \sum_k \big[ BC(z^{k,ref}, y) + BC(z^{k,cls}, y) \big]
            + \alpha (L_{logit} + L_{feature}) + \beta L_{con}

    BC is the cross-entropy of z + tau log prior (eq. 3); L_logit distils between the
    classification heads, each sample weighted by how far its classification head lags behind its
    reference head (eqs. 5-7); L_feature distils between the features (eq. 8); L_con contrasts
    two views (eq. 9). `terms` returns the four by name. There is no official code: where the paper
    leaves a choice open, it is an argument.

    Args:
        class_counts: training images a class, `[C]`.
        alpha: factor of the distillation terms.
        beta: factor of the contrast.
        tau: strength of the prior in BC.
        temperature: of both distillations.
        contrast_temperature: of the contrast; 0.2 is NCL's.
        expert_reduction: BC's "mean" over the experts (eq. 10), or "sum", as NCL.
        transfer: whether there is L_logit at all; the features have a term where they are given.
        balance: whether L_logit has the weights of eqs. 5-6.
        ratio: the side of eq. 6, whose two sides are reciprocal: "rhs", CE_cls / CE_ref, which its
            text describes, or "lhs".
        unbiased: the deviation that normalises a row is over C - 1 (True) or C.
        detach: the weights are constants, so that distillation does not train the reference head.
        normalize_mean: divide each expert's weights by their mean over the batch.
        eps: least deviation and least divisor of the weights.
        kd_logits: L_logit distils the "raw" logits or the "adjusted" z + tau log prior, as NCL.
            The weights are of raw logits.
        direction: of both distillations: "as_printed" is KL(student || teacher), "teacher_first"
            the reverse. The weight is the student's.
        detach_teacher: no gradient to the teacher in either distillation; False as in NCL.
        feature_reduction: L_feature is a "mean" over the batch, or the "sum" eq. 8 prints.
        normalize: bring query and key to unit length. The queue is taken as it is.
        contrast_expert_reduction: "sum" over the experts (eq. 9) or "mean".
        contrast_reduction: L_con is a "mean" over the batch, as in NCL, or the "sum" eq. 9 prints.
        reduction: "mean" over N, "sum", or "none" (`[N]`), the latter two for all terms.
        cls_num_list: another name of `class_counts`.

    Source: Xu et al., "Towards effective collaborative learning in long-tailed recognition", IEEE
    Transactions on Multimedia 2023.
    """

    bias: Tensor

    def __init__(
        self,
        class_counts: ClassCounts | None = None,
        alpha: float = 0.6,
        beta: float = 1.0,
        *,
        tau: float = 1.0,
        temperature: float = 1.0,
        contrast_temperature: float = 0.2,
        expert_reduction: ExpertReduction = "mean",
        transfer: bool = True,
        balance: bool = True,
        ratio: Literal["rhs", "lhs"] = "rhs",
        unbiased: bool = True,
        detach: bool = True,
        normalize_mean: bool = False,
        eps: float = 1e-6,
        kd_logits: Literal["raw", "adjusted"] = "raw",
        direction: Direction = "as_printed",
        detach_teacher: bool = False,
        feature_reduction: Literal["mean", "sum"] = "mean",
        normalize: bool = True,
        contrast_expert_reduction: ExpertReduction = "sum",
        contrast_reduction: Literal["mean", "sum"] = "mean",
        reduction: Reduction = "mean",
        cls_num_list: ClassCounts | None = None,
    ) -> None:
        name = "ECLLoss"
        counts = required_counts(name, class_counts, cls_num_list)
        super().__init__(counts, None, None, 0.0, reduction)
        self.alpha = _checks.number(name, "alpha", alpha)
        self.beta = _checks.number(name, "beta", beta)
        self.temperature = _checks.positive(name, "temperature", temperature)
        self.contrast_temperature = _checks.positive(
            name, "contrast_temperature", contrast_temperature
        )
        for argument, value in (
            ("expert_reduction", expert_reduction),
            ("feature_reduction", feature_reduction),
            ("contrast_expert_reduction", contrast_expert_reduction),
            ("contrast_reduction", contrast_reduction),
        ):
            _checks.one_of(name, argument, value, "mean", "sum")
        _checks.one_of(name, "ratio", ratio, "rhs", "lhs")
        _checks.one_of(name, "kd_logits", kd_logits, "raw", "adjusted")
        _checks.one_of(name, "direction", direction, "as_printed", "teacher_first")
        self.expert_reduction: ExpertReduction = expert_reduction
        self.transfer = transfer
        self.balance = balance
        self.ratio = ratio
        self.unbiased = unbiased
        self.detach = detach
        self.normalize_mean = normalize_mean
        self.eps = _checks.positive(name, "eps", eps)
        self.kd_logits = kd_logits
        self.direction: Direction = direction
        self.detach_teacher = detach_teacher
        self.feature_reduction: Reduction = feature_reduction
        self.normalize = normalize
        self.contrast_expert_reduction: ExpertReduction = contrast_expert_reduction
        self.contrast_reduction: Reduction = contrast_reduction
        self.register_buffer("bias", _checks.number(name, "tau", tau) * log_prior(counts))

    def forward(
        self,
        cls_logits: Experts,
        ref_logits: Experts,
        target: Tensor,
        *,
        features: Experts | None = None,
        query: Experts | None = None,
        key: Experts | None = None,
        queue: Experts | None = None,
    ) -> Tensor:
        """The loss of K experts.

        Args:
            cls_logits: the classification heads', K tensors `[N, C]` or one `[K, N, C]`.
            ref_logits: the reference heads', likewise.
            target: class indices int64 `[N]`.
            features: the encoders', K tensors `[N, D]` or one `[K, N, D]`; None leaves L_feature
                out.
            query: of the first view, K tensors `[N, E]` or one; None leaves L_con out.
            key: of the second view, by the momentum encoders, like `query`; a constant.
            queue: earlier keys, K tensors `[Q, E]` or one `[K, Q, E]`; a constant.
        """
        terms = self.terms(
            cls_logits, ref_logits, target, features=features, query=query, key=key, queue=queue
        )
        loss = terms["supervision"]
        for name, factor in (
            ("logit", self.alpha),
            ("feature", self.alpha),
            ("contrast", self.beta),
        ):
            if name in terms:
                loss = loss + factor * terms[name]
        return loss

    def terms(
        self,
        cls_logits: Experts,
        ref_logits: Experts,
        target: Tensor,
        *,
        features: Experts | None = None,
        query: Experts | None = None,
        key: Experts | None = None,
        queue: Experts | None = None,
    ) -> dict[str, Tensor]:
        """The terms before their factors: "supervision", "logit", "feature", "contrast".

        The arguments are those of a call. A term whose inputs are missing is left out, and "logit"
        without `transfer`.
        """
        cls = _checks.expert_logits("ECLLoss", "cls_logits", cls_logits)
        ref = self._like(cls, "ref_logits", ref_logits)
        terms = {"supervision": self._supervision(cls, ref, target)}
        if self.transfer:
            terms["logit"] = self._logit_distillation(cls, ref, target)
        if features is not None:
            terms["feature"] = F.collaborative_kd_loss(
                self._like(cls, "features", features, ("N", "D")),
                self.temperature,
                direction=self.direction,
                detach_teacher=self.detach_teacher,
                reduction=self.feature_reduction if self.reduction == "mean" else self.reduction,
            )
        if query is not None:
            terms["contrast"] = self._contrast(
                self._like(cls, "query", query, ("N", "E")),
                self._like(cls, "key", key, ("N", "E")),
                self._like(cls, "queue", queue, ("Q", "E")),
            )
        elif key is not None or queue is not None:
            raise ValueError("`ECLLoss`: expected `query` where `key` or `queue` is given")
        return terms

    def _supervision(
        self, cls: tuple[Tensor, ...], ref: tuple[Tensor, ...], target: Tensor
    ) -> Tensor:
        of_heads = [
            over_experts(
                [
                    F.adjusted_cross_entropy(z, target, bias=self.bias, reduction=self.reduction)
                    for z in heads
                ],
                self.expert_reduction,
            )
            for heads in (ref, cls)
        ]
        return of_heads[0] + of_heads[1]

    def _logit_distillation(
        self, cls: tuple[Tensor, ...], ref: tuple[Tensor, ...], target: Tensor
    ) -> Tensor:
        logits = cls
        if self.kd_logits == "adjusted":
            bias = self.bias.to(_checks.compute_dtype(*cls))
            logits = tuple(z + bias for z in cls)
        return F.collaborative_kd_loss(
            logits,
            self.temperature,
            sample_weight=self._weights(cls, ref, target) if self.balance else None,
            direction=self.direction,
            detach_teacher=self.detach_teacher,
            reduction=self.reduction,
        )

    def _weights(self, cls: tuple[Tensor, ...], ref: tuple[Tensor, ...], target: Tensor) -> Tensor:
        """w, `[K, N]`."""
        divisor, dividend = (ref, cls) if self.ratio == "rhs" else (cls, ref)
        pairs = zip(divisor, dividend, strict=True)
        if self.unbiased and self.detach:
            rows = [F.knowledge_balance_weight(a, b, target, eps=self.eps) for a, b in pairs]
        else:
            rows = [
                balance_weight(a, b, target, eps=self.eps, unbiased=self.unbiased) for a, b in pairs
            ]
        weights = torch.stack(rows)
        if self.normalize_mean:
            weights = weights / weights.mean(dim=1, keepdim=True)
        return weights.detach() if self.detach else weights

    def _contrast(
        self, query: tuple[Tensor, ...], key: tuple[Tensor, ...], queue: tuple[Tensor, ...]
    ) -> Tensor:
        if self.normalize:
            query = tuple(normalize(v, dim=1) for v in query)
            key = tuple(normalize(v, dim=1) for v in key)
        reduction = self.contrast_reduction if self.reduction == "mean" else self.reduction
        terms = [
            F.info_nce(q, k, u, self.contrast_temperature, reduction)
            for q, k, u in zip(query, key, queue, strict=True)
        ]
        return over_experts(terms, self.contrast_expert_reduction)

    def _like(
        self,
        cls: tuple[Tensor, ...],
        name: str,
        value: object,
        symbols: tuple[str, str] = ("N", "C"),
    ) -> tuple[Tensor, ...]:
        """As many tensors as there are experts."""
        if value is None:
            raise ValueError(f"`ECLLoss`: expected `{name}` where `query` is given")
        given = _checks.expert_logits("ECLLoss", name, value, symbols)
        if len(given) != len(cls):
            raise ValueError(
                f"`ECLLoss`: expected `{name}` of K = {len(cls)} experts like `cls_logits`, "
                f"got {len(given)}"
            )
        return given

    def extra_repr(self) -> str:
        return (
            f"bias=[{len(self.bias)}], alpha={self.alpha:g}, beta={self.beta:g}, "
            f"temperature={self.temperature:g}, balance={self.balance}, "
            f"direction={self.direction!r}, reduction={self.reduction!r}"
        )
