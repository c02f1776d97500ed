"""The prior of the reject class, set right after training with undersampled images of it."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ltkernels import _checks

__all__ = ["RejectCorrection", "correct_reject", "reject_correction"]

RejectCorrection: TypeAlias = Literal["half", "ratio", "test_prior", "none"] | float


def reject_correction(
    kind: RejectCorrection, ratio: float, *, known: int = 0, num_classes: int = 0
) -> float:
    """What is added to the reject logit of an expert.

    An expert is trained on `ratio` images of its own classes for each image of all others, so its
    reject prior is ``1 / (1 + ratio)``.

    Args:
        kind: ``"half"``: ``log((1 + ratio) / 2)``, the released code, moves that prior to 1/2 and
            leaves the others alone; ``"ratio"``: ``log(ratio)``, the paper, to 1/2 in earnest;
            ``"test_prior"``: ``log(ratio (C - S) / S)``, to the share ``(C - S) / C`` of the other
            classes among balanced test images; ``"none"``: 0; or the number itself.
        ratio: images of the expert's classes for each reject image, > 0.
        known: S, for ``"test_prior"``.
        num_classes: C, for ``"test_prior"``.

    Raises:
        TypeError, ValueError: an unknown kind, a ratio that is not positive, S not in 1 ... C - 1.

    Source: Sharma et al., "Long-tailed recognition using class-balanced experts", sec. 3.2.1.
    """
    op = "reject_correction"
    if isinstance(kind, (int, float)) and not isinstance(kind, bool):
        return float(kind)
    _checks.positive(op, "ratio", ratio)
    if kind == "none":
        return 0.0
    if kind == "half":
        return math.log((1 + ratio) / 2)
    if kind == "ratio":
        return math.log(ratio)
    if kind != "test_prior":
        raise ValueError(
            f"`{op}`: expected `kind` to be 'half', 'ratio', 'test_prior', 'none' or a number, "
            f"got {kind!r}"
        )
    if not 0 < known < num_classes:
        raise ValueError(
            f"`{op}`: expected `known` classes in 1 ... C - 1 with C = `num_classes`, "
            f"got {known} of {num_classes}"
        )
    return math.log(ratio * (num_classes - known) / known)


def correct_reject(
    expert_logits: list[Tensor] | tuple[Tensor, ...], amounts: list[float] | tuple[float, ...]
) -> list[Tensor]:
    """The experts' logits with `amounts[e]` added to the last column of expert e.

    Args:
        expert_logits: of each expert ``[N, S_e + 1]``, the reject class last.
        amounts: one number an expert, such as :func:`reject_correction` gives.

    Returns:
        New tensors.

    Raises:
        TypeError, ValueError: not one amount an expert, or logits that are not 2-D.
    """
    op = "correct_reject"
    if len(amounts) != len(expert_logits):
        raise ValueError(
            f"`{op}`: expected `amounts` to be one number for each of {len(expert_logits)} "
            f"experts, got {len(amounts)}"
        )
    out = []
    for e, (value, amount) in enumerate(zip(expert_logits, amounts, strict=True)):
        z = _checks.logits(op, f"expert_logits[{e}]", value)
        added = torch.zeros(z.shape[1], dtype=z.dtype, device=z.device)
        added[-1] = _checks.number(op, f"amounts[{e}]", amount)
        out.append(z + added)
    return out
