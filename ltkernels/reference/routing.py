"""Definitions of `topz_gate`, `routing_loss`, `routing_target` and `route_experts`."""

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
    the one of the lowest class comes first. A -inf among them adds nothing and has no gradient. A
    row without a finite logit is NaN. The norm is at least 1e-12.

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
    together = torch.zeros((), dtype=dtype, device=target.device)
    predictions = []
    for logits in experts:
        together = together + logits.detach().to(dtype)  # their mean has the same maximum
        predictions.append(together.argmax(dim=1))
    right = torch.stack(predictions) == target  # [K, N]
    right_from = right.flip(0).cumsum(dim=0).flip(0) > 0  # by expert i or a later one
    return ~right[:-1] & right_from[1:]


@torch.no_grad()
def route_experts(
    expert_logits: Experts,
    features: Experts,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    z: int = 30,
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""RIDE at test time: each sample's mean logits over the experts that its routers ask.

    .. math::
        m_{in} = \frac{1}{i} \sum_{j \le i} l_{jn}, \qquad
        k_n = \min\{ i : i = K \text{ or not } g_i(m_{in}, v_{in}) > t \}, \qquad
        \text{logits}_n = m_{k_n n}

    with g_i as in `topz_gate`. For evaluation, with the outputs of all experts at hand: there is
    no gradient. A gate that is NaN stops its sample.

    Args:
        expert_logits: l, K tensors `[N, C]` or one `[K, N, C]`, in the order they are asked.
        features: v, of the first K - 1 experts, `[N, D]` each, as a sequence or one tensor; those
            of the last may come along.
        w1: `[K - 1, h, D]`.
        b1: `[K - 1, h]`.
        w2: `[1, z + h]`, which all routers share as in RIDE, or `[K - 1, 1, z + h]`.
        b2: `[1]`, or `[K - 1, 1]`.
        z: 1..C; 30 for CIFAR.
        threshold: t, a logit: 0 is a probability of 1/2.

    Returns:
        The mean logits, float32 (float64 if logits or features are), `[N, C]`, and the number of
        experts asked, int64 `[N]`.

    Raises:
        ValueError, TypeError: for an argument that does not fit.

    Source: Wang et al., "Long-tailed recognition by routing diverse distribution-aware experts",
    ICLR 2021, sec. 3.3, and its code.
    """
    experts, gates = _checks.route_experts(expert_logits, features, w1, b1, w2, b2, z, threshold)
    dtype = _checks.compute_dtype(*experts, *gates)
    together = experts[0].to(dtype)
    used = torch.ones(together.shape[0], dtype=torch.int64, device=together.device)
    going = torch.ones_like(used, dtype=torch.bool)
    for i, feature in enumerate(gates):
        own_w2, own_b2 = (w2[i], b2[i]) if w2.dim() == 3 else (w2, b2)
        gate = topz_gate(together / (i + 1), feature.to(dtype), w1[i], b1[i], own_w2, own_b2, z)
        going = going & (gate > threshold)
        together = torch.where(going.unsqueeze(1), together + experts[i + 1].to(dtype), together)
        used = used + going
    return together / used.unsqueeze(1), used
