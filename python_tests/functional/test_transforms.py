"""Fused losses under autograd's modes, torch.func, torch.compile, autocast and checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import ltkernels
from ltkernels import functional, reference

F64 = torch.float64
Loss = Callable[[Tensor], Tensor]
N, C = 4, 7


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


TARGET = torch.tensor([0, 6, 3, 3])
TEMPERATURES: dict[str, float | Tensor] = {
    "number": 1.7,
    "scalar": torch.tensor([2.0], dtype=F64),
    "class": draw(C, seed=9).abs() + 0.5,
    "sample": draw(N, 1, seed=8).abs() + 0.5,
}


def losses(module: Any, reduction: str = "mean") -> dict[str, Loss]:
    """One loss of the student's logits for every path through the ops."""
    teacher, weight = draw(N, C, seed=1), draw(C, seed=2).abs()
    subset = torch.tensor([5, 0, 3])
    soft = torch.softmax(draw(N, C, seed=3), dim=1)
    mixup = {"target_b": torch.tensor([1, 6, 0, 2]), "lam": torch.tensor([0.0, 1.0, 0.3, 0.5])}
    margin, bias = draw(C, seed=4).abs(), draw(C, seed=5)
    queue = draw(70, C, seed=6)
    kd, bkd, ace = module.kd_loss, module.bkd_loss, module.adjusted_cross_entropy
    r: Any = {"reduction": reduction}
    ride, diversity = module.ride_loss, module.diversity_loss
    collaborative = module.collaborative_kd_loss
    weights = draw(3, N, seed=6).abs()

    def experts(x: Tensor) -> list[Tensor]:
        return [x, teacher.to(x.dtype), 0.5 * x]

    kd_of_kind = {
        f"kd {kind}": lambda x, t=t: kd(x, teacher.to(x.dtype), t, **r)
        for kind, t in TEMPERATURES.items()
    }
    return {
        **kd_of_kind,
        "kd subset": lambda x: kd(x, teacher[:, :3].to(x.dtype), 2.0, classes=subset, **r),
        "kd subsets": lambda x: kd(
            x,
            [teacher[:, :3].to(x.dtype), teacher[:, 3:5].to(x.dtype)],
            2.0,
            classes=[subset, torch.tensor([1, 2])],
            subset_weight=[0.3, 2],
            **r,
        ),
        "kd overlapping subsets": lambda x: kd(
            x,
            [teacher[:, :3].to(x.dtype), teacher.to(x.dtype)],
            TEMPERATURES["class"],
            classes=(subset, torch.arange(C)),
            subset_weight=weight[:2],
            sample_weight=weight[:N],
            **r,
        ),
        "kd weighted": lambda x: kd(
            x, teacher.to(x.dtype), 3.0, sample_weight=weight[:N], t2=False, **r
        ),
        "bkd hard": lambda x: bkd(x, teacher.to(x.dtype), TARGET, weight, 2.0, 0.5, **r),
        "bkd soft": lambda x: bkd(x, teacher.to(x.dtype), soft, None, 1.5, **r),
        "bkd mixup": lambda x: bkd(x, teacher.to(x.dtype), TARGET, weight, 4.0, **mixup, **r),
        "ace": lambda x: ace(x, TARGET, **r),
        "ace all": lambda x: ace(
            x,
            TARGET,
            scale=2.0,
            margin=margin,
            bias=bias,
            class_weight=weight,
            label_smoothing=0.1,
            focal_gamma=1.5,
            ignore_index=6,
            **r,
        ),
        # Pairwise, as the mean of the logits would be a constant of second derivatives.
        "ride pairwise": lambda x: ride(
            experts(x),
            TARGET,
            margin=margin,
            class_weight=weight,
            temperature=TEMPERATURES["class"],
            pairwise=True,
            **r,
        ),
        "ride collaborative": lambda x: ride(
            torch.stack(experts(x)),
            TARGET,
            margin=margin,
            temperature=2.0,
            collaborative=True,
            pairwise=True,
            **r,
        ),
        "ride alone": lambda x: ride(experts(x), TARGET, diversity_factor=0, **r),
        "diversity": lambda x: diversity(
            torch.stack(experts(x)), TEMPERATURES["sample"], pairwise=True, **r
        ),
        "collaborative": lambda x: collaborative(
            experts(x), 1.5, sample_weight=weights, direction="teacher_first", **r
        ),
        "info_nce": lambda x: module.info_nce(x, teacher.to(x.dtype), queue.to(x.dtype), **r),
        "info_nce rows": lambda x: module.info_nce(
            x, teacher.to(x.dtype), queue[:5].to(x.dtype), TEMPERATURES["sample"], **r
        ),
    }


