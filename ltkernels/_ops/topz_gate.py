"""The native op `topz_gate` with its backward, and what they return for tensors without data."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _library  # noqa: F401 (registers the ops)

topz_gate = torch.ops.ltkernels.topz_gate.default
topz_gate_backward = torch.ops.ltkernels.topz_gate_backward.default


@torch.library.register_fake("ltkernels::topz_gate")  # type: ignore[untyped-decorator]
def _(
    logits: Tensor,
    feature: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    z: int,
    keep: bool,
) -> tuple[Tensor, ...]:
    n = logits.shape[0]
    if not keep:
        nothing = [b1.new_empty(0, dtype=torch.float32) for _ in range(4)]
        return b1.new_empty(n), *nothing
    return (
        b1.new_empty(n),
        b1.new_empty(n, z),
        b1.new_empty((n, z), dtype=torch.int32),
        b1.new_empty(n, b1.shape[0]),
        b1.new_empty(n),
    )


@torch.library.register_fake("ltkernels::topz_gate_backward")  # type: ignore[untyped-decorator]
def _(
    upstream: Tensor,
    feature: Tensor,
    w1: Tensor,
    w2: Tensor,
    top: Tensor,
    index: Tensor,
    units: Tensor,
    inverse_norm: Tensor,
    like: Tensor,
    logits_gradient: bool,
    feature_gradient: bool,
    weight_gradient: bool,
) -> tuple[Tensor, ...]:
    def result(wanted: bool, of: Tensor, *shape: int) -> Tensor:
        return of.new_empty(shape) if wanted else of.new_empty(0, dtype=torch.float32)

    h, width = w1.shape
    return (
        result(logits_gradient, like, *like.shape),
        result(feature_gradient, feature, *feature.shape),
        result(weight_gradient, w1, h, width),
        result(weight_gradient, w1, h),
        result(weight_gradient, w1, 1, w2.numel()),
        result(weight_gradient, w1, 1),
    )
