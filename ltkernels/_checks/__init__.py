"""Argument checks shared by `ltkernels.reference` and `ltkernels.functional`.

Shapes, dtypes and devices are checked always. Values (targets, temperatures, weights) are checked
where that is cheap and cannot synchronise: tensors in CPU memory, outside of tracing. Before a
fused kernel, which checks them itself, they are left to it (`values=False`); where it refuses, the
same checks with values name what was wrong.
"""

from __future__ import annotations

from .adjusted_cross_entropy import adjusted_cross_entropy
from .arguments import (
    LOGIT_DTYPES,
    ClassCounts,
    Direction,
    ExpertReduction,
    Experts,
    Reduction,
    Temperature,
    TemperatureKind,
    can_read_values,
    class_counts,
    class_subset,
    class_target,
    compute_dtype,
    distinct_classes,
    embedding,
    expert_logits,
    logits,
    number,
    one_of,
    positive,
    reduction,
    same_device,
    shape_of,
    temperature,
    tensor,
    vector,
    weight_matrix,
    wrong_shape,
)
from .contrast import info_nce
from .distillation import bkd_loss, kd_classes, kd_loss
from .experts import collaborative_kd_loss, diversity_loss, knowledge_balance_weight, ride_loss
from .routing import route_experts, routing_loss, routing_target, topz_gate

__all__ = [
    "LOGIT_DTYPES",
    "ClassCounts",
    "Direction",
    "ExpertReduction",
    "Experts",
    "Reduction",
    "Temperature",
    "TemperatureKind",
    "adjusted_cross_entropy",
    "bkd_loss",
    "can_read_values",
    "class_counts",
    "class_subset",
    "class_target",
    "collaborative_kd_loss",
    "compute_dtype",
    "distinct_classes",
    "diversity_loss",
    "embedding",
    "expert_logits",
    "info_nce",
    "kd_classes",
    "kd_loss",
    "knowledge_balance_weight",
    "logits",
    "number",
    "one_of",
    "positive",
    "reduction",
    "ride_loss",
    "route_experts",
    "routing_loss",
    "routing_target",
    "same_device",
    "shape_of",
    "temperature",
    "tensor",
    "topz_gate",
    "vector",
    "weight_matrix",
    "wrong_shape",
]
