"""What users write today for each op, in plain PyTorch, beside ours.

A `Case` holds two functions of the same arguments: `eager`, the code found in trainers and official
repositories, and `ours`. An argument is a tensor, a list of tensors (the logits of K experts) or a
number; some collect a gradient, the others are constants in the logits' dtype, the cheapest form
for eager. torch.compile's version is derived from `eager`. `check` compares any of them with
`eager` in float64.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
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
Floor = Callable[[int, int, int], int]

EXPERTS = 3
TEMPERATURE = 2.0
MIXUP_SHARE = 0.3
LDAM_SCALE = 30.0
FOCAL_GAMMA = 2.0
SUBSETS = 3  # many, medium and few shots
CONTRAST_TEMPERATURE = 0.2
CONTRAST_WIDTH = 128  # of MoCo's embeddings
DIVERSITY = -0.45
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


def lfme(student: Tensor, *experts: Tensor) -> Tensor:
    """LFME's distillation: `kd_subset` of three experts; their logits, then their classes."""
    teachers, classes = experts[:SUBSETS], experts[SUBSETS:]
    loss = kd_subset(student, teachers[0], classes[0])
    for teacher, known in zip(teachers[1:], classes[1:], strict=True):
        loss = loss + kd_subset(student, teacher, known)
    return loss


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


