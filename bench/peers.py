"""What users write today for each op, in plain PyTorch, beside ours.

A `Case` holds two functions of the same arguments: `eager`, the code found in trainers and official
repositories, and `ours`. The first argument is the student's logits `[N, C]`, which collect the
gradient; constants have the logits' dtype, the cheapest form for eager. torch.compile's version is
derived from `eager`. `check` compares any of them with `eager` in float64.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import (
    cross_entropy,
    kl_div,
    linear,
    log_softmax,
    normalize,
    relu,
    softmax,
)

from ltkernels import functional as ltk

Loss = Callable[..., Tensor]

TEMPERATURE = 2.0
MIXUP_SHARE = 0.3
LDAM_SCALE = 30.0
FOCAL_GAMMA = 2.0
ROUTER_TOP, ROUTER_HIDDEN, ROUTER_WIDTH = 30, 16, 64  # RIDE's, on CIFAR

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# Largest relative error of loss and gradient against float64 that still counts as the same result:
# eager's own rounding, several times over.
TOLERANCE = {"fp64": 1e-10, "fp32": 5e-5, "bf16": 5e-2, "fp16": 1e-2}


# --- as users write them -------------------------------------------------------------------------


def kd(student: Tensor, teacher: Tensor) -> Tensor:
    """Hinton's distillation."""
    log_p = log_softmax(student / TEMPERATURE, dim=1)
    q = softmax(teacher / TEMPERATURE, dim=1)
    return kl_div(log_p, q, reduction="batchmean") * TEMPERATURE**2


def kd_sample(student: Tensor, teacher: Tensor, temperature: Tensor, weight: Tensor) -> Tensor:
    """Distillation with a temperature [N, 1] and a weight [N] a sample."""
    log_p = log_softmax(student / temperature, dim=1)
    q = softmax(teacher / temperature, dim=1)
    row_loss = kl_div(log_p, q, reduction="none").sum(dim=1)
    return (row_loss * weight * temperature.squeeze(1) ** 2).mean()


def kd_subset(student: Tensor, teacher: Tensor, classes: Tensor) -> Tensor:
    """LFME: the student re-normalised over the classes [S] its expert knows."""
    log_p = log_softmax(student[:, classes] / TEMPERATURE, dim=1)
    q = softmax(teacher / TEMPERATURE, dim=1)
    return kl_div(log_p, q, reduction="batchmean")


