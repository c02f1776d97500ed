"""Fusion by a learned scale and shift of every logit, joined in log space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ltkernels import _checks

from ._experts import ClassLists, Experts
from ._minimise import minimise
from .strategy import LearnedFusion

__all__ = ["JointCalibration"]


class JointCalibration(LearnedFusion):
    r"""Scales and shifts of the experts' logits that make one distribution of their posteriors.

    .. math:: q_c = \frac 1 Z \sum_{e \ni c} \mathrm{softmax}(w_e z_e + b_e)_c, \quad
        Z = \sum_e \sum_{c \in S_e} \mathrm{softmax}(w_e z_e + b_e)_c

    The reject class takes part in the softmax and is dropped after it, as in the released code. All
    of it is computed from logarithms, so q is finite also where every expert rejects and the
    probabilities of the formula are below what a float holds.

    Args:
        classes: the class indices of each expert's columns.
        num_classes: C; by default the largest class plus one.
        reject: whether the experts have a reject class, one value for all or one an expert.
        per: ``"class"``: a scale and a shift for each logit (paper and code); ``"expert"``: one of
            each for an expert's classes, one of each for its reject logit. A few parameters are
            what a small validation set, or one that lacks classes, can settle.
        weight_decay: ``decay / 2`` times the sum of ``(w - 1)^2 + b^2`` is added to the loss. (The
            released code decays w to 0, which flattens the posteriors.)
        steps: iterations of the fit at most.

    Shape:
        logits ``[N, S_e]`` or ``[N, S_e + 1]`` of each expert -> log-probabilities ``[N, C]``,
        differentiable in logits, scales and shifts; -inf for classes that no expert knows.

    Source: Sharma et al., "Long-tailed recognition using class-balanced experts", sec. 3.3.5.
    """

    def __init__(
        self,
        classes: ClassLists,
        num_classes: int | None = None,
        *,
        reject: bool | Sequence[bool] = True,
        per: Literal["class", "expert"] = "class",
        weight_decay: float = 5e-4,
        steps: int = 100,
    ) -> None:
        super().__init__(classes, num_classes, reject=reject)
        if per not in ("class", "expert"):
            raise ValueError(
                f"`JointCalibration`: expected `per` to be 'class' or 'expert', got {per!r}"
            )
        decay = _checks.number("JointCalibration", "weight_decay", weight_decay)
        if not decay >= 0:
            raise ValueError(f"`JointCalibration`: expected `weight_decay` >= 0, got {decay}")
        _checks.positive("JointCalibration", "steps", steps)
        self.per, self.weight_decay, self.steps = per, decay, steps
        self._of_logit = [
            torch.arange(width)
            if per == "class"
            else torch.tensor([0] * len(own) + [1] * (width - len(own)))
            for width, own in zip(self.widths, self.subsets.classes, strict=True)
        ]
        sizes = [int(index.max()) + 1 for index in self._of_logit]
        self.scale = nn.ParameterList(torch.ones(size) for size in sizes)
        self.shift = nn.ParameterList(torch.zeros(size) for size in sizes)

    def forward(
        self,
        expert_logits: list[Tensor] | tuple[Tensor, ...],
        classes: ClassLists | None = None,
    ) -> Tensor:
        """Log-probabilities ``[N, C]``; see the class."""
        experts = self.check(expert_logits, classes)
        if torch.is_grad_enabled():
            return self._log_posterior(experts)
        out = experts.new(experts.subsets.num_classes)
        for rows, part in experts.chunks():
            out[rows] = self._log_posterior(part)
        return out

    def columns(self) -> list[tuple[Tensor, Tensor]]:
        """Scale and shift ``[S_e (+ 1)]`` of each of an expert's logits."""
        triples = zip(self.scale, self.shift, self._of_logit, strict=True)
        return [(scale[index], shift[index]) for scale, shift, index in triples]

    def _log_posterior(self, experts: Experts) -> Tensor:
        own, log_mass = [], []
        for e, z in enumerate(experts.logits):
            index = self._of_logit[e].to(z.device)
            u = _affine(z, self.scale[e][index].to(z), self.shift[e][index].to(z))
            log_p = u.log_softmax(1)[:, : len(experts.subsets.classes[e])]
            own.append(log_p)
            log_mass.append(log_p.logsumexp(1))
        log_z = torch.stack(log_mass).logsumexp(0)
        return _join(own, experts) - log_z[:, None]

    def _fit(self, experts: Experts, target: Tensor, weight: Tensor) -> None:
        like = weight
        scale = [w.detach().to(like).clone() for w in self.scale]
        shift = [b.detach().to(like).clone() for b in self.shift]
        index = [i.to(like.device) for i in self._of_logit]
        columns = _columns_of_target(experts, target)
        count = len(scale)

        def value_and_gradients() -> tuple[Tensor, list[Tensor]]:
            full = [w[i] for w, i in zip(scale, index, strict=True)]
            moved = [b[i] for b, i in zip(shift, index, strict=True)]
            loss, by_scale, by_shift = _nll(experts, columns, weight, full, moved)
            gradients = []
            for variables, found, rest in ((scale, by_scale, 1.0), (shift, by_shift, 0.0)):
                for v, g, i in zip(variables, found, index, strict=True):
                    away = v - rest
                    loss = loss + self.weight_decay / 2 * away.square().sum()
                    gradients.append(
                        self.weight_decay * away + torch.zeros_like(v).index_add(0, i, g)
                    )
            return loss, gradients

        minimise([*scale, *shift], value_and_gradients, self.steps)
        for e in range(count):
            self.scale[e].copy_(scale[e])
            self.shift[e].copy_(shift[e])


