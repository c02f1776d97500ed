"""Definition of `adjusted_cross_entropy`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from .._checks import Reduction
from ._rows import log_softmax_rows, weighted


def adjusted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    scale: float = 1.0,
    margin: Tensor | None = None,
    bias: Tensor | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy of adjusted logits, under LDAM, balanced softmax, focal loss and others.

    .. math::
        z'_{nc} = s (z_{nc} - m_{y_n} [c = y_n]) + b_c, \quad
        l_n = -(1 - \varepsilon) w_{y_n} \log \mathrm{softmax}(z'_n)_{y_n}
              - \frac{\varepsilon}{C} \sum_c w_c \log \mathrm{softmax}(z'_n)_c, \quad
        L_n = l_n (1 - e^{-l_n})^\gamma

    With `focal_gamma = 0` it is `F.cross_entropy(z', target, weight, ...)`, except that the
    gradient of a -inf logit is 0, that a row without a finite logit is NaN by itself, and that an
    ignored row is never looked at. A target at a -inf logit makes its row +inf, and so does label
    smoothing over one (where its class weight is not 0).

    Args:
        logits: `[N, C]`.
        target: class indices int64 `[N]`, or `ignore_index`.
        scale: s > 0; LDAM's s where the logits are cosines.
        margin: m, `[C]`, in units of the logits before `scale`.
        bias: b, `[C]`; log n_c for balanced softmax. -inf takes a class out.
        class_weight: w, `[C]`, >= 0, a constant.
        label_smoothing: eps in 0..1.
        focal_gamma: gamma >= 0. The gradient goes through the factor as well.
        ignore_index: a target that leaves its row out: loss 0, gradient 0, not counted.
        reduction: "mean" (over the sum of w_y of the rows that count), "sum", "none" (`[N]`).

    Returns:
        The loss, float32 (float64 for float64 logits), `[]` or `[N]`. "mean" of no row is NaN.

    Raises:
        ValueError, TypeError, IndexError: for an argument that does not fit.

    Source: Cao et al., "Learning imbalanced datasets with label-distribution-aware margin loss",
    NeurIPS 2019 (margin); Ren et al., "Balanced meta-softmax", NeurIPS 2020 (bias); Lin et al.,
    "Focal loss for dense object detection", ICCV 2017, as in LDAM-DRW's code (focal_gamma).
    """
    _checks.adjusted_cross_entropy(
        logits,
        target,
        scale,
        margin,
        bias,
        class_weight,
        label_smoothing,
        focal_gamma,
        ignore_index,
        reduction,
    )
    dtype = _checks.compute_dtype(logits)
    classes = logits.shape[1]
    ignored = target == ignore_index  # [N]
    target = torch.where(ignored, 0, target)

    z = torch.where(ignored.unsqueeze(1), 0.0, logits.to(dtype))
    if margin is not None:
        of_target = torch.arange(classes, device=z.device) == target.unsqueeze(1)
        z = z - torch.where(of_target, margin.to(dtype), 0.0)
    z = scale * z
    if bias is not None:
        z = z + bias.to(dtype)
    log_prob = log_softmax_rows(z)

    row_loss = -log_prob.gather(1, target.unsqueeze(1)).squeeze(1)
    row_weight = (~ignored).to(dtype)
    if class_weight is not None:
        class_weight = class_weight.detach().to(dtype)
        row_weight = row_weight * class_weight[target]
    row_loss = weighted(row_weight, row_loss)
    if label_smoothing > 0:
        every = torch.ones_like(z) if class_weight is None else class_weight.expand_as(z)
        uniform = -weighted(every, log_prob).sum(dim=1) / classes
        uniform = torch.where(ignored, 0.0, uniform)
        hard = (1 - label_smoothing) * row_loss if label_smoothing < 1 else 0.0  # no 0 * inf
        row_loss = hard + label_smoothing * uniform
    if focal_gamma > 0:
        row_loss = row_loss * _focal_factor(row_loss, focal_gamma)

    if reduction == "mean":
        return row_loss.sum() / row_weight.sum()
    return row_loss.sum() if reduction == "sum" else row_loss


def _focal_factor(row_loss: Tensor, gamma: float) -> Tensor:
    """(1 - exp(-l))^gamma, whose derivative is taken as 0 where l is 0 or +inf."""
    inner = (row_loss > 0) & (row_loss < float("inf"))
    factor = (-torch.expm1(-torch.where(inner, row_loss, 1.0))) ** gamma
    # Products of this factor and l have the derivative 0 at l = 0 and 1 at l = +inf.
    return torch.where(inner, factor, (row_loss != 0).to(row_loss.dtype))
