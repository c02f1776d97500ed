"""Fusion by the distribution that is nearest to all experts in Kullback-Leibler divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from ._experts import ClassLists, Experts, check_experts

__all__ = ["MAX_NEWTON_STEPS", "kl_min", "mass_of", "newton_step", "subset_masses"]

MAX_NEWTON_STEPS = 80
_EM_STEPS = 20_000
_EM_BETWEEN_CHECKS = 32


@torch.no_grad()
def kl_min(
    expert_logits: list[Tensor] | tuple[Tensor, ...],
    classes: ClassLists,
    *,
    num_classes: int | None = None,
) -> Tensor:
    r"""The class probabilities nearest to what all experts say.

    .. math:: \min_q \sum_e KL(E_e \| q), \quad
        KL(E_e \| q) = \sum_{c \in S_e} p_e(c) \log \frac{p_e(c)}{q_c}
        + r_e \log \frac{r_e}{1 - q(S_e)}

    with ``r_e`` the reject probability, 0 of an expert without a reject class. Where no two experts
    share a class, ``q_c = a_e p_e(c) / (1 - r_e)``, and the masses ``a_e`` maximise
    ``sum_e (1 - r_e) log a_e + r_e log(1 - a_e)``:
    ``(1 - r_e) / a_e - r_e / (1 - a_e) = lam`` for all e, one scalar root of ``sum_e a_e(lam) = 1``
    a sample. Experts that share classes are solved by expectation maximisation over the cells of
    classes that the same experts know.

    Args:
        expert_logits: of each expert ``[N, S_e]``, or ``[N, S_e + 1]`` with the reject class last.
        classes: the class indices of each expert's columns.
        num_classes: C; by default the largest class plus one. Mass that experts leave to classes
            that none of them knows is shared evenly among those.

    Returns:
        Probabilities ``[N, C]``, float32 (float64 for float64 logits), without gradient.

    Raises:
        TypeError, ValueError, IndexError: arguments that do not fit each other.

    Source: Sharma et al., "Long-tailed recognition using class-balanced experts", sec. 3.3.1.
    """
    experts = check_experts("kl_min", expert_logits, classes, num_classes)
    membership = experts.subsets.membership
    shared = bool((membership.sum(0) > 1).any())
    solve = _shared if shared else _disjoint
    out = experts.new(experts.subsets.num_classes)
    for rows, part in experts.chunks():
        out[rows] = solve(part, membership)
    return out


# --- no class with two experts: a scalar root ----------------------------------------------------


def _disjoint(experts: Experts, membership: Tensor) -> Tensor:
    unknown = (~membership.any(0)).nonzero().squeeze(1).to(experts.logits[0].device)
    within, accepted, rejected = [], [], []
    for e in range(len(experts.logits)):
        own, every = experts.own(e), experts.logits[e]
        mass, total = own.logsumexp(1), every.logsumexp(1)
        # An expert that gives all its classes probability 0 says nothing about which of them.
        silent = mass.isneginf() & ~total.isneginf()
        within.append((own - mass.where(~silent, 0)[:, None]).masked_fill(silent[:, None], 0))
        within[-1][silent] -= torch.tensor(float(own.shape[1])).log()
        accepted.append((mass - total).double().exp())
        rejected.append(
            (every[:, -1] - total).double().exp()
            if experts.rejects(e)
            else accepted[-1].new_zeros(()).expand_as(accepted[-1])
        )
    masses, rest = subset_masses(torch.stack(accepted), torch.stack(rejected), len(unknown) > 0)
    out = experts.new(experts.subsets.num_classes)
    for e, own in enumerate(experts.subsets.classes):
        log_mass = masses[e].log().to(out)
        out[:, own] = within[e].add_(log_mass[:, None]).exp_()
    if len(unknown):
        out[:, unknown] = (rest / len(unknown)).to(out)[:, None]
    return out


def subset_masses(accepted: Tensor, rejected: Tensor, unknown: bool) -> tuple[Tensor, Tensor]:
    """The masses that maximise ``sum_e s_e log a_e + r_e log(1 - a_e)``.

    Args:
        accepted: float64 ``[K, N]``, s_e: what each expert gives to its classes.
        rejected: float64 ``[K, N]``, r_e = 1 - s_e.
        unknown: whether mass may go to classes that no expert knows.

    Returns:
        ``a`` float64 ``[K, N]``, and the mass ``[N]`` of the classes that no expert knows.
    """
    lam = _root(accepted, rejected)
    if unknown:
        lam = torch.where(accepted.sum(0) <= 1, 0, lam)  # the constraint does not bind
    mass = mass_of(lam, accepted, rejected)
    total = mass.sum(0)
    if not unknown:
        return mass / total, torch.zeros_like(total)
    rest = torch.where(lam == 0, (1 - total).clamp(min=0), 0)
    return mass / (total + rest), rest / (total + rest)


def _root(s: Tensor, r: Tensor) -> Tensor:
    """``lam`` with ``sum_e a_e(lam) = 1``: Newton's method, halving a bracket where it leaves it.

    The largest a_e is at least 1/K, so lam <= s/a <= K; the smallest is at most 1/K, so
    lam >= -r / (1 - a) >= -K / (K - 1).
    """
    k = len(s)
    if k == 1:
        # One expert: all mass is its, and lam, which is then -r/0, is not needed (see mass_of).
        return torch.full_like(s[0], -torch.inf)
    low = torch.full_like(s[0], -k / (k - 1))
    high = torch.full_like(s[0], float(k))
    lam = (s.sum(0) - 1).clamp(-1, 1)
    for _ in range(MAX_NEWTON_STEPS):
        lam, low, high, done = newton_step(lam, low, high, s, r)
        if bool(done.all()):
            break
    return lam


def newton_step(
    lam: Tensor, low: Tensor, high: Tensor, s: Tensor, r: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next ``lam``, its bracket, and where it stands still; see ``_root``."""
    a = mass_of(lam, s, r)
    excess = a.sum(0) - 1
    low, high = torch.where(excess > 0, lam, low), torch.where(excess > 0, high, lam)
    slope = 1 / (s / a.square() + r / (1 - a).square())
    step = excess / slope.nan_to_num(0).sum(0)
    new = lam + step
    new = torch.where((new >= low) & (new <= high), new, (low + high) / 2)
    done = (new - lam).abs() <= 1e-15 * (1 + lam.abs())
    return new, low, high, done | (excess.abs() <= 1e-15) | excess.isnan()


