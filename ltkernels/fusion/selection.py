"""Fusion by asking one expert."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._experts import ClassLists, Experts
from ._minimise import fit_linear
from .stacking import posteriors
from .strategy import LearnedFusion
from .voting import expand_posterior

__all__ = ["ExpertSelection"]


class ExpertSelection(LearnedFusion):
    """A linear classifier chooses an expert, whose posterior over all classes is the answer.

    The classifier sees the experts' posteriors side by side, reject classes included, and each
    expert's confidence, its largest probability of a class of its own. It learns which expert knows
    the image's class; where several do, the one that gives it the largest probability. The chosen
    expert's reject probability is spread evenly over the other classes, as in :func:`soft_vote`.

    Args:
        classes: the class indices of each expert's columns.
        num_classes: C; by default the largest class plus one.
        reject: whether the experts have a reject class, one value for all or one an expert.
        confidence: whether the classifier sees the confidences, too. The paper names the posteriors
            alone; but how sure an expert without a reject class is, no linear function of its
            posterior can tell, for their sum is always 1.
        weight_decay: ``decay / 2 |W|^2`` is added to the loss; above 0 the fit has one solution.
        steps: iterations of the fit at most.

    Source: Sharma et al., "Long-tailed recognition using class-balanced experts", sec. 3.3.3.
    """

    def __init__(
        self,
        classes: ClassLists,
        num_classes: int | None = None,
        *,
        reject: bool | Sequence[bool] = True,
        confidence: bool = True,
        weight_decay: float = 1e-4,
        steps: int = 200,
    ) -> None:
        super().__init__(classes, num_classes, reject=reject)
        self.confidence, self.weight_decay, self.steps = confidence, weight_decay, steps
        count = len(self.subsets.classes)
        width = sum(self.widths) + (count if confidence else 0)
        self.weight = nn.Parameter(torch.zeros(count, width))
        self.bias = nn.Parameter(torch.zeros(count))

    def select(self, expert_logits: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        """Log-probabilities ``[N, K]`` of the experts to be asked."""
        x = self._features(self.check(expert_logits))
        return (x @ self.weight.to(x).t() + self.bias.to(x)).log_softmax(1)

    def _features(self, experts: Experts) -> Tensor:
        p = posteriors(experts)
        if not self.confidence:
            return p
        own = [
            q[:, : len(c)].amax(1, keepdim=True)
            for q, c in zip(torch.split(p, self.widths, 1), experts.subsets.classes, strict=True)
        ]
        return torch.cat([p, *own], 1)

    @torch.no_grad()
    def forward(
        self,
        expert_logits: list[Tensor] | tuple[Tensor, ...],
        classes: ClassLists | None = None,
    ) -> Tensor:
        """Log-probabilities ``[N, C]`` of the chosen experts, without gradient."""
        experts = self.check(expert_logits, classes)
        chosen = self.select(expert_logits).argmax(1)
        out = experts.new(self.subsets.num_classes)
        for e in range(len(experts.logits)):
            rows = (chosen == e).nonzero().squeeze(1)
            mine = Experts(tuple(z[rows] for z in experts.logits), experts.subsets)
            out[rows] = expand_posterior(mine, e).log()
        return out

    def _fit(self, experts: Experts, target: Tensor, weight: Tensor) -> None:
        best, answer = torch.full_like(weight, -1), torch.full_like(target, -1)
        for e, own in enumerate(experts.subsets.classes):
            place = torch.full((experts.subsets.num_classes,), -1, device=target.device)
            place[own] = torch.arange(len(own), device=target.device)
            column = place[target]
            p = experts.logits[e].softmax(1).gather(1, column.clamp(min=0)[:, None]).squeeze(1)
            better = (column >= 0) & (p > best)
            best, answer = torch.where(better, p.double(), best), answer.masked_fill(better, e)
        known = answer >= 0
        if not bool(known.any()):
            raise ValueError(
                "`ExpertSelection`: expected `target` to hold a class that an expert knows"
            )
        w, b = fit_linear(
            self._features(experts)[known],
            answer[known],
            len(self.subsets.classes),
            weight[known] / weight[known].sum(),
            self.weight_decay,
            self.steps,
        )
        self.weight.copy_(w)
        self.bias.copy_(b)
