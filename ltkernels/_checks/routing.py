"""Arguments of the routing ops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import (
    LOGIT_DTYPES,
    class_target,
    embedding,
    expert_logits,
    logits,
    number,
    positive,
    reduction,
    same_device,
    shape_of,
    tensor,
    vector,
    weight_matrix,
    wrong_shape,
)


def _top(op: str, z: object, classes: int) -> int:
    """How many of the largest logits a gate looks at: 1..C."""
    if isinstance(z, bool) or not isinstance(z, int):
        raise TypeError(f"`{op}`: expected `z` to be an int, got {type(z).__name__}")
    if not 1 <= z <= classes:
        raise ValueError(f"`{op}`: expected `z` in 1..C = 1..{classes}, got {z}")
    return z


def topz_gate(
    logits_: object,
    feature: object,
    w1: object,
    b1: object,
    w2: object,
    b2: object,
    z: object,
) -> None:
    """Check the arguments of `topz_gate`."""
    op = "topz_gate"
    x = logits(op, "logits", logits_)
    rows, classes = x.shape
    v = embedding(op, "feature", feature, like=x)
    if v.shape[0] != rows:
        raise wrong_shape(op, "feature", "[N, D]", [rows, v.shape[1]], v)
    z = _top(op, z, classes)
    first = tensor(op, "w1", w1)
    hidden = first.shape[0] if first.dim() == 2 else 1
    weight_matrix(op, "w1", first, "[h, D]", (hidden, v.shape[1]), x)
    vector(op, "b1", b1, "h", hidden, x)
    weight_matrix(op, "w2", w2, "[1, z + h]", (1, z + hidden), x)
    vector(op, "b2", b2, "1", 1, x)


def routing_loss(gate: object, needs_help: object, pos_weight: object, reduction_: object) -> None:
    """Check the arguments of `routing_loss`."""
    op = "routing_loss"
    x = tensor(op, "gate", gate)
    if x.dtype not in LOGIT_DTYPES:
        raise TypeError(
            f"`{op}`: expected `gate` to be float16, bfloat16, float32 or float64, got {x.dtype}"
        )
    y = tensor(op, "needs_help", needs_help)
    if y.dtype != torch.bool and not y.is_floating_point():
        raise TypeError(f"`{op}`: expected `needs_help` to be bool or floating, got {y.dtype}")
    if y.shape != x.shape:
        raise ValueError(
            f"`{op}`: expected `needs_help` to have the shape of `gate`, {shape_of(x)}, "
            f"got {shape_of(y)}"
        )
    same_device(op, "needs_help", y, x)
    positive(op, "pos_weight", pos_weight)
    reduction(op, reduction_)


def routing_target(expert_logits_: object, target: object) -> tuple[Tensor, ...]:
    """Check the arguments of `routing_target`; returns the experts."""
    op = "routing_target"
    experts = expert_logits(op, "expert_logits", expert_logits_)
    class_target(op, "target", target, experts[0])
    return experts


def route_experts(
    expert_logits_: object,
    features: object,
    w1: object,
    b1: object,
    w2: object,
    b2: object,
    z: object,
    threshold: object,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Check the arguments of `route_experts`; returns K logits and K - 1 features."""
    op = "route_experts"
    experts = expert_logits(op, "expert_logits", expert_logits_)
    first = experts[0]
    rows, classes = first.shape
    routers = len(experts) - 1
    one_of_k = [routers, len(experts)]
    if not isinstance(features, (Tensor, Sequence)) or isinstance(features, str):
        raise TypeError(
            f"`{op}`: expected `features` to be tensors [N, D], got {type(features).__name__}"
        )
    if isinstance(features, Tensor) and features.dim() != 3:
        raise ValueError(
            f"`{op}`: expected `features` to be [K - 1, N, D], got {shape_of(features)}"
        )
    if len(features) not in one_of_k:
        raise ValueError(
            f"`{op}`: expected `features` of K - 1 = {routers} experts (or of all), "
            f"got {len(features)}"
        )
    gates = tuple(embedding(op, f"features[{i}]", features[i], like=first) for i in range(routers))
    for i, v in enumerate(gates):
        if v.shape[0] != rows or v.shape != gates[0].shape:
            raise wrong_shape(op, f"features[{i}]", "[N, D]", [rows, gates[0].shape[1]], v)
        if v.dtype != gates[0].dtype:
            raise TypeError(
                f"`{op}`: expected `features[{i}]` to be {gates[0].dtype} like `features[0]`, "
                f"got {v.dtype}"
            )
    z = _top(op, z, classes)
    first_weight = tensor(op, "w1", w1)
    hidden = first_weight.shape[1] if first_weight.dim() == 3 else 1
    width = gates[0].shape[1] if gates else first_weight.shape[-1] if first_weight.dim() else 1
    sizes: dict[str, tuple[object, dict[str, tuple[int, ...]]]] = {
        "w1": (w1, {"[K - 1, h, D]": (routers, hidden, width)}),
        "b1": (b1, {"[K - 1, h]": (routers, hidden)}),
        "w2": (w2, {"[1, z + h]": (1, z + hidden), "[K - 1, 1, z + h]": (routers, 1, z + hidden)}),
        "b2": (b2, {"[1]": (1,), "[K - 1, 1]": (routers, 1)}),
    }
    for name, (value, allowed) in sizes.items():
        x = tensor(op, name, value)
        if x.dtype not in LOGIT_DTYPES:
            raise TypeError(f"`{op}`: expected `{name}` to be a floating tensor, got {x.dtype}")
        if tuple(x.shape) not in allowed.values():
            wanted = " or ".join(f"{k} = {list(v)}" for k, v in allowed.items())
            raise ValueError(f"`{op}`: expected `{name}` to be {wanted}, got {shape_of(x)}")
        same_device(op, name, x, first)
    shared = [tensor(op, "w2", w2).dim() == 2, tensor(op, "b2", b2).dim() == 1]
    if shared[0] != shared[1]:
        raise ValueError(
            f"`{op}`: expected `b2` to be shared where `w2` is, and one a router where `w2` is: "
            f"got {shape_of(tensor(op, 'w2', w2))} and {shape_of(tensor(op, 'b2', b2))}"
        )
    if not -math.inf <= number(op, "threshold", threshold) <= math.inf:
        raise ValueError(f"`{op}`: expected `threshold` to be a number, got {threshold}")
    return experts, gates
