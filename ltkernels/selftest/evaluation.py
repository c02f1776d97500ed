"""Loss and gradients of one call. Printed with a failing case: uses `torch` alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def upstream_of(loss: Tensor, seed: int) -> Tensor:
    """The gradient from above: normal, of the loss's shape."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(loss.shape, generator=random).to(loss)


def evaluate(
    op: Callable[..., Tensor], arguments: dict[str, Any], wrt: tuple[str, ...], seed: int
) -> dict[str, Tensor]:
    """The loss, with and without a graph, and the gradient of each argument of `wrt`."""
    with torch.no_grad():
        results = {"loss without gradients": op(**arguments)}
    leaves: dict[str, Tensor] = {}
    call = dict(arguments)
    for name in wrt:
        if isinstance(call[name], Tensor):
            call[name] = leaves[name] = call[name].detach().requires_grad_()
        else:  # experts
            call[name] = [x.detach().requires_grad_() for x in call[name]]
            leaves.update({f"{name}[{k}]": x for k, x in enumerate(call[name])})
    loss = op(**call)
    results["loss"] = loss.detach()
    if not leaves:
        return results
    gradients = torch.autograd.grad(loss, list(leaves.values()), upstream_of(loss, seed))
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        assert (gradient.shape, gradient.dtype) == (leaf.shape, leaf.dtype), name
        results[f"gradient of {name}"] = gradient
    return results


def in_float64(
    arguments: dict[str, Any], data: tuple[str, ...], arithmetic: torch.dtype
) -> dict[str, Any]:
    """The same values in float64 on the CPU; constants as the arithmetic sees them."""

    def exact(name: str, x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return [exact(name, each) for each in x]
        if not isinstance(x, Tensor):
            return x
        if not x.is_floating_point():
            return x.cpu()
        return (x if name in data else x.to(arithmetic)).cpu().double()

    return {name: exact(name, x) for name, x in arguments.items()}
