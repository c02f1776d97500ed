"""Fusions of experts as straight-line computations, which a program can hold.

The formulas are those of `ltkernels.fusion`, without its checks and its chunks of images: what
those do depends on values, or on the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ltkernels.fusion import ExpertSelection, JointCalibration, LearnedFusion, Stacking
from ltkernels.fusion.kl import MAX_NEWTON_STEPS, mass_of, newton_step
from ltkernels.fusion.strategies import SoftVote

__all__ = ["fusion_program"]


def fusion_program(fusion: LearnedFusion) -> nn.Module:
    """A fusion, as fitted, in a form without turns.

    Args:
        fusion: of `fusion.make_fusion`.

    Returns:
        A module: logits of each expert, a list, to log-probabilities ``[N, C]``.

    Raises:
        ValueError: KL minimisation over experts that share classes, which iterates until nothing
            moves.
    """
    if isinstance(fusion, JointCalibration):
        return _JointCalibration(fusion)
    if isinstance(fusion, Stacking):
        return _Stacking(fusion)
    if isinstance(fusion, ExpertSelection):
        return _ExpertSelection(fusion)
    if isinstance(fusion, SoftVote):
        return _SoftVote(fusion)
    if bool((fusion.subsets.membership.sum(0) > 1).any()):
        raise ValueError(
            "kl_min over experts that share classes iterates until nothing moves, which no program "
            "can hold; choose another `cbe.fusion`"
        )
    return _KLMin(fusion)


class _Fusion(nn.Module):
    """What all of them know: the columns and classes of each expert."""

    def __init__(self, fusion: LearnedFusion) -> None:
        super().__init__()
        self.num_classes = fusion.subsets.num_classes
        self.reject = fusion.reject
        self.sizes = [len(own) for own in fusion.subsets.classes]
        for e, own in enumerate(fusion.subsets.classes):
            self.register_buffer(f"classes{e}", own.cpu().clone())
        unknown = ~fusion.subsets.membership.any(0)
        self.num_unknown = int(unknown.sum())
        self.register_buffer("unknown", unknown.nonzero().flatten())

    def own(self, e: int) -> Tensor:
        """Classes of expert e, int64 ``[S_e]``."""
        return self.get_buffer(f"classes{e}")

    def full(self, like: Tensor, value: float) -> Tensor:
        """``[N, C]`` of one value."""
        return like.new_full((like.shape[0], self.num_classes), value)


class _JointCalibration(_Fusion):
    def __init__(self, fusion: JointCalibration) -> None:
        super().__init__(fusion)
        for e, (scale, shift) in enumerate(fusion.columns()):
            self.register_buffer(f"scale{e}", scale.detach().clone())
            self.register_buffer(f"shift{e}", shift.detach().clone())

    def forward(self, expert_logits: Sequence[Tensor]) -> Tensor:
        own, log_mass, spread = [], [], []
        for e, z in enumerate(expert_logits):
            u = z * self.get_buffer(f"scale{e}") + self.get_buffer(f"shift{e}")
            own.append(u.log_softmax(1)[:, : self.sizes[e]])
            log_mass.append(own[-1].logsumexp(1))
            spread.append(self.full(z, -torch.inf).index_copy(1, self.own(e), own[-1]))
        joined = torch.stack(spread).logsumexp(0)
        return joined - torch.stack(log_mass).logsumexp(0)[:, None]


class _Stacking(_Fusion):
    def __init__(self, fusion: Stacking) -> None:
        super().__init__(fusion)
        self.register_buffer("weight", fusion.weight.detach().clone())
        self.register_buffer("bias", fusion.bias.detach().clone())

    def forward(self, expert_logits: Sequence[Tensor]) -> Tensor:
        x = torch.cat([z.softmax(1) for z in expert_logits], 1)
        return (x @ self.get_buffer("weight").t() + self.get_buffer("bias")).log_softmax(1)


class _SoftVote(_Fusion):
    def posterior(self, e: int, z: Tensor) -> Tensor:
        """Probabilities ``[N, C]`` of one expert, the reject probability spread evenly."""
        others = self.num_classes - self.sizes[e]
        zeros = self.full(z, 0.0)
        if self.reject[e] and others:
            p = z.softmax(1)
            share = p[:, -1:] / others
            return (zeros + share).index_add(1, self.own(e), p[:, :-1] - share)
        return zeros.index_add(1, self.own(e), z[:, : self.sizes[e]].softmax(1))

    def forward(self, expert_logits: Sequence[Tensor]) -> Tensor:
        posteriors = [self.posterior(e, z) for e, z in enumerate(expert_logits)]
        return torch.stack(posteriors).mean(0).log()


class _ExpertSelection(_SoftVote):
    def __init__(self, fusion: ExpertSelection) -> None:
        super().__init__(fusion)
        self.confidence = fusion.confidence
        self.register_buffer("weight", fusion.weight.detach().clone())
        self.register_buffer("bias", fusion.bias.detach().clone())

    def forward(self, expert_logits: Sequence[Tensor]) -> Tensor:
        seen = [z.softmax(1) for z in expert_logits]
        if self.confidence:
            pairs = zip(seen[:], self.sizes, strict=True)
            seen = seen + [p[:, :size].amax(1, keepdim=True) for p, size in pairs]
        scores = torch.cat(seen, 1) @ self.get_buffer("weight").t() + self.get_buffer("bias")
        posteriors = [self.posterior(e, z) for e, z in enumerate(expert_logits)]
        together = torch.stack(posteriors, 1)
        chosen = scores.argmax(1)[:, None, None].expand(-1, 1, self.num_classes)
        return together.gather(1, chosen).squeeze(1).log()


class _KLMin(_Fusion):
    def forward(self, expert_logits: Sequence[Tensor]) -> Tensor:
        within, accepted, rejected = [], [], []
        for e, z in enumerate(expert_logits):
            own = z[:, : self.sizes[e]]
            mass, total = own.logsumexp(1), z.logsumexp(1)
            within.append(own - mass[:, None])
            accepted.append((mass - total).double().exp())
            rejects = (z[:, -1] - total).double().exp()
            rejected.append(rejects if self.reject[e] else torch.zeros_like(rejects))
        masses, rest = self._masses(torch.stack(accepted), torch.stack(rejected))
        log_q = self.full(expert_logits[0], -torch.inf)
        for e, log_p in enumerate(within):
            log_mass = masses[e].log().to(log_p.dtype)
            log_q = log_q.index_copy(1, self.own(e), log_p + log_mass[:, None])
        if self.num_unknown:
            share = (rest / self.num_unknown).log().to(log_q.dtype)
            even = share[:, None].expand(-1, self.num_unknown)
            log_q = log_q.index_copy(1, self.get_buffer("unknown"), even)
        return log_q.exp().log()  # what is 0 as a probability is impossible, as it is there

    def _masses(self, accepted: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        count = accepted.shape[0]
        lam = torch.full_like(accepted[0], -torch.inf)
        if count > 1:
            low = torch.full_like(accepted[0], -count / (count - 1))
            high = torch.full_like(accepted[0], float(count))
            lam = (accepted.sum(0) - 1).clamp(-1, 1)
            for _ in range(MAX_NEWTON_STEPS):
                lam, low, high, _ = newton_step(lam, low, high, accepted, rejected)
        if self.num_unknown:
            lam = torch.where(accepted.sum(0) <= 1, torch.zeros_like(lam), lam)
        mass = mass_of(lam, accepted, rejected)
        total = mass.sum(0)
        rest = torch.zeros_like(total)
        if self.num_unknown:
            rest = torch.where(lam == 0, (1 - total).clamp(min=0), rest)
        return mass / (total + rest), rest / (total + rest)