NAMES = sorted(losses(functional))
each_loss = pytest.mark.parametrize("name", NAMES)


def gradient(loss: Loss, x: Tensor, upstream: Tensor | None = None) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(x), x, upstream)[0]


# --- derivatives ----------------------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(name: str, reduction: str) -> None:
    x = draw(N, C).requires_grad_()
    assert gradcheck(losses(functional, reduction)[name], (x,))


def test_gradcheck_of_both_sides() -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        subset = torch.tensor([5, 0, 3])
        a = functional.kd_loss(student, teacher, 0.7, detach_teacher=False)
        b = functional.kd_loss(
            student, teacher[:, :3], TEMPERATURES["class"], classes=subset, detach_teacher=False
        )
        c = functional.kd_loss(
            student,
            [teacher[:, :3], teacher[:, 2:4]],
            TEMPERATURES["sample"],
            classes=[subset, torch.tensor([3, 1])],
            subset_weight=[0.4, 2.0],
            detach_teacher=False,
        )
        return a + b + c

    assert gradcheck(loss, (draw(N, C).requires_grad_(), draw(N, C, seed=1).requires_grad_()))


@each_loss
def test_second_derivative_is_an_error_and_the_definition_has_it(name: str) -> None:
    x = draw(N, C).requires_grad_()
    loss = losses(functional)[name]
    (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
    assert first.requires_grad
    op = {
        "kd": "kd_loss",
        "bk": "bkd_loss",
        "ac": "adjusted_cross_entropy",
        "ri": "ride_loss",
        "di": "diversity_loss",
        "co": "collaborative_kd_loss",
        "in": "info_nce",
    }[name[:2]]
    with pytest.raises(RuntimeError, match=rf"`{op}`: .*twice.*backend\('reference'\)"):
        first.square().sum().backward()
    with ltkernels.backend("reference"):
        assert gradgradcheck(loss, (x,))


@each_loss
@pytest.mark.parametrize("upstream", ["one", "other"])
@pytest.mark.parametrize("by", ["backward", "grad", "grad of the penalty", "hessian"])
def test_gradient_penalty_is_never_silently_zero(name: str, upstream: str, by: str) -> None:
    x = draw(N, C).requires_grad_()
    factor = 1.0 if upstream == "one" else 0.3

    def loss(x: Tensor) -> Tensor:
        return losses(functional)[name](x) * factor

    value = loss(x)
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    penalty = first.square().sum()
    differentiate: Callable[[], object] = {
        "backward": lambda: (value + penalty).backward(),
        "grad": lambda: torch.autograd.grad(value + penalty, x),  # runs only what leads to x
        "grad of the penalty": lambda: torch.autograd.grad(penalty, x, allow_unused=True),
        "hessian": lambda: torch.autograd.functional.hessian(loss, x),
    }[by]
    with pytest.raises(RuntimeError, match="twice"):
        differentiate()


@each_loss
def test_gradient_penalty_through_a_factor_of_the_loss(name: str) -> None:
    factor = torch.ones((), dtype=F64, requires_grad=True)
    x = draw(N, C).requires_grad_()
    (first,) = torch.autograd.grad(losses(functional)[name](x) * factor, x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(first.sum(), factor, allow_unused=True)


@each_loss
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.float16])
def test_second_backward_with_another_upstream(name: str, dtype: torch.dtype) -> None:
    """The saved gradient is multiplied, not changed: each backward is as if it were the first."""
    x = draw(N, C).to(dtype).requires_grad_()
    loss = losses(functional, "none")[name]
    value = loss(x)
    upstreams = [torch.full((N,), u, dtype=value.dtype) for u in (1.0, -3.0, 0.25, 1.0)]
    for upstream in upstreams:
        (again,) = torch.autograd.grad(value, x, upstream, retain_graph=True)
        assert torch.equal(again, gradient(loss, x, upstream))


@each_loss
def test_accumulating_into_grad(name: str) -> None:
    """`.grad` is changed in place by optimisers; the graph it came from must not notice."""
    x = draw(N, C).requires_grad_()
    loss = losses(functional)[name]
    once = gradient(loss, x)
    value = loss(x)
    for times in (1, 2, 3):
        value.backward(retain_graph=True)
        torch.testing.assert_close(x.grad, times * once)
    assert x.grad is not None
    x.grad.zero_()
    value.backward(retain_graph=True)
    assert torch.equal(x.grad, once)