def info_nce(query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
    """MoCo's contrast, as NCL has it; the queue `[Q, D]` in place of the number of classes."""
    of_key = torch.einsum("nd,nd->n", query, key).unsqueeze(-1)
    of_queue = torch.einsum("nd,qd->nq", query, queue)
    logits = torch.cat([of_key, of_queue], dim=1) / CONTRAST_TEMPERATURE
    return cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def balance_weight(row_loss: Tensor, ref: Tensor, cls: Tensor, target: Tensor) -> Tensor:
    """ECL: each sample's loss `[N]`, weighted by how far one head lags behind the other."""
    with torch.no_grad():
        of_cls, of_ref = (
            cross_entropy(z / z.std(dim=1, keepdim=True), target, reduction="none")
            for z in (cls, ref)
        )
        weight = of_cls / of_ref.clamp(min=1e-6)
    return (weight * row_loss).mean()


def _ride_cross_entropy(logits: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    of_target = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, target.unsqueeze(1), True)
    shifted = torch.where(of_target, logits - margin[target].unsqueeze(1), logits)
    return cross_entropy(shifted, target)


def ride(experts: list[Tensor], target: Tensor, margin: Tensor) -> Tensor:
    """RIDE's loss as in its official code: every expert away from their mean."""
    with torch.no_grad():
        q = softmax(torch.stack(experts).mean(dim=0), dim=1)
    loss = target.new_zeros((), dtype=torch.float32)
    for z in experts:
        loss = loss + _ride_cross_entropy(z, target, margin)
        loss = loss + DIVERSITY * kl_div(log_softmax(z, dim=1), q, reduction="batchmean")
    return loss


def _pairs(experts: list[Tensor]) -> Tensor:
    """sum_{i != j} KL(p_i || p_j), as nested loops over the experts."""
    log_p = [log_softmax(z, dim=1) for z in experts]
    terms = [
        kl_div(b, a, reduction="batchmean", log_target=True)
        for i, a in enumerate(log_p)
        for j, b in enumerate(log_p)
        if i != j
    ]
    return torch.stack(terms).sum()


def ride_pairwise(experts: list[Tensor], target: Tensor, margin: Tensor) -> Tensor:
    """RIDE's loss as in the paper: every expert away from every other."""
    hard = [_ride_cross_entropy(z, target, margin) for z in experts]
    return torch.stack(hard).sum() + DIVERSITY * _pairs(experts) / (len(experts) - 1)


def collaborative_kd(experts: list[Tensor]) -> Tensor:
    """ECL's and NCL's distillation among experts, gradients to both sides."""
    return _pairs(experts) / (len(experts) * (len(experts) - 1))


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


def _lfme(student: Tensor, *experts: Tensor) -> Tensor:
    teachers, classes = experts[:SUBSETS], experts[SUBSETS:]
    return ltk.kd_loss(student, teachers, TEMPERATURE, classes=classes, t2=False)


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


def _ride(experts: list[Tensor], target: Tensor, margin: Tensor) -> Tensor:
    return ltk.ride_loss(experts, target, margin=margin, diversity_factor=DIVERSITY)


def _ride_pairwise(experts: list[Tensor], target: Tensor, margin: Tensor) -> Tensor:
    return ltk.ride_loss(experts, target, margin=margin, diversity_factor=DIVERSITY, pairwise=True)


def _ldam(logits: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    return ltk.adjusted_cross_entropy(logits, target, scale=LDAM_SCALE, margin=margin)


def _balance_weight(row_loss: Tensor, ref: Tensor, cls: Tensor, target: Tensor) -> Tensor:
    return (ltk.knowledge_balance_weight(ref, cls, target) * row_loss).mean()


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

    def expert_logits(self) -> list[Tensor]:
        return [self.logits() for _ in range(EXPERTS)]

    def unit(self, rows: int) -> Tensor:
        x = torch.randn(rows, CONTRAST_WIDTH, generator=self.generator, device=self.device)
        return normalize(x, dim=1).to(self.dtype)

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

    def experts(self, *, scattered: bool) -> tuple[Tensor, ...]:
        """The logits of SUBSETS experts, and the classes that each knows.

        All classes between them: neighbours where the classes are sorted by their counts (CIFAR-LT,
        iNaturalist), or scattered (ImageNet-LT, Places-LT).
        """
        classes = torch.arange(self.classes, device=self.device)
        if scattered:
            classes = torch.randperm(self.classes, generator=self.generator, device=self.device)
        subsets = [part.sort().values for part in classes.tensor_split(SUBSETS)]
        return (*(self.logits(len(subset)) for subset in subsets), *subsets)


def _three(draw: Draw) -> list[Tensor]:
    return [draw.logits() for _ in range(EXPERTS)]


def subset_size(classes: int) -> int:
    """LFME's experts know about a third of the classes each."""
    return max(1, classes // 3)


def matrices(count: int) -> Floor:
    """The byte floor of an op that moves so many matrices `[N, C]`."""
    return lambda rows, classes, itemsize: count * rows * classes * itemsize


TWO_LOGITS_AND_GRADIENT = matrices(3)


@dataclass(frozen=True)
class Case:
    """One op: what users write, ours, its inputs and its byte floor.

    Attributes:
        inputs: the arguments of both functions: tensors, lists of tensors, numbers.
        floor: (N, C, bytes of a logit) -> bytes that must be moved: each input matrix read once,
            each gradient written once.
        gradients: positions of the arguments that collect a gradient, of a list in every tensor;
            () for an op that is a constant. Where there is one, the functions return a scalar.
    """

    name: str
    eager: Loss
    ours: Loss
    inputs: Callable[[Draw], tuple[Any, ...]]
    floor: Floor = TWO_LOGITS_AND_GRADIENT
    gradients: tuple[int, ...] = (0,)
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
            floor=lambda n, c, size: size * n * (2 * subset_size(c) + c),
        ),
        Case("lfme", lfme, _lfme, lambda d: (d.logits(), *d.experts(scattered=False))),
        Case("lfme_scattered", lfme, _lfme, lambda d: (d.logits(), *d.experts(scattered=True))),
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
            floor=matrices(4),
        ),
        Case(
            "balanced_softmax",
            balanced_softmax,
            _balanced_softmax,
            lambda d: (d.logits(), d.target(), d.log_prior()),
            floor=matrices(2),
            liger=_liger_balanced_softmax,
        ),
        Case(
            "ldam",
            ldam,
            _ldam,
            lambda d: (d.logits(), d.target(), d.margin()),
            floor=matrices(2),
        ),
        Case(
            "focal",
            focal,
            partial(ltk.adjusted_cross_entropy, focal_gamma=FOCAL_GAMMA),
            lambda d: (d.logits(), d.target()),
            floor=matrices(2),
        ),
        Case(
            "info_nce",
            info_nce,
            partial(ltk.info_nce, temperature=CONTRAST_TEMPERATURE),
            lambda d: (d.unit(d.rows), d.unit(d.rows), d.unit(d.classes)),
            floor=lambda n, c, itemsize: (3 * n + c) * CONTRAST_WIDTH * itemsize,
        ),
        Case(
            "knowledge_balance_weight",
            balance_weight,
            _balance_weight,
            lambda d: (d.uniform(0, 2, d.rows), d.logits(), d.logits(), d.target()),
            floor=matrices(2),
        ),
        Case(
            "ride",
            ride,
            _ride,
            lambda d: (_three(d), d.target(), d.margin()),
            floor=matrices(2 * EXPERTS),
        ),
        Case(
            "ride_pairwise",
            ride_pairwise,
            _ride_pairwise,
            lambda d: (_three(d), d.target(), d.margin()),
            floor=matrices(2 * EXPERTS),
        ),
        Case(
            "collaborative_kd",
            collaborative_kd,
            ltk.collaborative_kd_loss,
            lambda d: (_three(d),),
            floor=matrices(2 * EXPERTS),
        ),
        Case(
            "topz_gate",
            topz_gate,
            _topz_gate,
            lambda d: (
                d.uniform(-0.2, 0.2, ROUTER_HIDDEN, ROUTER_WIDTH),
                d.logits(),
                d.feature(),
                d.uniform(-0.2, 0.2, ROUTER_HIDDEN),
                d.uniform(-0.2, 0.2, 1, ROUTER_TOP + ROUTER_HIDDEN),
                d.uniform(-0.2, 0.2, 1),
            ),
            gradients=(0, 3, 4, 5),
            floor=lambda n, c, itemsize: (n * c + 2 * n * ROUTER_WIDTH) * itemsize,
        ),
    )
}


