"""Fusion by the mean of the experts' posteriors over all classes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ._experts import ClassLists, Experts, check_experts

__all__ = ["expand_posterior", "soft_vote"]

Padding = Literal["spread", "zeros"]


@torch.no_grad()
def soft_vote(
    expert_logits: list[Tensor] | tuple[Tensor, ...],
    classes: ClassLists,
    *,
    num_classes: int | None = None,
    padding: Padding = "spread",
) -> Tensor:
    """The mean of the experts' posteriors over all C classes.

    ``q = (1/K) sum_e g(E_e)``; g keeps ``p_e`` on the classes that expert e knows, and gives each
    of the ``C - S_e`` others ``r_e / (C - S_e)``, an even share of the reject probability.

    Args:
        expert_logits: of each expert ``[N, S_e]``, or ``[N, S_e + 1]`` with the reject class last.
        classes: the class indices of each expert's columns.
        num_classes: C; by default the largest class plus one.
        padding: ``"spread"`` as above; ``"zeros"`` drops the reject probability and renormalises
            the sum over the experts, as the released joint calibration does.

    Returns:
        Probabilities ``[N, C]``, float32 (float64 for float64 logits), without gradient.

    Raises:
        TypeError, ValueError, IndexError: arguments that do not fit each other.

    Source: Sharma et al., "Long-tailed recognition using class-balanced experts", sec. 3.3.2.
    """
    experts = check_experts("soft_vote", expert_logits, classes, num_classes)
    if padding not in ("spread", "zeros"):
        raise ValueError(
            f"`soft_vote`: expected `padding` to be 'spread' or 'zeros', got {padding!r}"
        )
    if padding == "zeros":
        return _without_reject(experts)
    out = experts.new(experts.subsets.num_classes)
    for rows, part in experts.chunks():
        total = torch.zeros_like(out[rows])
        for e in range(len(part.logits)):
            _add_posterior(total, part, e)
        out[rows] = total / len(part.logits)
    return out


def expand_posterior(experts: Experts, e: int) -> Tensor:
    """g of one expert: its probabilities ``[N, C]``, the reject probability spread evenly."""
    out = experts.new(experts.subsets.num_classes).zero_()
    _add_posterior(out, experts, e)
    return out


def _add_posterior(total: Tensor, experts: Experts, e: int) -> None:
    own = experts.subsets.classes[e]
    others = experts.subsets.num_classes - len(own)
    if experts.rejects(e) and others:
        p = experts.logits[e].softmax(1)
        share = p[:, -1:] / others
        total.add_(share)
        total.index_add_(1, own, p[:, :-1] - share)
    else:  # no class is left that the reject probability could go to
        total.index_add_(1, own, experts.own(e).softmax(1))


def _without_reject(experts: Experts) -> Tensor:
    """``sum_e p_e / sum_e (1 - r_e)``, from logarithms: also where all experts reject."""
    out = experts.new(experts.subsets.num_classes)
    for rows, part in experts.chunks():
        log_p = [z.log_softmax(1) for z in part.logits]
        own = [p[:, : len(c)] for p, c in zip(log_p, part.subsets.classes, strict=True)]
        log_total = torch.stack([p.logsumexp(1) for p in own]).logsumexp(0)
        total = torch.zeros_like(out[rows])
        for p, c in zip(own, part.subsets.classes, strict=True):
            total.index_add_(1, c, (p - log_total[:, None]).exp())
        out[rows] = total
    return out