def _balanced_kl(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    q = softmax(teacher / TEMPERATURE, dim=1) * weight
    q = q / q.sum(dim=1, keepdim=True)
    log_p = log_softmax(student / TEMPERATURE, dim=1)
    # The official code keeps the terms a class, which it returns beside the loss.
    return kl_div(log_p, q, reduction="none").mean(dim=0).sum() * TEMPERATURE**2


def bkd(student: Tensor, teacher: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Balanced distillation; `target` holds class indices or probabilities."""
    return cross_entropy(student, target) + _balanced_kl(student, teacher, weight)


def bkd_mixup(
    student: Tensor, teacher: Tensor, target_a: Tensor, target_b: Tensor, weight: Tensor
) -> Tensor:
    """Balanced distillation of mixed images."""
    hard = MIXUP_SHARE * cross_entropy(student, target_a)
    hard = hard + (1 - MIXUP_SHARE) * cross_entropy(student, target_b)
    return hard + _balanced_kl(student, teacher, weight)


def balanced_softmax(logits: Tensor, target: Tensor, log_prior: Tensor) -> Tensor:
    return cross_entropy(logits + log_prior, target)


def ldam(logits: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    of_target = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, target.unsqueeze(1), True)
    shifted = torch.where(of_target, logits - margin[target].unsqueeze(1), logits)
    return cross_entropy(LDAM_SCALE * shifted, target)


def focal(logits: Tensor, target: Tensor) -> Tensor:
    row_loss = cross_entropy(logits, target, reduction="none")
    return ((1 - torch.exp(-row_loss)) ** FOCAL_GAMMA * row_loss).mean()


def topz_gate(
    w1: Tensor, logits: Tensor, feature: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> Tensor:
    """RIDE's router on frozen experts: the gradient goes to its weights."""
    top = logits.topk(ROUTER_TOP, dim=1).values
    hidden = relu(linear(normalize(feature, dim=1), w1, b1))
    return linear(torch.cat([top, hidden], dim=1), w2, b2).mean()


# --- ours ----------------------------------------------------------------------------------------


def _kd_sample(student: Tensor, teacher: Tensor, temperature: Tensor, weight: Tensor) -> Tensor:
    return ltk.kd_loss(student, teacher, temperature, sample_weight=weight)


def _kd_subset(student: Tensor, teacher: Tensor, classes: Tensor) -> Tensor:
    return ltk.kd_loss(student, teacher, TEMPERATURE, classes=classes, t2=False)


def _bkd(student: Tensor, teacher: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return ltk.bkd_loss(student, teacher, target, weight, TEMPERATURE)


def _bkd_mixup(
    student: Tensor, teacher: Tensor, target_a: Tensor, target_b: Tensor, weight: Tensor
) -> Tensor:
    return ltk.bkd_loss(
        student, teacher, target_a, weight, TEMPERATURE, target_b=target_b, lam=MIXUP_SHARE
    )


def _balanced_softmax(logits: Tensor, target: Tensor, log_prior: Tensor) -> Tensor:
    return ltk.adjusted_cross_entropy(logits, target, bias=log_prior)


def _ldam(logits: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    return ltk.adjusted_cross_entropy(logits, target, scale=LDAM_SCALE, margin=margin)


def _topz_gate(
    w1: Tensor, logits: Tensor, feature: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> Tensor:
    return ltk.topz_gate(logits, feature, w1, b1, w2, b2, ROUTER_TOP).mean()


# --- Liger-Kernel, where it is installed ---------------------------------------------------------


def _liger_kd(student: Tensor, teacher: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerKLDIVLoss

    log_p = log_softmax(student / TEMPERATURE, dim=1)
    q = softmax(teacher / TEMPERATURE, dim=1)
    return LigerKLDIVLoss(reduction="batchmean")(log_p, q) * TEMPERATURE**2


def _liger_balanced_softmax(logits: Tensor, target: Tensor, log_prior: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerCrossEntropyLoss

    # It writes the gradient over its input: the sum, not the user's logits.
    return LigerCrossEntropyLoss()(logits + log_prior, target)


# --- problems ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """Draws the inputs of one problem: N rows, C classes, long-tailed with imbalance 100."""

    rows: int
    classes: int
    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator

    def logits(self, classes: int | None = None) -> Tensor:
        shape = (self.rows, self.classes if classes is None else classes)
        x = torch.randn(shape, generator=self.generator, device=self.device)
        return (3 * x).to(self.dtype)

    def target(self) -> Tensor:
        return torch.randint(
            self.classes, (self.rows,), generator=self.generator, device=self.device
        )

    def probabilities(self) -> Tensor:
        return softmax(self.logits().float(), dim=1).to(self.dtype)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        x = torch.rand(shape, generator=self.generator, device=self.device)
        return (low + (high - low) * x).to(self.dtype)

    def prior(self) -> Tensor:
        ranks = torch.linspace(0, 1, self.classes, device=self.device)
        frequency = 100.0**-ranks
        return frequency / frequency.sum()

    def weight(self) -> Tensor:
        inverse = 1 / self.prior()
        return (inverse / inverse.mean()).to(self.dtype)

    def log_prior(self) -> Tensor:
        return self.prior().log().to(self.dtype)

    def margin(self) -> Tensor:
        root = self.prior() ** -0.25
        return (0.5 * root / root.max()).to(self.dtype)

    def feature(self) -> Tensor:
        x = torch.randn(self.rows, ROUTER_WIDTH, generator=self.generator, device=self.device)
        return x.to(self.dtype)

    def subset(self) -> Tensor:
        order = torch.randperm(self.classes, generator=self.generator, device=self.device)
        return order[: subset_size(self.classes)].sort().values


def subset_size(classes: int) -> int:
    """LFME's experts know about a third of the classes each."""
    return max(1, classes // 3)


def _three_matrices(rows: int, classes: int) -> int:
    return 3 * rows * classes


@dataclass(frozen=True)
class Case:
    """One op: what users write, ours, its inputs and its byte floor.

    Attributes:
        floor: (N, C) -> elements that must be moved: each input matrix read once, the gradient
            written once.
    """

    name: str
    eager: Loss
    ours: Loss
    inputs: Callable[[Draw], tuple[Tensor, ...]]
    floor: Callable[[int, int], int] = _three_matrices
    liger: Loss | None = None


CASES = {
    case.name: case
    for case in (
        Case(
            "kd",
            kd,
            partial(ltk.kd_loss, temperature=TEMPERATURE),
            lambda d: (d.logits(), d.logits()),
            liger=_liger_kd,
        ),
        Case(
            "kd_sample",
            kd_sample,
            _kd_sample,
            lambda d: (
                d.logits(),
                d.logits(),
                d.uniform(1, 3, d.rows, 1),
                d.uniform(0, 1, d.rows),
            ),
        ),
        Case(
            "kd_subset",
            kd_subset,
            _kd_subset,
            lambda d: (d.logits(), d.logits(subset_size(d.classes)), d.subset()),
            floor=lambda n, c: 2 * n * subset_size(c) + n * c,
        ),
        Case(
            "bkd",
            bkd,
            _bkd,
            lambda d: (d.logits(), d.logits(), d.target(), d.weight()),
        ),
        Case(
            "bkd_mixup",
            bkd_mixup,
            _bkd_mixup,
            lambda d: (d.logits(), d.logits(), d.target(), d.target(), d.weight()),
        ),
        Case(
            "bkd_soft",
            bkd,
            _bkd,
            lambda d: (d.logits(), d.logits(), d.probabilities(), d.weight()),
            floor=lambda n, c: 4 * n * c,
        ),
        Case(
            "balanced_softmax",
            balanced_softmax,
            _balanced_softmax,
            lambda d: (d.logits(), d.target(), d.log_prior()),
            floor=lambda n, c: 2 * n * c,
            liger=_liger_balanced_softmax,
        ),
        Case(
            "ldam",
            ldam,
            _ldam,
            lambda d: (d.logits(), d.target(), d.margin()),
            floor=lambda n, c: 2 * n * c,
        ),
        Case(
            "focal",
            focal,
            partial(ltk.adjusted_cross_entropy, focal_gamma=FOCAL_GAMMA),
            lambda d: (d.logits(), d.target()),
            floor=lambda n, c: 2 * n * c,
        ),
        Case(
            "topz_gate",
            topz_gate,
            _topz_gate,
            lambda d: (
                d.uniform(-0.2, 0.2, ROUTER_HIDDEN, ROUTER_WIDTH),
                d.logits(),
                d.feature(),
                d.uniform(-0.2, 0.2, ROUTER_HIDDEN).requires_grad_(),
                d.uniform(-0.2, 0.2, 1, ROUTER_TOP + ROUTER_HIDDEN).requires_grad_(),
                d.uniform(-0.2, 0.2, 1).requires_grad_(),
            ),
            floor=lambda n, c: n * c + 2 * n * ROUTER_WIDTH,
        ),
    )
}


def problem(
    case: Case,
    rows: int,
    classes: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, ...]:
    """The arguments of a case; the first requires its gradient."""
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(seed)
    args = case.inputs(Draw(rows, classes, dtype, device, generator))
    args[0].requires_grad_()
    return args


def sides(
    case: Case, device: torch.device | str = "cpu", *, compiled: bool = True
) -> dict[str, Loss]:
    """Who runs a case: "eager", "compile", "liger" (CUDA, where installed) and "ours"."""
    chosen: dict[str, Loss] = {"eager": case.eager}
    if compiled:
        # Each case and shape is compiled for itself: the best torch.compile can do.
        chosen["compile"] = torch.compile(case.eager, fullgraph=True, dynamic=False)
    on_cuda = torch.device(device).type == "cuda"
    if case.liger is not None and on_cuda and importlib.util.find_spec("liger_kernel"):
        chosen["liger"] = case.liger
    chosen["ours"] = case.ours
    return chosen


def step(loss_of: Loss, args: Sequence[Any]) -> Tensor:
    """One forward and backward pass, with the gradient reset before."""
    args[0].grad = None
    loss = loss_of(*args)
    loss.backward()
    return loss


# --- the same result? ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Errors:
    """Relative errors of loss and gradient (Euclidean norms) against float64."""

    loss: float
    gradient: float


def oracle(case: Case, args: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the eager code on the same inputs in float64."""
    wide = [x.detach().double() if x.is_floating_point() else x for x in args]
    wide[0].requires_grad_()
    loss = step(case.eager, wide).detach()
    assert wide[0].grad is not None
    return loss, wide[0].grad


def check(
    name: str,
    loss_of: Loss,
    args: Sequence[Tensor],
    expected: tuple[Tensor, Tensor],
    tolerance: float,
) -> Errors:
    """Errors of one side against the `oracle`.

    Raises:
        AssertionError: where the side computes something else.
    """
    loss = step(loss_of, args).detach().double()
    gradient = args[0].grad
    assert gradient is not None
    args[0].grad = None
    errors = Errors(
        float((loss - expected[0]).abs() / expected[0].abs()),
        float((gradient.double() - expected[1]).norm() / expected[1].norm()),
    )
    # Written so that NaN fails.
    if not (errors.loss <= tolerance and errors.gradient <= tolerance):
        raise AssertionError(
            f"{name}: expected the result of eager in float64 within {tolerance:g}, got a loss off "
            f"by {errors.loss:.1e} and a gradient off by {errors.gradient:.1e}"
        )
    return errors