@dataclass(frozen=True)
class Problem:
    """The arguments of a case, and those tensors among them that collect a gradient."""

    args: tuple[Any, ...]
    leaves: tuple[Tensor, ...]

    @classmethod
    def of(cls, case: Case, args: Iterable[Any]) -> Problem:
        args = tuple(args)
        leaves = tuple(x for i in case.gradients for x in tensors_of((args[i],)))
        for x in leaves:
            x.requires_grad_()
        return cls(args, leaves)

    def map(self, case: Case, function: Callable[[Tensor], Tensor]) -> Problem:
        """The same problem of other tensors, each `function` of a detached one."""
        return Problem.of(case, (_mapped(function, x) for x in self.args))

    def reset(self) -> None:
        """Drop the gradients."""
        for x in self.leaves:
            x.grad = None

    @property
    def nbytes(self) -> int:
        """Of arguments and gradients."""
        return sum(x.nbytes for x in (*tensors_of(self.args), *self.leaves))


def tensors_of(args: Iterable[Any]) -> list[Tensor]:
    """The tensors among arguments, those in lists too."""
    found: list[Tensor] = []
    for x in args:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, (list, tuple)):
            found += tensors_of(x)
    return found


def _mapped(function: Callable[[Tensor], Tensor], x: Any) -> Any:
    if isinstance(x, Tensor):
        return function(x.detach())
    if isinstance(x, (list, tuple)):
        return type(x)(_mapped(function, part) for part in x)
    return x


def problem(
    case: Case,
    rows: int,
    classes: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Problem:
    """Inputs of a case at random."""
    device = torch.device(device)
    generator = torch.Generator(device).manual_seed(seed)
    return Problem.of(case, case.inputs(Draw(rows, classes, dtype, device, generator)))


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


def step(loss_of: Loss, problem: Problem) -> Tensor:
    """One forward pass, and backward where there is a gradient to collect, reset before."""
    for x in problem.leaves:
        x.grad = None
    loss = loss_of(*problem.args)
    if problem.leaves:
        loss.backward()
    return loss


# --- the same result? ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Errors:
    """Relative errors (Euclidean norms) of the loss and of the worst gradient against float64."""

    loss: float
    gradient: float


@dataclass(frozen=True)
class Expected:
    """What a case must give: its loss, and a gradient for each leaf."""

    loss: Tensor
    gradients: tuple[Tensor, ...]

    def to(self, device: torch.device | str) -> Expected:
        return Expected(self.loss.to(device), tuple(x.to(device) for x in self.gradients))


def oracle(case: Case, given: Problem) -> Expected:
    """Loss and gradients of the eager code on the same inputs in float64."""
    wide = given.map(case, lambda x: x.double() if x.is_floating_point() else x)
    loss = step(case.eager, wide).detach().double()
    return Expected(loss, _gradients(wide))


def check(name: str, loss_of: Loss, given: Problem, expected: Expected, tolerance: float) -> Errors:
    """Errors of one side against the `oracle`.

    Raises:
        AssertionError: where the side computes something else.
    """
    loss = step(loss_of, given).detach().double()
    gradients = [
        _relative(x, y) for x, y in zip(_gradients(given), expected.gradients, strict=True)
    ]
    given.reset()
    errors = Errors(_relative(loss, expected.loss), max(gradients, default=0.0))
    # Written so that NaN fails: max passes one over.
    if not all(error <= tolerance for error in (errors.loss, *gradients)):
        raise AssertionError(
            f"{name}: expected the result of eager in float64 within {tolerance:g}, got a loss off "
            f"by {errors.loss:.1e} and a gradient off by {errors.gradient:.1e}"
        )
    return errors


def _gradients(given: Problem) -> tuple[Tensor, ...]:
    found = tuple(x.grad for x in given.leaves if x.grad is not None)
    assert len(found) == len(given.leaves), "an argument in `gradients` got none"
    return found


def _relative(x: Tensor, expected: Tensor) -> float:
    difference = (x.double() - expected).norm()
    return float(difference / expected.norm()) if difference != 0 else 0.0