def _affine(z: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``w z + b``; an impossible class, z = -inf, stays one whatever the scale."""
    impossible = z.isneginf()
    return (z.masked_fill(impossible, 0) * scale + shift).masked_fill(impossible, -torch.inf)


def _join(own: list[Tensor], experts: Experts) -> Tensor:
    """``log sum_e p_e(c)`` for every class, from each expert's log-probabilities."""
    known = experts.subsets.membership
    rows, classes = experts.rows, experts.subsets.num_classes
    if bool((known.sum(0) <= 1).all()):
        columns = torch.cat([c.cpu() for c in experts.subsets.classes])
        place = torch.full((classes,), len(columns)).index_copy(
            0, columns, torch.arange(len(columns))
        )
        nobody = own[0].new_full((rows, 1), -torch.inf)
        return torch.cat([*own, nobody], 1)[:, place.to(own[0].device)]
    padded = []
    for e, log_p in enumerate(own):
        place = torch.full((classes,), log_p.shape[1])
        place[experts.subsets.classes[e].cpu()] = torch.arange(log_p.shape[1])
        nobody = log_p.new_full((rows, 1), -torch.inf)
        padded.append(torch.cat([log_p, nobody], 1)[:, place.to(log_p.device)])
    together = torch.stack(padded)
    # The gradient of logsumexp is NaN where all is -inf: those places take no part in it.
    nowhere = together.isneginf().all(0)
    return together.masked_fill(nowhere, 0).logsumexp(0).masked_fill(nowhere, -torch.inf)


# --- the loss and its gradient, chunk by chunk ---------------------------------------------------


def _columns_of_target(experts: Experts, target: Tensor) -> list[Tensor]:
    """Of each expert the column ``[N]`` of the true class; -1 where it does not know it."""
    columns = []
    for own in experts.subsets.classes:
        place = torch.full((experts.subsets.num_classes,), -1, device=target.device)
        place[own] = torch.arange(len(own), device=target.device)
        columns.append(place[target])
    return columns


def _nll(
    experts: Experts,
    columns: list[Tensor],
    weight: Tensor,
    scale: list[Tensor],
    shift: list[Tensor],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Weighted ``-log q_y`` and its gradient by the scale and shift of every logit.

    With ``u = w z + b``, ``s_e`` the mass an expert gives its classes, ``t_e = p_e / s_e`` inside
    them, ``sigma_e = s_e / Z`` and ``rho_e = p_e(y) / sum p(y)``, by ``u_{e,c}`` it is
    ``t_e(c) (s_e (rho_e - sigma_e) + sigma_e) - rho_e [c = y]`` for a class and
    ``r_e (rho_e - sigma_e)`` for the reject logit. Images of classes that no expert knows, whose q
    is 0 whatever the parameters, are left out.
    """
    known = torch.stack([c >= 0 for c in columns]).any(0)
    loss = weight.new_zeros(())
    by_scale = [torch.zeros_like(w) for w in scale]
    by_shift = [torch.zeros_like(b) for b in shift]
    w_cast = [w.to(z) for w, z in zip(scale, experts.logits, strict=True)]
    b_cast = [b.to(z) for b, z in zip(shift, experts.logits, strict=True)]
    for rows, part in experts.chunks():
        sample = torch.where(known[rows], weight[rows], 0)
        inside, log_s, log_r, log_y = [], [], [], []
        for e, z in enumerate(part.logits):
            u = torch.addcmul(b_cast[e], z, w_cast[e])
            impossible = z.isneginf()
            if bool(impossible.any()):
                u.masked_fill_(impossible, -torch.inf)
            own = u[:, : len(part.subsets.classes[e])]
            mass = own.logsumexp(1)
            total = torch.logaddexp(mass, u[:, -1]) if part.rejects(e) else mass
            column = columns[e][rows]
            at_target = own.gather(1, column.clamp(min=0)[:, None]).squeeze(1) - total
            log_s.append(mass - total)
            log_r.append(u[:, -1] - total if part.rejects(e) else torch.full_like(mass, -torch.inf))
            log_y.append(at_target.masked_fill(column < 0, -torch.inf))
            inside.append(own.sub_(mass[:, None]).exp_())
        s, y = torch.stack(log_s), torch.stack(log_y)
        log_z, log_q = s.logsumexp(0), y.logsumexp(0)
        loss = loss - (sample * (log_q - log_z).double().masked_fill(sample == 0, 0)).sum()
        sigma, rho = s.softmax(0), y.softmax(0)
        for e, z in enumerate(part.logits):
            gap = rho[e] - sigma[e]
            factor = sample.to(z)
            d = inside[e].mul_(((log_s[e].exp() * gap + sigma[e]) * factor).nan_to_num()[:, None])
            column = columns[e][rows]
            at = (-rho[e] * factor).nan_to_num().masked_fill(column < 0, 0)
            d.scatter_add_(1, column.clamp(min=0)[:, None], at[:, None])
            width = d.shape[1]
            own_z = z[:, :width]
            by_shift[e][:width] += d.sum(0)
            by_scale[e][:width] += d.mul_(own_z.masked_fill(own_z.isneginf(), 0)).sum(0)
            if part.rejects(e):
                d_reject = (log_r[e].exp() * gap * factor).nan_to_num()
                by_shift[e][-1] += d_reject.sum()
                by_scale[e][-1] += (d_reject * z[:, -1].masked_fill(z[:, -1].isneginf(), 0)).sum()
    return loss, by_scale, by_shift
