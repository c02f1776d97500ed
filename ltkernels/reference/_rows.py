"""Pieces every definition is made of: tempered log-softmax, dropped zero terms, reductions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from .._checks import Temperature

NEG_INF = float("-inf")


def empty_rows(logits: Tensor) -> Tensor:
    """The rows without a logit above -inf, whose softmax is NaN: [N, C] -> [N, 1]."""
    return (logits == NEG_INF).all(dim=1, keepdim=True)


def log_softmax_rows(
    logits: Tensor,
    temperature: Temperature = 1.0,
    log_weight: Tensor | None = None,
    empty: Tensor | None = None,
) -> Tensor:
    """log softmax(logits / temperature + log_weight) of each row.

    A logit of -inf is a constant: no gradient passes it. Rows of nothing but -inf, and the rows of
    the mask `empty` `[N, 1]`, are left as they are: what is NaN there stays NaN, forward and
    backward.
    """
    empty = empty_rows(logits) if empty is None else empty
    constant = (logits == NEG_INF) & ~empty
    # Dividing a stand-in keeps -inf * 0 out of the gradient of the temperature.
    scaled = torch.where(constant, 0.0, logits) / temperature
    if log_weight is not None:
        scaled = scaled + log_weight
    return log_softmax(torch.where(constant, NEG_INF, scaled), dim=1)


def weighted(weight: Tensor, term: Tensor) -> Tensor:
    """weight * term, where a weight of 0 drops an infinite term (0 * inf = 0)."""
    return weight * torch.where((weight == 0) & term.isinf(), 0.0, term)


def reduce(row_loss: Tensor, reduction: str) -> Tensor:
    """The rows' mean, sum, or themselves."""
    if reduction == "mean":
        return row_loss.mean()
    return row_loss.sum() if reduction == "sum" else row_loss
