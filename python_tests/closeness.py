"""How close a fused op must come to its definition.

Three evaluations of one call are compared: the fused op, plain PyTorch in the same dtype (the
definition on the same tensors), and the exact value (the definition in float64 on the same values).
An element passes where

    |fused - exact| <= 2 |plain - exact| + rounding,

with the plain error taken as the worst of its row relative to `magnitude`, and `rounding` a few
units in the last place of the arithmetic times `magnitude`, plus one of the stored element.
`magnitude` is the size of an element before cancellation: p + q where the gradient is p - q, for
which no arithmetic can promise a small error relative to the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Arguments = Mapping[str, Any]
# (arguments in float64, dtype of the arithmetic) -> magnitude of each row's loss `[N]`, and of each
# gradient `[N, C]` of "sum" reduction with upstream 1, by argument name. For float64 it must cover
# the rounding of the definition too, which divides before it subtracts the maximum.
Magnitudes = Callable[[Arguments, torch.dtype], tuple[Tensor, dict[str, Tensor]]]

ULPS = 8
UNDERFLOW = 2.0**-110  # exponentials below 2^-126 may be taken as 0


@dataclass
class Outcome:
    loss: Tensor
    gradients: dict[str, Tensor]


def evaluate(
    op: Callable[..., Tensor], arguments: Arguments, wrt: Sequence[str], upstream: Tensor
) -> Outcome:
    """The loss and its gradients; `upstream` is `[]` or `[N]`."""
    leaves = {name: arguments[name].detach().requires_grad_() for name in wrt}
    loss = op(**{**arguments, **leaves})
    gradients = torch.autograd.grad(loss, list(leaves.values()), upstream.to(loss.dtype))
    for name, gradient in zip(wrt, gradients, strict=True):
        assert gradient.shape == arguments[name].shape
        assert gradient.dtype == arguments[name].dtype
    return Outcome(loss.detach(), dict(zip(wrt, gradients, strict=True)))


def compute_dtype(arguments: Arguments, logits: Sequence[str]) -> torch.dtype:
    double = any(arguments[name].dtype == torch.float64 for name in logits)
    return torch.float64 if double else torch.float32


def exact_arguments(arguments: Arguments, logits: Sequence[str]) -> dict[str, Any]:
    """The same values in float64; constants as the arithmetic sees them."""
    arithmetic = compute_dtype(arguments, logits)

    def exact(name: str, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return (x if name in logits else x.to(arithmetic)).double()

    return {name: exact(name, x) for name, x in arguments.items()}


def assert_close_to_definition(
    fused: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    arguments: Arguments,
    logits: Sequence[str],
    wrt: Sequence[str],
    magnitudes: Magnitudes,
    upstream_seed: int = 0,
) -> None:
    """Compare loss and gradients, and where they are infinite or NaN."""
    n = arguments[logits[0]].shape[0]
    reduction = arguments.get("reduction", "mean")
    random = torch.Generator().manual_seed(upstream_seed)
    shape = (n,) if reduction == "none" else ()
    upstream = torch.randn(shape, generator=random, dtype=torch.float64).to(
        arguments[logits[0]].device
    )
    arithmetic = compute_dtype(arguments, logits)
    upstream = upstream.to(arithmetic)
    before = {k: (v, v.clone(), v._version) for k, v in arguments.items() if isinstance(v, Tensor)}

    ours = evaluate(fused, arguments, wrt, upstream)
    for name, (tensor, copy, version) in before.items():
        assert torch.equal(tensor.nan_to_num(7e4), copy.nan_to_num(7e4)), f"{name} was written to"
        assert tensor._version == version, f"{name} was written to"
    with torch.no_grad():
        without_gradient = fused(**arguments)
    torch.testing.assert_close(without_gradient, ours.loss, rtol=0, atol=0, equal_nan=True)

    plain = evaluate(definition, arguments, wrt, upstream)
    in_float64 = exact_arguments(arguments, logits)
    exact = evaluate(definition, in_float64, wrt, upstream.double())
    rows = {**in_float64, "reduction": "none"}
    row_loss, plain_rows = definition(**rows), definition(**{**arguments, "reduction": "none"})
    # A float32 underflow may decide whether a term is infinite: such rows have no exact value.
    decided = (row_loss.isfinite() == plain_rows.isfinite()) | row_loss.isnan()
    assert ours.loss.dtype == plain.loss.dtype == arithmetic
    eps = torch.finfo(arithmetic).eps

    loss_magnitude, gradient_magnitudes = magnitudes(in_float64, arithmetic)
    if reduction == "none":
        _compare("loss", ours.loss, plain.loss, exact.loss, ULPS * eps * loss_magnitude, decided)
    else:
        divisor = _divisor(exact.loss, row_loss)
        rounding = ULPS * eps * (loss_magnitude.nansum() + row_loss.nansum().abs()) / divisor
        keep = decided.all()
        _compare("loss", ours.loss, plain.loss, exact.loss, rounding, keep)
    for name in wrt:
        magnitude = gradient_magnitudes[name]
        factor = upstream.double().abs()
        if reduction == "none":
            magnitude = magnitude * factor.unsqueeze(1)
        else:
            magnitude = magnitude * factor / _divisor(exact.loss, row_loss)
        _compare_gradient(name, ours, plain, exact, magnitude, decided, eps)


def _divisor(loss: Tensor, row_loss: Tensor) -> Tensor:
    """What the reduction divided the sum of the rows by (1 where that cannot be told)."""
    divisor = (row_loss.sum() / loss).abs()
    return divisor if bool(divisor.isfinite() & (divisor > 0)) else torch.ones_like(divisor)


def _compare(
    name: str, ours: Tensor, plain: Tensor, exact: Tensor, rounding: Tensor, decided: Tensor
) -> None:
    assert torch.equal(ours.isnan(), plain.isnan()), f"NaN in {name}: {ours} and {plain}"
    assert torch.equal(ours.isinf(), plain.isinf()), f"infinite {name}: {ours} and {plain}"
    finite = exact.isfinite() & decided
    error, plain_error = (ours - exact).abs(), (plain - exact).abs()
    bad = finite & (error > 2 * plain_error + rounding)
    assert not bad.any(), f"{name}: error {error[bad]} of {exact[bad]}, plain {plain_error[bad]}"


def _compare_gradient(
    name: str,
    ours_: Outcome,
    plain_: Outcome,
    exact_: Outcome,
    magnitude: Tensor,
    decided: Tensor,
    eps: float,
) -> None:
    ours, plain = ours_.gradients[name], plain_.gradients[name]
    exact = exact_.gradients[name]
    wrong = ours.isnan().any(1) != plain.isnan().any(1)
    assert not wrong.any(), f"NaN in gradient of {name}, rows {wrong.nonzero().flatten()}"
    assert bool((ours.isnan() | ~plain.isnan()).all()), f"NaN missing in gradient of {name}"
    kept = (decided & ~exact.isnan().any(1)).unsqueeze(1) & ~ours.isnan()
    storage = torch.finfo(ours.dtype)
    error, plain_error = (ours.double() - exact).abs(), (plain.double() - exact).abs()
    rounding = ULPS * eps * magnitude + UNDERFLOW * (1 + _row_max(magnitude))
    if storage.bits < 32:
        rounding = rounding + 2 * plain_error
    else:  # Relative to magnitude, so that a large element does not excuse a small one.
        relative = torch.where(magnitude > 0, plain_error / magnitude, 0.0).nan_to_num(0.0, 0.0)
        rounding = rounding + (2 * _row_max(relative)).clamp(max=0.5) * magnitude
    if storage.bits < 64:
        rounding = rounding + storage.eps * exact.abs()
    allowed = rounding + 2 * storage.smallest_normal * storage.eps
    bad = kept & ~(error <= allowed) & ~(torch.isinf(exact) & (ours == exact))
    if storage.bits < 32:  # what overflows the stored type overflows in both
        bad &= ~(plain.isinf() & (ours == plain))
    assert not bad.any(), (
        f"gradient of {name} at {bad.nonzero()[:3].tolist()}: "
        f"{ours[bad][:3]} for {exact[bad][:3]}, "
        f"error {error[bad][:3]}, plain {plain_error[bad][:3]}, allowed {allowed[bad][:3]}"
    )


def _row_max(x: Tensor) -> Tensor:
    return x.amax(dim=1, keepdim=True) if x.numel() else x[:, :1]
