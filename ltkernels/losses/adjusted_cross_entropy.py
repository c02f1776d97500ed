"""The losses that are a cross-entropy of adjusted logits: one op, different constants."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from .. import _checks
from .. import functional as F
from .._checks import ClassCounts, Reduction
from ..schedules import Preset, check_preset, ldam_margin, log_prior
from ._base import ClassWeight, Reweighted, counts_of, required_counts


class _AdjustedCrossEntropyLoss(Reweighted):
    """`F.adjusted_cross_entropy` with its constants as state."""

    margin: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        counts: Tensor | None,
        *,
        scale: float = 1.0,
        margin: Tensor | None = None,
        bias: Tensor | None = None,
        weight: ClassWeight = None,
        drw_epoch: int | None = None,
        beta: float = 0.9999,
        focal_gamma: float = 0.0,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(counts, weight, drw_epoch, beta, reduction)
        self.scale = scale
        self.focal_gamma = focal_gamma
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index
        self.mean_over: Literal["weights", "samples"] = "weights"
        self.register_buffer("margin", margin)
        self.register_buffer("bias", bias)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of logits `[N, C]` and class indices int64 `[N]`."""
        by_samples = self.reduction == "mean" and self.mean_over == "samples"
        loss = F.adjusted_cross_entropy(
            logits,
            target,
            scale=self.scale,
            margin=self.margin,
            bias=self.bias,
            class_weight=self.class_weight,
            label_smoothing=self.label_smoothing,
            focal_gamma=self.focal_gamma,
            ignore_index=self.ignore_index,
            reduction="sum" if by_samples else self.reduction,
        )
        return loss / (target != self.ignore_index).sum() if by_samples else loss

    def extra_repr(self) -> str:
        parts = []
        for name in ("margin", "bias", "class_weight"):
            vector = getattr(self, name)
            if vector is not None:
                parts.append(f"{name}=[{len(vector)}]")
        if self.drw_epoch is not None:
            parts.append(f"drw_epoch={self.drw_epoch}")
        for name, default in (("scale", 1.0), ("focal_gamma", 0.0), ("label_smoothing", 0.0)):
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name):g}")
        return ", ".join([*parts, f"reduction={self.reduction!r}"])


class LDAMLoss(_AdjustedCrossEntropyLoss):
    r"""Label-distribution-aware margin loss, with deferred re-weighting (LDAM-DRW) on request.

    .. math:: L = w_y \, CE(s (x - m_y e_y), y), \quad m_c = m_{max} (n_c / \min_k n_k)^{-1/4}

    Args:
        class_counts: training images a class, `[C]`.
        max_m: the largest margin, in cosine units (the authors took 0.3 for iNaturalist).
        weight: class weights `[C]`, "effective_number" or "inverse_frequency" (of the counts), or
            None. Given `drw_epoch`, None means the preset's.
        s: factor of the logits.
        prescaled: True where the model's logits already carry s, as RIDE's do; the margin is then
            s m, and the logits are not multiplied.
        drw_epoch: the weights are in force from this epoch on (0-based; 160 for CIFAR). Until
            then, and while `on_epoch_start` is never called, they are 1.
        beta: of the effective number.
        preset: the weights of deferred re-weighting: effective numbers as in the released code,
            or inverse frequencies as in the paper.
        label_smoothing, ignore_index, reduction: as `F.adjusted_cross_entropy`.
        cls_num_list: another name of `class_counts`.

    Source: Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss",
    NeurIPS 2019; code kaidic/LDAM-DRW.
    """

    def __init__(
        self,
        class_counts: ClassCounts | None = None,
        max_m: float = 0.5,
        weight: ClassWeight = None,
        s: float = 30.0,
        *,
        prescaled: bool = False,
        drw_epoch: int | None = None,
        beta: float = 0.9999,
        preset: Preset = "official",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        cls_num_list: ClassCounts | None = None,
    ) -> None:
        counts = required_counts("LDAMLoss", class_counts, cls_num_list)
        check_preset("LDAMLoss", preset)
        _checks.positive("LDAMLoss", "s", s)
        if drw_epoch is not None and weight is None:
            weight = "effective_number" if preset == "official" else "inverse_frequency"
        margin = ldam_margin(counts, max_m)
        super().__init__(
            counts,
            scale=1.0 if prescaled else s,
            margin=margin * s if prescaled else margin,
            weight=weight,
            drw_epoch=drw_epoch,
            beta=beta,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            reduction=reduction,
        )


