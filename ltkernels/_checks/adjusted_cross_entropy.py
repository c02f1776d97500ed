"""Arguments of `adjusted_cross_entropy`."""

from __future__ import annotations

import math

from .arguments import class_target, logits, number, positive, reduction, vector


def adjusted_cross_entropy(
    logits_: object,
    target: object,
    scale: object,
    margin: object,
    bias: object,
    class_weight: object,
    label_smoothing: object,
    focal_gamma: object,
    ignore_index: object,
    reduction_: object,
    *,
    values: bool = True,
) -> None:
    """Check the arguments of `adjusted_cross_entropy`."""
    op = "adjusted_cross_entropy"
    x = logits(op, "logits", logits_)
    classes = x.shape[1]
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(
            f"`{op}`: expected `ignore_index` to be an int, got {type(ignore_index).__name__}"
        )
    class_target(op, "target", target, x, ignore_index=ignore_index, values=values)
    positive(op, "scale", scale)
    if margin is not None:
        vector(op, "margin", margin, "C", classes, x)
    if bias is not None:
        vector(op, "bias", bias, "C", classes, x)
    if class_weight is not None:
        vector(op, "class_weight", class_weight, "C", classes, x, non_negative=True, values=values)
    if not 0 <= number(op, "label_smoothing", label_smoothing) <= 1:
        raise ValueError(f"`{op}`: expected `label_smoothing` in 0..1, got {label_smoothing}")
    if not 0 <= number(op, "focal_gamma", focal_gamma) < math.inf:
        raise ValueError(f"`{op}`: expected `focal_gamma` to be finite, >= 0, got {focal_gamma}")
    reduction(op, reduction_)