@pytest.mark.parametrize("dtype", [F64, torch.float16])
def test_accumulating_into_grad_of_teachers(dtype: torch.dtype) -> None:
    student, classes = draw(N, C, dtype=dtype), [torch.tensor([0, 3]), torch.tensor([3, 6, 1])]
    teachers = [draw(N, len(x), seed=1, dtype=dtype).requires_grad_() for x in classes]
    value = functional.kd_loss(student, teachers, classes=classes, detach_teacher=False)
    once = torch.autograd.grad(value, teachers, retain_graph=True)
    for times in (1, 2, 3):
        value.backward(retain_graph=True)
        for teacher, gradient_ in zip(teachers, once, strict=True):
            torch.testing.assert_close(teacher.grad, times * gradient_)
            assert gradient_.abs().max() > 0


@each_loss
def test_gradient_flows_on_to_what_made_the_logits(name: str) -> None:
    w = draw(C, C, seed=6).requires_grad_()
    h = draw(N, C, seed=7)
    results = []
    for module in (functional, reference):
        loss = losses(module)[name]
        results.append(torch.autograd.grad(2 * loss(h @ w) + loss((h @ w).t().contiguous().t()), w))
    torch.testing.assert_close(*results)


def test_no_grad_and_inference_mode() -> None:
    x = draw(N, C).requires_grad_()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            value = functional.kd_loss(x, draw(N, C, seed=1))
        assert not value.requires_grad
        assert torch.equal(value, functional.kd_loss(x, draw(N, C, seed=1)).detach())


def test_only_asked_gradients() -> None:
    student, teacher = draw(N, C), draw(N, C, seed=1).requires_grad_()
    assert not functional.kd_loss(student, teacher).requires_grad
    value = functional.kd_loss(student, teacher, detach_teacher=False)
    (of_teacher,) = torch.autograd.grad(value, teacher)
    expected = reference.kd_loss(student, teacher, detach_teacher=False)
    torch.testing.assert_close(of_teacher, torch.autograd.grad(expected, teacher)[0])


def test_only_asked_gradients_of_subsets() -> None:
    student, classes = draw(N, C), [torch.tensor([0, 3]), torch.tensor([3, 6, 1])]
    teachers = [draw(N, 2, seed=1), draw(N, 3, seed=2).requires_grad_()]
    assert not functional.kd_loss(student, teachers, classes=classes).requires_grad
    for dtype in (F64, torch.float16):
        each = [
            torch.autograd.grad(
                module.kd_loss(
                    student.to(dtype),
                    [t.to(dtype) for t in teachers],
                    classes=classes,
                    detach_teacher=False,
                ),
                teachers[1],
            )[0]
            for module in (functional, reference)
        ]
        torch.testing.assert_close(*each, rtol=1e-3 if dtype == torch.float16 else 1e-9, atol=1e-6)


def test_detached_teacher_has_no_gradient() -> None:
    student, teacher = draw(N, C).requires_grad_(), draw(N, C, seed=1).requires_grad_()
    functional.kd_loss(student, teacher).backward()
    functional.bkd_loss(student, teacher, TARGET).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_one_tensor_as_student_and_teacher() -> None:
    x = draw(N, C).requires_grad_()
    value = functional.kd_loss(x, x, 2.0, detach_teacher=False)
    torch.testing.assert_close(value, torch.zeros_like(value))
    torch.testing.assert_close(torch.autograd.grad(value, x)[0], torch.zeros_like(x))


@pytest.mark.parametrize("which", ["temperature", "sample_weight", "margin", "bias"])
def test_gradients_that_only_the_definition_has(which: str) -> None:
    v = (draw(N if which == "sample_weight" else C, seed=5).abs() + 0.5).requires_grad_()

    def loss(module: Any) -> Tensor:
        if which in ("margin", "bias"):
            return module.adjusted_cross_entropy(draw(N, C), TARGET, **{which: v})
        return module.kd_loss(draw(N, C), draw(N, C, seed=1), **{which: v})

    ours, expected = (torch.autograd.grad(loss(m), v)[0] for m in (functional, reference))
    assert ours.abs().max() > 0
    assert torch.equal(ours, expected)


# --- batched and symbolic upstreams ---------------------------------------------------------------


@each_loss
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_batched_upstreams(name: str, reduction: str) -> None:
    x = draw(N, C).requires_grad_()
    value = losses(functional, reduction)[name](x)
    upstreams = draw(3, *value.shape, seed=5)
    (batched,) = torch.autograd.grad(value, x, upstreams, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(value, x, u, retain_graph=True)[0] for u in upstreams]
    torch.testing.assert_close(batched, torch.stack(one_by_one))


