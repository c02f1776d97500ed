"""The upper bound of a fusion: every image goes to the expert that knows its class."""

from __future__ import annotations

import torch
from torch import Tensor

from ._experts import ClassLists, check_experts, check_target

__all__ = ["oracle"]


@torch.no_grad()
def oracle(
    expert_logits: list[Tensor] | tuple[Tensor, ...],
    classes: ClassLists,
    target: Tensor,
    *,
    num_classes: int | None = None,
) -> Tensor:
    """Predictions of experts that a perfect selection asks.

    An image is shown to an expert that knows its class, whose likeliest class, the reject class
    left out, is the prediction. Where several experts know the class, one that is right is asked.

    Args:
        expert_logits: of each expert ``[N, S_e]``, or ``[N, S_e + 1]`` with the reject class last.
        classes: the class indices of each expert's columns.
        target: int64 ``[N]``, the true classes.
        num_classes: C; by default the largest class plus one.

    Returns:
        int64 ``[N]``; -1 for an image whose class no expert knows.

    Raises:
        TypeError, ValueError, IndexError: arguments that do not fit each other.

    Source: Sharma et al., "Long-tailed recognition using class-balanced experts", sec. 4.
    """
    experts = check_experts("oracle", expert_logits, classes, num_classes)
    y = check_target("oracle", "target", target, experts)
    predicted = torch.full_like(y, -1)
    knows = experts.subsets.membership.to(y.device)
    for e, own in enumerate(experts.subsets.classes):
        guess = own[experts.own(e).argmax(1)]
        asked = knows[e][y] & ((predicted < 0) | (guess == y))
        predicted = torch.where(asked, guess, predicted)
    return predicted