def mass_of(lam: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """``a`` in [0, 1] with ``lam a^2 - (lam + 1) a + s = 0``, without cancellation."""
    b = lam + 1
    root = torch.where(lam > 0, (lam - 1).square() + 4 * lam * r, b.square() - 4 * lam * s).sqrt()
    a = torch.where(b > 0, 2 * s / (b + root), (b - root) / (2 * lam))
    return torch.where(lam.isneginf(), torch.ones_like(s), a).clamp(0, 1)


# --- classes with several experts: expectation maximisation over cells ---------------------------


def _shared(experts: Experts, membership: Tensor) -> Tensor:
    """Classes known to the same experts form a cell; inside a cell q is as the sum of the p_e."""
    count, device = len(experts.logits), experts.logits[0].device
    cells, cell_of = torch.unique(membership.t(), dim=0, return_inverse=True)  # [m, K], [C]
    sizes = torch.bincount(cell_of).double().to(device)
    cells, cell_of = cells.to(device), cell_of.to(device)
    weight = experts.new(experts.subsets.num_classes).zero_()
    rejected = torch.zeros(experts.rows, count, dtype=torch.float64, device=device)
    for e, own in enumerate(experts.subsets.classes):
        p = experts.logits[e].softmax(1)
        weight.index_add_(1, own, p[:, : len(own)])
        if experts.rejects(e):
            rejected[:, e] = p[:, -1].double()
    of_cell = torch.zeros(experts.rows, len(cells), dtype=torch.float64, device=device)
    of_cell.index_add_(1, cell_of, weight.double())
    mass = _maximise(of_cell, rejected, (~cells).double(), sizes)
    # A cell without weight but with mass (everybody rejects): evenly over its classes.
    factor = torch.where(of_cell > 0, mass / of_cell, 0).to(weight)
    even = torch.where(of_cell > 0, 0, mass / sizes).to(weight)
    return weight * factor[:, cell_of] + even[:, cell_of]


def _maximise(weight: Tensor, rejected: Tensor, outside: Tensor, sizes: Tensor) -> Tensor:
    """Maximise ``sum_s W_s log m_s + sum_e r_e log(sum of m outside e)`` over the simplex.

    ``m_s <- (W_s + sum_e r_e m_s [s outside e] / m(outside e)) / sum``: each expert's reject mass
    is shared out among the cells it does not know, as the masses stand.

    Args:
        weight: W, float64 ``[N, m]``.
        rejected: r, float64 ``[N, K]``.
        outside: 1 where a cell lies outside an expert's classes, float64 ``[m, K]``.
        sizes: classes of each cell, float64 ``[m]``: the masses start from the uniform posterior.
    """
    mass = (sizes / sizes.sum()).expand(len(weight), -1).clone()
    # An expert that knows every class has nowhere to put its reject mass.
    rejected = rejected * (outside.sum(0) > 0)
    active = torch.arange(len(weight), device=weight.device)
    m, w, r = mass, weight, rejected
    for _ in range(0, _EM_STEPS, _EM_BETWEEN_CHECKS):
        for _ in range(_EM_BETWEEN_CHECKS):
            before = m
            share = r / (m @ outside).clamp(min=torch.finfo(m.dtype).tiny)
            m = w + m * (share @ outside.t())
            m = m / m.sum(1, keepdim=True)
        mass[active] = m
        moving = ((m - before).abs().amax(1) > 1e-16) & m.isfinite().all(1)
        active, m, w, r = active[moving], m[moving], w[moving], r[moving]
        if len(active) == 0:
            break
    return mass