class FocalLoss(_AdjustedCrossEntropyLoss):
    r"""Focal loss on a softmax.

    .. math:: L = (1 - e^{-l})^\gamma \, l, \quad l = w_y \, CE(z, y)

    The mean is over the samples, weighted or not, as in the official codes.

    Args:
        class_counts: training images a class, `[C]`; needed for a named `weight` only.
        weight: class weights `[C]`, "effective_number", "inverse_frequency", or None.
        gamma: the focusing exponent, >= 0. None is the preset's: 1 in LDAM-DRW's training code,
            2 in the paper.
        drw_epoch, beta, ignore_index, reduction, cls_num_list: as `LDAMLoss`.
        preset: chooses gamma where it is None.

    Source: Lin et al., "Focal loss for dense object detection", ICCV 2017; kaidic/LDAM-DRW.
    """

    def __init__(
        self,
        class_counts: ClassCounts | None = None,
        weight: ClassWeight = None,
        gamma: float | None = None,
        *,
        drw_epoch: int | None = None,
        beta: float = 0.9999,
        preset: Preset = "official",
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        cls_num_list: ClassCounts | None = None,
    ) -> None:
        check_preset("FocalLoss", preset)
        if gamma is None:
            gamma = 1.0 if preset == "official" else 2.0
        if _checks.number("FocalLoss", "gamma", gamma) < 0:
            raise ValueError(f"`FocalLoss`: expected `gamma` >= 0, got {gamma}")
        super().__init__(
            counts_of("FocalLoss", class_counts, cls_num_list),
            weight=weight,
            drw_epoch=drw_epoch,
            beta=beta,
            focal_gamma=gamma,
            ignore_index=ignore_index,
            reduction=reduction,
        )
        self.mean_over = "samples"


class ClassBalancedLoss(_AdjustedCrossEntropyLoss):
    r"""Cross-entropy (or focal loss) weighted by effective numbers of samples.

    .. math:: L = w_y \, CE(z, y), \quad w_c \propto (1 - \beta) / (1 - \beta^{n_c}), \ \sum w = C

    Args:
        class_counts: training images a class, `[C]`.
        beta: in [0, 1).
        gamma: focusing exponent of the focal variant; 0 is cross-entropy.
        drw_epoch: as `LDAMLoss`.
        preset: "official" (the codes of this field): the mean is over the weights, as
            `F.cross_entropy(weight=)`. "paper": over the samples.
        mean_over: "weights" or "samples", instead of the preset's. The focal variant of the codes
            has "samples".
        label_smoothing, ignore_index, reduction, cls_num_list: as `LDAMLoss`.

    Source: Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019.
    """

    def __init__(
        self,
        class_counts: ClassCounts | None = None,
        beta: float = 0.9999,
        gamma: float = 0.0,
        *,
        drw_epoch: int | None = None,
        preset: Preset = "official",
        mean_over: Literal["weights", "samples"] | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        cls_num_list: ClassCounts | None = None,
    ) -> None:
        name = "ClassBalancedLoss"
        check_preset(name, preset)
        if mean_over is None:
            mean_over = "weights" if preset == "official" and gamma == 0 else "samples"
        if mean_over not in ("weights", "samples"):
            raise ValueError(
                f"`{name}`: expected `mean_over` to be 'weights' or 'samples', got {mean_over!r}"
            )
        super().__init__(
            required_counts(name, class_counts, cls_num_list),
            weight="effective_number",
            drw_epoch=drw_epoch,
            beta=beta,
            focal_gamma=gamma,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            reduction=reduction,
        )
        self.mean_over = mean_over


class BalancedSoftmaxLoss(_AdjustedCrossEntropyLoss):
    r"""Cross-entropy of logits with the log prior added: CE(z + log n, y).

    Args:
        class_counts: training images a class, `[C]`.
        label_smoothing, ignore_index, reduction: as `F.adjusted_cross_entropy`.
        cls_num_list: another name of `class_counts`.

    Source: Ren et al., "Balanced meta-softmax for long-tailed visual recognition", NeurIPS 2020;
    with a uniform test prior also ECL's BC loss.
    """

    def __init__(
        self,
        class_counts: ClassCounts | None = None,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        cls_num_list: ClassCounts | None = None,
    ) -> None:
        counts = required_counts("BalancedSoftmaxLoss", class_counts, cls_num_list)
        super().__init__(
            counts,
            bias=log_prior(counts),
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            reduction=reduction,
        )


class LogitAdjustedLoss(_AdjustedCrossEntropyLoss):
    r"""Cross-entropy of logits adjusted by a power of the prior: CE(z + tau log(n / N), y).

    Args:
        class_counts: training images a class, `[C]`.
        tau: strength; 1 is `BalancedSoftmaxLoss`, 0 plain cross-entropy.
        label_smoothing, ignore_index, reduction: as `F.adjusted_cross_entropy`.
        cls_num_list: another name of `class_counts`.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, eq. 10.
    """

    def __init__(
        self,
        class_counts: ClassCounts | None = None,
        tau: float = 1.0,
        *,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        cls_num_list: ClassCounts | None = None,
    ) -> None:
        counts = required_counts("LogitAdjustedLoss", class_counts, cls_num_list)
        super().__init__(
            counts,
            bias=_checks.number("LogitAdjustedLoss", "tau", tau) * log_prior(counts),
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            reduction=reduction,
        )
