"""Fusion by a linear classifier on the experts' posteriors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._experts import ClassLists, Experts
from ._minimise import fit_linear
from .strategy import LearnedFusion

__all__ = ["Stacking", "posteriors"]


def posteriors(experts: Experts) -> Tensor:
    """The experts' probabilities side by side, reject classes included: ``[N, sum of widths]``."""
    return torch.cat([z.softmax(1) for z in experts.logits], 1)


class Stacking(LearnedFusion):
    """One linear softmax layer on the concatenated posteriors.

    ``q = softmax(W [E_1; ...; E_K] + b)``, fitted by cross-entropy.

    Args:
        classes: the class indices of each expert's columns.
        num_classes: C; by default the largest class plus one.
        reject: whether the experts have a reject class, one value for all or one an expert.
        weight_decay: ``decay / 2 |W|^2`` is added to the loss; above 0 the fit has one solution.
        steps: iterations of the fit at most.

    Source: Sharma et al., "Long-tailed recognition using class-balanced experts", sec. 3.3.4.
    """

    def __init__(
        self,
        classes: ClassLists,
        num_classes: int | None = None,
        *,
        reject: bool | Sequence[bool] = True,
        weight_decay: float = 1e-4,
        steps: int = 200,
    ) -> None:
        super().__init__(classes, num_classes, reject=reject)
        self.weight_decay, self.steps = weight_decay, steps
        self.weight = nn.Parameter(torch.zeros(self.subsets.num_classes, sum(self.widths)))
        self.bias = nn.Parameter(torch.zeros(self.subsets.num_classes))

    def forward(
        self,
        expert_logits: list[Tensor] | tuple[Tensor, ...],
        classes: ClassLists | None = None,
    ) -> Tensor:
        """Log-probabilities ``[N, C]``; see the class."""
        x = posteriors(self.check(expert_logits, classes))
        return (x @ self.weight.to(x).t() + self.bias.to(x)).log_softmax(1)

    def _fit(self, experts: Experts, target: Tensor, weight: Tensor) -> None:
        w, b = fit_linear(
            posteriors(experts),
            target,
            self.subsets.num_classes,
            weight,
            self.weight_decay,
            self.steps,
        )
        self.weight.copy_(w)
        self.bias.copy_(b)
