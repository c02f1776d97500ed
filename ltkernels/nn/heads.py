"""Classifier heads: what turns a feature vector into logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NormedLinear", "build_head"]


class NormedLinear(nn.Module):
    """Cosine head: logits are scaled cosines between the feature and each class's weight vector.

    ``logits = scale * normalize(x, dim=1) @ normalize(weight, dim=0)``, norms clamped at 1e-12.
    The head of LDAM (Cao et al., NeurIPS 2019) and RIDE (Wang et al., ICLR 2021); the weight has
    their layout ``[D, C]`` and there is no bias.

    Args:
        in_features: width D of the feature.
        out_features: number of classes C.
        scale: factor s on the cosines; 1 gives cosines, as LDAM's loss takes them, 30 gives logits,
            as RIDE's and every other loss does.

    Shape:
        ``[N, D] -> [N, C]``.

    Raises:
        ValueError: a size or the scale is not positive.
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 30.0) -> None:
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(
                "`NormedLinear`: expected `in_features` and `out_features` to be >= 1, got "
                f"{in_features} and {out_features}"
            )
        if not scale > 0:
            raise ValueError(f"`NormedLinear`: expected `scale` to be > 0, got {scale}")
        self.in_features = in_features
        self.out_features = out_features
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight from U(-1, 1) and scale every class's column to length 1."""
        with torch.no_grad():
            self.weight.uniform_(-1, 1)
            self.weight.copy_(F.normalize(self.weight, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, C]`` of features ``[N, D]``."""
        return self.scale * (F.normalize(x, dim=1) @ F.normalize(self.weight, dim=0))

    def extra_repr(self) -> str:
        """Sizes and scale, for ``print(model)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, scale={self.scale}"
        )


def build_head(
    head: str, in_features: int, num_classes: int, scale: float = 30.0
) -> nn.Linear | NormedLinear:
    """Make a classifier head by name.

    Args:
        head: ``"linear"`` (weight and bias) or ``"cosine"`` (:class:`NormedLinear`).
        in_features: width D of the feature.
        num_classes: number of classes C.
        scale: factor on the cosines; not used by ``"linear"``.

    Returns:
        A module ``[N, D] -> [N, C]``.

    Raises:
        ValueError: unknown `head`.
    """
    if head == "linear":
        return nn.Linear(in_features, num_classes)
    if head == "cosine":
        return NormedLinear(in_features, num_classes, scale)
    raise ValueError(f"`build_head`: expected `head` to be 'linear' or 'cosine', got {head!r}")
