"""Arguments of the ops over several experts' logits."""

from __future__ import annotations

from torch import Tensor

from .arguments import (
    TemperatureKind,
    class_target,
    expert_logits,
    logits,
    number,
    one_of,
    positive,
    reduction,
    temperature,
    vector,
    weight_matrix,
    wrong_shape,
)


def ride_loss(
    expert_logits_: object,
    target: object,
    margin: object,
    class_weight: object,
    temperature_: object,
    diversity_factor: object,
    expert_reduction: object,
    reduction_: object,
    values: bool = True,
) -> tuple[tuple[Tensor, ...], TemperatureKind]:
    """Check the arguments of `ride_loss`; returns the experts and the kind of temperature."""
    op = "ride_loss"
    experts = expert_logits(op, "expert_logits", expert_logits_)
    rows, classes = experts[0].shape
    first = experts[0]
    class_target(op, "target", target, first, values=values)
    if margin is not None:
        vector(op, "margin", margin, "C", classes, first)
    if class_weight is not None:
        vector(
            op, "class_weight", class_weight, "C", classes, first, non_negative=True, values=values
        )
    number(op, "diversity_factor", diversity_factor)
    one_of(op, "expert_reduction", expert_reduction, "sum", "mean")
    reduction(op, reduction_)
    return experts, temperature(op, temperature_, rows, classes, first)


def diversity_loss(
    expert_logits_: object,
    temperature_: object,
    t2: object,
    expert_reduction: object,
    reduction_: object,
) -> tuple[tuple[Tensor, ...], TemperatureKind]:
    """Check the arguments of `diversity_loss`; returns the experts and the kind of temperature."""
    op = "diversity_loss"
    experts = expert_logits(op, "expert_logits", expert_logits_)
    rows, classes = experts[0].shape
    if not isinstance(t2, (bool, int, float)):
        raise TypeError(f"`{op}`: expected `t2` to be a bool or a number, got {type(t2).__name__}")
    one_of(op, "expert_reduction", expert_reduction, "sum", "mean")
    reduction(op, reduction_)
    return experts, temperature(op, temperature_, rows, classes, experts[0])


def collaborative_kd_loss(
    expert_logits_: object,
    temperature_: object,
    sample_weight: object,
    direction: object,
    reduction_: object,
) -> tuple[tuple[Tensor, ...], TemperatureKind]:
    """Check the arguments of `collaborative_kd_loss`; returns as `diversity_loss`."""
    op = "collaborative_kd_loss"
    experts = expert_logits(op, "expert_logits", expert_logits_)
    rows, classes = experts[0].shape
    if sample_weight is not None:
        sizes = (len(experts), rows)
        weight_matrix(op, "sample_weight", sample_weight, "[K, N]", sizes, experts[0])
    one_of(op, "direction", direction, "as_printed", "teacher_first")
    reduction(op, reduction_)
    return experts, temperature(op, temperature_, rows, classes, experts[0])


def knowledge_balance_weight(
    ref_logits: object, cls_logits: object, target: object, eps: object
) -> None:
    """Check the arguments of `knowledge_balance_weight`."""
    op = "knowledge_balance_weight"
    ref = logits(op, "ref_logits", ref_logits)
    cls = logits(op, "cls_logits", cls_logits, like=ref)
    if cls.shape != ref.shape:
        raise wrong_shape(op, "cls_logits", "[N, C]", ref.shape, cls)
    class_target(op, "target", target, ref)
    positive(op, "eps", eps)
