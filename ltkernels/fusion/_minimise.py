"""Minimisation of smooth functions of a few vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["fit_linear", "minimise"]


def minimise(
    variables: Sequence[Tensor],
    value_and_gradients: Callable[[], tuple[Tensor, Sequence[Tensor]]],
    steps: int,
) -> None:
    """L-BFGS with a strong Wolfe line search, in place.

    Args:
        variables: float64 tensors.
        value_and_gradients: the function at the variables, and its gradient by each.
        steps: iterations at most.
    """
    optimizer = torch.optim.LBFGS(
        list(variables),
        max_iter=steps,
        max_eval=2 * steps,
        tolerance_grad=1e-7,
        tolerance_change=1e-9,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        value, gradients = value_and_gradients()
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.grad = gradient
        return float(value)

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    for variable in variables:
        variable.grad = None


def fit_linear(
    features: Tensor, target: Tensor, outputs: int, weight: Tensor, decay: float, steps: int
) -> tuple[Tensor, Tensor]:
    """A linear softmax classifier: weighted cross-entropy plus ``decay / 2 |W|^2``, a convex fit.

    Args:
        features: ``[N, F]``.
        target: int64 ``[N]``, in ``0 ... outputs - 1``.
        outputs: number of classes.
        weight: float64 ``[N]`` of sum 1.
        decay: L2 penalty of the weights (not of the biases).
        steps: iterations at most.

    Returns:
        Weights ``[outputs, F]`` and biases ``[outputs]``, float64.
    """
    x = features.double()
    w = x.new_zeros(outputs, x.shape[1])
    b = x.new_zeros(outputs)

    def value_and_gradients() -> tuple[Tensor, list[Tensor]]:
        log_p = (x @ w.t() + b).log_softmax(1)
        loss = -(weight * log_p.gather(1, target[:, None]).squeeze(1)).sum()
        d = log_p.exp_() * weight[:, None]
        d.scatter_add_(1, target[:, None], -weight[:, None])
        return loss + decay / 2 * w.square().sum(), [d.t() @ x + decay * w, d.sum(0)]

    minimise([w, b], value_and_gradients, steps)
    return w, b
