"""Definitions of `topz_gate`, `routing_loss` and `routing_target`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, logsigmoid, normalize, relu

from .. import _checks
from .._checks import Experts, Reduction
from ._rows import NEG_INF, empty_rows, reduce, weighted


def topz_gate(
    logits: Tensor,
    feature: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    z: int = 30,
) -> Tensor:
    r"""RIDE's router: whether a sample needs the next expert, as a logit.

    .. math::
        g_n = W_2 \big( \mathrm{top}_z(l_n) \oplus
              \mathrm{relu}(W_1 v_n / \lVert v_n \rVert + b_1) \big) + b_2

    The z largest logits are sorted descending, NaN first, as `torch.topk` has them; of equal logits
    the one of the lowest class comes first. A -inf among them adds nothing and has no gradient. A row without a finite logit is NaN. The norm is at least 1e-12.

    Args:
        logits: l, `[N, C]`; RIDE takes the mean of the experts so far.
        feature: v, `[N, D]`.
        w1: `[h, D]`.
        b1: `[h]`.
        w2: `[1, z + h]`, the columns of the logits first.
        b2: `[1]`.
        z: 1..C; 30 for CIFAR.

    Returns:
        g, float32 (float64 if logits or features are), `[N]`. RIDE proceeds where
        sigmoid(g) > 0.5.

    Raises:
        ValueError, TypeError: for an argument that does not fit.

    Source: Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts",
    ICLR 2021, sec. 3.3, and its code.
    """
    _checks.topz_gate(logits, feature, w1, b1, w2, b2, z)
    dtype = _checks.compute_dtype(logits, feature)
    logits, feature = logits.to(dtype), feature.to(dtype)
    w1, b1, w2, b2 = (x.to(dtype) for x in (w1, b1, w2, b2))
    with torch.autocast(logits.device.type, enabled=False):
        top = logits.sort(dim=1, descending=True, stable=True).values[:, :z]
        nothing = torch.where(empty_rows(logits), float("nan"), 0.0).to(dtype)
        top = torch.where(top == NEG_INF, nothing, top)
        hidden = relu(linear(normalize(feature, dim=1), w1, b1))
        return linear(torch.cat([top, hidden], dim=1), w2, b2).squeeze(1)


def routing_loss(
    gate: Tensor,
    needs_help: Tensor,
    pos_weight: float = 100.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""The router's binary cross-entropy, with needing help weighted up.

    .. math:: L = -w_p \, y \log \sigma(g) - (1 - y) \log(1 - \sigma(g))

    Args:
        gate: g, `[N]`, or `[K - 1, N]` of all routers.
        needs_help: y, of the same shape: bool, or floating in 0..1; a constant.
        pos_weight: w_p > 0; 100 in the paper.
        reduction: "mean" over all elements, "sum", or "none" (the shape of `gate`).

    Returns:
        The loss, float32 (float64 for float64 gates).

    Raises:
        ValueError, TypeError: for an argument that does not fit.

    Source: Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts",
    ICLR 2021, eq. 5.
    """
    _checks.routing_loss(gate, needs_help, pos_weight, reduction)
    dtype = _checks.compute_dtype(gate)
    gate, share = gate.to(dtype), needs_help.detach().to(dtype)
    loss = -weighted(pos_weight * share, logsigmoid(gate)) - weighted(1 - share, logsigmoid(-gate))
    return reduce(loss, reduction)


def routing_target(expert_logits: Experts, target: Tensor) -> Tensor:
    r"""Which samples a later expert would get right: what the routers are to learn.

    .. math::
        y_{in} = [\hat y^{1..i}_n \ne y_n] \wedge \exists j > i: [\hat y^{1..j}_n = y_n]

    with the prediction of the mean logits of the first experts, as in the code; the paper speaks
    of single experts. The smallest of equally large classes is predicted.

    Args:
        expert_logits: K tensors `[N, C]` or one `[K, N, C]`, in the order they are asked.
        target: class indices int64 `[N]`.

    Returns:
        bool `[K - 1, N]`.

    Raises:
        ValueError, TypeError, IndexError: for an argument that does not fit.

    Source: Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts",
    ICLR 2021, sec. 3.3, and its code.
    """
    experts = _checks.routing_target(expert_logits, target)
    dtype = _checks.compute_dtype(*experts)
    together = torch.stack([z.detach().to(dtype) for z in experts]).cumsum(dim=0)  # [K, N, C]
    right = together.argmax(dim=2) == target  # [K, N]
    right_from = right.flip(0).cumsum(dim=0).flip(0) > 0  # by expert i or a later one
    return ~right[:-1] & right_from[1:]