def test_backward_of_fake_tensors() -> None:
    """Memory planners run a training step on tensors without data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.randn(N, C, requires_grad=True)
        functional.kd_loss(x, torch.randn(N, C)).backward()
        functional.adjusted_cross_entropy(x, torch.zeros(N, dtype=torch.int64)).backward()
    assert x.grad is not None
    assert x.grad.shape == (N, C)


# --- torch.func -----------------------------------------------------------------------------------


@each_loss
def test_func_grad_and_hessian(name: str) -> None:
    x = draw(N, C)
    ours, definition = losses(functional)[name], losses(reference)[name]
    torch.testing.assert_close(torch.func.grad(ours)(x), gradient(definition, x))
    torch.testing.assert_close(torch.func.hessian(ours)(x), torch.func.hessian(definition)(x))


@each_loss
def test_jvp(name: str) -> None:
    x, tangent = draw(N, C), draw(N, C, seed=3)
    loss = losses(functional)[name]
    _, ours = torch.func.jvp(loss, (x,), (tangent,))
    torch.testing.assert_close(ours, (gradient(loss, x) * tangent).sum())
    with forward_ad.dual_level():
        dual = loss(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, ours)


def test_vmap_of_grad_is_the_gradient_of_each_batch() -> None:
    students, teachers = draw(3, N, C), draw(3, N, C, seed=1)

    def per_batch(x: Tensor, t: Tensor) -> Tensor:
        return functional.bkd_loss(x, t, TARGET) + functional.kd_loss(x, t, reduction="sum")

    batched = torch.func.vmap(torch.func.grad(per_batch))(students, teachers)
    for x, t, g in zip(students, teachers, batched, strict=True):
        torch.testing.assert_close(g, gradient(lambda x, t=t: per_batch(x, t), x))


def test_vmap_without_grad() -> None:
    students = draw(3, N, C)
    batched = torch.func.vmap(lambda x: functional.adjusted_cross_entropy(x, TARGET))(students)
    each = torch.stack([functional.adjusted_cross_entropy(x, TARGET) for x in students])
    torch.testing.assert_close(batched, each)


# --- torch.compile --------------------------------------------------------------------------------


@each_loss
def test_compile_fullgraph(name: str) -> None:
    torch.compiler.reset()
    loss = losses(functional)[name]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    x = draw(N, C, dtype=torch.float32)
    torch.testing.assert_close(compiled(x), loss(x))
    torch.testing.assert_close(gradient(compiled, x), gradient(loss, x))
    torch.testing.assert_close(
        gradient(lambda x: -3 * compiled(x), x), gradient(lambda x: -3 * loss(x), x)
    )


def test_compile_with_dynamic_shapes() -> None:
    torch.compiler.reset()

    def step(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        divergence = functional.kd_loss(student, teacher, 3.0)
        return divergence + functional.bkd_loss(student, teacher, target)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for n, c in ((4, 7), (5, 70), (2, 1025)):
        student, teacher = (draw(n, c, seed=s, dtype=torch.float32) for s in (0, 1))
        target = torch.arange(n)
        torch.testing.assert_close(
            gradient(lambda x, t=teacher, y=target: compiled(x, t, y), student),
            gradient(lambda x, t=teacher, y=target: step(x, t, y), student),
        )


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    """A whole step in one graph, with code generated around the ops."""
    torch.compiler.reset()

    def step(x: Tensor, w: Tensor, teacher: Tensor) -> Tensor:
        logits = x @ w
        loss = functional.bkd_loss(logits, teacher, TARGET, temperature=2.0)
        return loss + functional.adjusted_cross_entropy(logits, TARGET, focal_gamma=1.0) * 0.5

    x, w, teacher = (draw(*s, dtype=torch.float16) for s in ((N, 5), (5, C), (N, C)))
    compiled = torch.compile(step, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, w, teacher), step(x, w, teacher))
    ours = gradient(lambda w: compiled(x, w, teacher), w)
    torch.testing.assert_close(ours, gradient(lambda w: step(x, w, teacher), w))


# --- autocast and checkpointing -------------------------------------------------------------------


@each_loss
def test_autocast_changes_nothing(name: str) -> None:
    x = draw(N, C, dtype=torch.bfloat16)
    loss = losses(functional)[name]
    outside = loss(x), gradient(loss, x)
    definition = losses(reference)[name]
    expected = definition(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(x), gradient(loss, x)
        assert torch.equal(definition(x), expected)
    assert inside[0].dtype == torch.float32
    assert inside[1].dtype == torch.bfloat16
    assert torch.equal(inside[0], outside[0])
    assert torch.equal(inside[1], outside[1])


@each_loss
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(name: str, use_reentrant: bool) -> None:
    x = draw(N, C).requires_grad_()
    loss = losses(functional)[name]
    value = checkpoint(loss, x * 1, use_reentrant=use_reentrant)
    value.backward()
    assert torch.equal(x.grad, gradient(loss, x))
