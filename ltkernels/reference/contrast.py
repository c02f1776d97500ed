"""Definition of `info_nce`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from .. import _checks
from .._checks import Reduction, Temperature
from ._rows import reduce
from .distillation import _as


def info_nce(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    temperature: Temperature = 0.2,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Contrast of a sample's two views against a queue of other samples' keys, for one expert.

    .. math::
        L_n = -\log \frac{\exp(v_n \cdot \tilde v_n / \tau)}
              {\exp(v_n \cdot \tilde v_n / \tau) + \sum_{u \in Q} \exp(v_n \cdot u / \tau)}

    The vectors are taken as they are: normalise query and key before (`F.normalize`) for cosine
    similarities. Key and queue are constants. With an empty queue the loss is 0.

    Args:
        query: v, `[N, D]`.
        key: v-tilde, `[N, D]`, of the momentum encoder.
        queue: Q, `[Q, D]`.
        temperature: tau, a number, a one-element tensor or `[N, 1]`; > 0.
        reduction: "mean" over N, "sum" (as printed), or "none" (`[N]`).

    Returns:
        The loss, float32 (float64 if one of the tensors is), `[]` or `[N]`.

    Raises:
        ValueError, TypeError: for an argument that does not fit.

    Source: Xu et al., "Towards effective collaborative learning in long-tailed recognition", IEEE
    Transactions on Multimedia 2023, eq. 9; He et al., "Momentum contrast for unsupervised visual
    representation learning", CVPR 2020.
    """
    kind = _checks.info_nce(query, key, queue, temperature, reduction)
    dtype = _checks.compute_dtype(query, key, queue)
    query, key, queue = query.to(dtype), key.to(dtype).detach(), queue.to(dtype).detach()
    with torch.autocast(query.device.type, enabled=False):
        similar = (query * key).sum(dim=1, keepdim=True)
        others = query @ queue.t()
        logits = torch.cat([similar, others], dim=1) / _as(dtype, temperature, kind)
    return reduce(-log_softmax(logits, dim=1)[:, 0], reduction)
