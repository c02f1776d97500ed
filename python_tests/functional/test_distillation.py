"""Fused kd_loss and bkd_loss against their definition, over random calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ltkernels
import strategies as draw_
from closeness import Arguments, assert_close_to_definition
from ltkernels import functional, reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INF = float("inf")
LOGITS = ("student", "teacher")


# --- random calls ---------------------------------------------------------------------------------


def pair(
    draw: st.DrawFn, dtype: torch.dtype, rows: int, student_classes: int, teacher_classes: int
) -> dict[str, draw_.Logits]:
    """Student and teacher; sometimes the teacher in another dtype, or equal to the student."""
    other = draw(st.just(dtype) | st.just(dtype) | st.sampled_from(DTYPES))
    student = draw(draw_.logits(rows, student_classes, dtype))
    teacher = draw(draw_.logits(rows, teacher_classes, other))
    if draw(st.integers(0, 9)) == 9 and student_classes == teacher_classes:
        teacher = replace(student, dtype=other)
    return {"student": student, "teacher": teacher}


@st.composite
def kd_calls(draw: st.DrawFn, dtype: torch.dtype) -> dict[str, Any]:
    rows, columns = draw(draw_.rows), draw(draw_.classes)
    call: dict[str, Any] = {"reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    subset = columns
    if draw(st.integers(0, 2)) == 2:
        subset = draw(st.integers(1, columns))
        call["classes"] = draw_.made(draw_.class_subset, subset, columns, draw(draw_.seeds))
    call |= pair(draw, dtype, rows, columns, subset)
    call["temperature"] = draw(draw_.temperatures(rows, columns))
    call["t2"] = draw(st.sampled_from([True, True, False, 3, 0.5]))
    call["detach_teacher"] = draw(st.booleans())
    if draw(st.booleans()):
        call["sample_weight"] = draw_.made(draw_.vector, rows, draw(draw_.seeds), -0.5, 1.5)
    return call


@st.composite
def bkd_calls(draw: st.DrawFn, dtype: torch.dtype) -> dict[str, Any]:
    rows, columns = draw(draw_.rows), draw(draw_.classes)
    call: dict[str, Any] = {"reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    call |= pair(draw, dtype, rows, columns, columns)
    call["temperature"] = draw(draw_.temperatures(rows, columns))
    call["alpha"] = draw(st.sampled_from([1.0, 1.0, 0.3, 5, 0, -0.5]))
    seed, made = draw(draw_.seeds), draw_.made
    if draw(st.booleans()):
        zeros = draw(st.booleans())
        call["class_weight"] = made(draw_.vector, columns, seed, 0.01, 2.0, zeros)
    labels = draw(st.sampled_from(["hard", "soft", "one_hot", "mixup", "mixup_0d", "mixup_rows"]))
    if labels == "soft":
        call["target"] = made(draw_.probabilities, rows, columns, seed)
    elif labels == "one_hot":
        call["target"] = made(draw_.one_hot, rows, columns, seed)
    else:
        call["target"] = made(draw_.class_indices, rows, columns, seed)
    if labels.startswith("mixup"):
        call["target_b"] = made(draw_.class_indices, rows, columns, seed + 1)
        call["lam"] = draw(st.sampled_from([0.0, 1, 0.3]))
    if labels == "mixup_0d":
        call["lam"] = torch.tensor(call["lam"], dtype=torch.float64)
    if labels == "mixup_rows":
        call["lam"] = made(mixing_shares, rows, seed)
    return call


def mixing_shares(rows: int, seed: int) -> Tensor:
    """In 0..1, both ends among them."""
    return draw_.vector(rows, seed, -0.5, 1.5).clamp(0, 1)


def subsets_of(columns: int, kinds: tuple[str, ...], seed: int) -> list[Tensor]:
    """Class subsets: neighbours, scattered, scattered in order, a mixture, one class, all."""
    found = []
    for i, kind in enumerate(kinds):
        random = draw_.generator(seed + i)
        order = torch.randperm(columns, generator=random)
        a, b = sorted(torch.randint(columns + 1, (2,), generator=random).tolist())
        a, b = (a, b) if a < b else (0, columns)
        found.append(
            {
                "run": torch.arange(a, b),
                "scattered": order[a:b],
                "sorted": order[a:b].sort().values,
                "mixed": torch.cat([torch.arange(b, columns), order[order < b]]),
                "one": order[:1],
                "all": order,
            }[kind]
        )
    return found


KINDS_OF_SUBSETS = ["run", "run", "scattered", "sorted", "mixed", "one", "all"]


@st.composite
def subset_calls(draw: st.DrawFn, dtype: torch.dtype) -> dict[str, Any]:
    rows, columns = draw(draw_.rows), draw(draw_.classes)
    kinds = tuple(
        draw(st.sampled_from(KINDS_OF_SUBSETS)) for _ in range(draw(st.sampled_from([1, 2, 3, 7])))
    )
    seed = draw(draw_.seeds)
    call: dict[str, Any] = {"reduction": draw(st.sampled_from(["mean", "sum", "none"]))}
    call["student"] = draw(draw_.logits(rows, columns, dtype))
    call["classes"] = draw_.made(subsets_of, columns, kinds, seed)
    for i, known in enumerate(subsets_of(columns, kinds, seed)):
        other = draw(st.just(dtype) | st.just(dtype) | st.just(dtype) | st.sampled_from(DTYPES))
        call[f"teacher_{i}"] = draw(draw_.logits(rows, len(known), other))
    call["temperature"] = draw(draw_.temperatures(rows, columns))
    call["t2"] = draw(st.sampled_from([True, True, False, 0.5]))
    call["detach_teacher"] = draw(st.booleans())
    weights = draw(st.sampled_from(["none", "numbers", "tensor"]))
    if weights == "numbers":
        call["subset_weight"] = [0.0, 1, -0.5, 2.0, 0.3, 1.0, 1.0][: len(kinds)]
    elif weights == "tensor":
        call["subset_weight"] = draw_.made(draw_.vector, len(kinds), seed, -0.5, 1.5)
    if draw(st.booleans()):
        call["sample_weight"] = draw_.made(draw_.vector, rows, draw(draw_.seeds), -0.5, 1.5)
    return call


# --- the size of each element before cancellation -------------------------------------------------


def finite(x: Tensor) -> Tensor:
    return torch.where(x.isfinite(), x, 0.0)


def magnitudes(call: Arguments, arithmetic: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """See closeness.Magnitudes; for both ops."""
    student, teacher = call["student"], call["teacher"]
    rows, columns = student.shape
    classes = call.get("classes", torch.arange(columns))
    alpha = abs(call.get("alpha", 1.0))
    temperature = torch.as_tensor(call.get("temperature", 2.0), dtype=torch.float64)
    by_class = temperature.dim() == 1 and temperature.numel() > 1
    if by_class:
        factor = temperature.mean().square().expand(rows, 1)
        temperature = temperature[classes]
    else:
        temperature = temperature.reshape(-1, 1)
        factor = temperature.square().expand(rows, 1)
    t2 = call.get("t2", True)
    factor = alpha * (factor if t2 is True else torch.full_like(factor, abs(t2 or 1)))
    if call.get("sample_weight") is not None:
        factor = factor * call["sample_weight"].abs().unsqueeze(1)

    tempered = [student[:, classes] / temperature, teacher / temperature]
    weight = call.get("class_weight")
    biased = [tempered[0], tempered[1] if weight is None else tempered[1] + weight.log()]
    log_p, log_q = (torch.log_softmax(x, dim=1) for x in biased)
    p, q = log_p.exp(), log_q.exp()
    log_p, log_q = finite(log_p), finite(log_q)
    surplus = (log_q - log_p - (q * (log_q - log_p)).nansum(dim=1, keepdim=True)).abs()
    log_p, log_q = log_p.abs(), log_q.abs()
    exponent = 1 + log_p + log_q
    if arithmetic == torch.float64:
        exponent = exponent + columns**0.5  # the definition's own sums
    if by_class or weight is not None or arithmetic == torch.float64:
        # The exponents were rounded before the maximum was subtracted.
        for x in tempered:
            exponent = exponent + finite(x).abs().amax(dim=1, keepdim=True)
    mean = (q * exponent).nansum(dim=1, keepdim=True)  # of the divergence
    of_student = torch.zeros_like(student)
    of_student[:, classes] = factor / temperature * (p + q) * exponent
    of_teacher = factor / temperature * q * (exponent * (1 + surplus) + mean)
    # A student -inf leaves no exact value in these, but the gradient there is 0.
    gradients = {"student": of_student, "teacher": of_teacher}
    log_classes = torch.log(torch.tensor(1.0 + columns))
    loss = (factor * (mean + log_classes)).squeeze(1)
    if alpha == 0:  # the teacher is not looked at, whatever it holds
        gradients["student"], loss = torch.zeros_like(student), torch.zeros_like(loss)

    target = call.get("target")
    if target is not None:
        log_prob = torch.log_softmax(student, dim=1)
        if not target.is_floating_point():
            y = torch.nn.functional.one_hot(target, columns).double()
            if call.get("target_b") is not None:
                lam = torch.as_tensor(call["lam"], dtype=torch.float64).reshape(-1, 1)
                y = lam * y + (1 - lam) * torch.nn.functional.one_hot(call["target_b"], columns)
            target = y
        surprise = finite(log_prob).abs()
        mass = target.sum(dim=1, keepdim=True)
        of_labels = mass * log_prob.exp() * (1 + surprise) + target
        gradients["student"] = gradients["student"] + of_labels
        loss = loss + (target * (1 + surprise + log_classes)).sum(dim=1)
    return loss, gradients


def teachers_of(call: Arguments) -> list[str]:
    return [f"teacher_{i}" for i in range(len(call["classes"]))]


def with_named_teachers(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`kd_loss` with the teachers as arguments of their own, which have gradients of their own."""

    def named(**call: Any) -> Tensor:
        teachers = [call.pop(name) for name in teachers_of(call)]
        return op(call.pop("student"), teachers, **call)

    return named


def subset_magnitudes(call: Arguments, arithmetic: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """The sums of those of the subsets."""
    student = call["student"]
    loss, gradients = torch.zeros(len(student)).double(), {"student": torch.zeros_like(student)}
    given = call.get("subset_weight")
    weights = torch.as_tensor(1.0 if given is None else given, dtype=torch.float64).abs()
    weights = weights.expand(len(call["classes"]))
    for w, name, classes in zip(weights, teachers_of(call), call["classes"], strict=True):
        single = {**call, "teacher": call[name], "classes": classes}
        of_loss, of_gradients = magnitudes(single, arithmetic)
        loss = loss + w * of_loss.nan_to_num()
        gradients["student"] = gradients["student"] + w * of_gradients["student"].nan_to_num()
        gradients[name] = w * of_gradients["teacher"]
    return loss, gradients


def check_subsets(call: dict[str, Any], fused: Callable[..., Tensor] = functional.kd_loss) -> None:
    call = draw_.built(call)
    logits = ["student", *teachers_of(call)]
    wrt = logits if not call.get("detach_teacher", True) else logits[:1]
    assert_close_to_definition(
        with_named_teachers(fused),
        with_named_teachers(reference.kd_loss),
        call,
        logits,
        wrt,
        subset_magnitudes,
    )


def check_kd(call: dict[str, Any], fused: Callable[..., Tensor] = functional.kd_loss) -> None:
    call = draw_.built(call)
    wrt = LOGITS if not call.get("detach_teacher", True) else LOGITS[:1]
    assert_close_to_definition(fused, reference.kd_loss, call, LOGITS, wrt, magnitudes)


def check_bkd(call: dict[str, Any], fused: Callable[..., Tensor] = functional.bkd_loss) -> None:
    call = draw_.built(call)
    assert_close_to_definition(fused, reference.bkd_loss, call, LOGITS, LOGITS[:1], magnitudes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=settings.default.max_examples * 2)
@given(data=st.data())
def test_kd_loss(dtype: torch.dtype, data: st.DataObject) -> None:
    check_kd(data.draw(kd_calls(dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=settings.default.max_examples * 2)
@given(data=st.data())
def test_bkd_loss(dtype: torch.dtype, data: st.DataObject) -> None:
    check_bkd(data.draw(bkd_calls(dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=settings.default.max_examples * 2)
@given(data=st.data())
def test_kd_loss_of_subsets(dtype: torch.dtype, data: st.DataObject) -> None:
    check_subsets(data.draw(subset_calls(dtype)))


# --- cases by hand --------------------------------------------------------------------------------

NAN = float("nan")
C = 2500  # three chunks of the kernels
KINDS = ["kd", "kd_teacher", "bkd", "bkd_t2", "bkd_soft"]


def case(kind: str, student: Tensor, teacher: Tensor, **changes: Any) -> None:
    """Check one call on given logits, in every dtype they fit."""
    rows, columns = student.shape
    for dtype in DTYPES:
        call = {"student": student.to(dtype), "teacher": teacher.to(dtype), "reduction": "none"}
        if kind.startswith("kd"):
            check_kd({**call, "detach_teacher": kind == "kd", **changes})
            continue
        target = torch.arange(rows) % columns
        call["target"] = target
        if kind == "bkd_soft":
            call["target"] = torch.nn.functional.one_hot(target, columns).float()
        check_bkd({**call, "temperature": 2.0 if kind == "bkd_t2" else 3.0, **changes})


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(rows, columns, generator=draw_.generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [-300.0, 0.0, 300.0, -2e4])
def test_first_finite_logit_in_a_later_chunk(kind: str, level: float) -> None:
    student, teacher = normal(3, C) + level, normal(3, C, 1) + level
    student[0, :1100] = teacher[0, :1100] = -INF
    student[1, :-1] = teacher[1, :-1] = -INF
    teacher[2, :2100] = -INF
    case(kind, student, teacher)


@pytest.mark.parametrize("kind", KINDS)
def test_maximum_grows_from_chunk_to_chunk(kind: str) -> None:
    ramp = torch.linspace(-1e4, 1e4, C, dtype=torch.float64)
    student, teacher = normal(4, C), normal(4, C, 1)
    student[0] += ramp
    teacher[1] += ramp
    student[2] += ramp
    teacher[2] += ramp
    student[3] -= ramp
    teacher[3] += ramp
    case(kind, student, teacher)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [-1e4, 1e4, 3e4])
def test_common_offsets_cost_no_accuracy(kind: str, level: float) -> None:
    case(kind, normal(2, 10) + level, normal(2, 10, 1))
    case(kind, normal(2, 10), normal(2, 10, 1) + level)


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_divergence_is_one_rows_own(kind: str) -> None:
    student, teacher = normal(3, 20), normal(3, 20, 1)
    student[1, 4] = -INF
    case(kind, student, teacher)
    loss = functional.kd_loss(student, teacher, reduction="none")
    assert loss.isinf().tolist() == [False, True, False]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
@pytest.mark.parametrize("value", [-INF, NAN, INF])
def test_a_bad_row_poisons_itself_only(kind: str, side: str, value: float) -> None:
    """No finite logit, NaN, or +inf: the row is NaN, the others are not."""
    logits = {"student": normal(3, 20), "teacher": normal(3, 20, 1)}
    for name in logits if side == "both" else [side]:
        logits[name][1, slice(None) if value == -INF else 7] = value
    student = logits["student"].requires_grad_()
    loss = functional.kd_loss(student, logits["teacher"], 2.0, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert gradient.isnan().all(dim=1).tolist() == [False, True, False]
    assert gradient.isnan().any(dim=1).tolist() == [False, True, False]
    case(kind, student.detach(), logits["teacher"])


def test_nan_in_the_logits_of_a_zero_weighted_sample() -> None:
    student = normal(2, 5)
    student[0, 0] = NAN
    case("kd", student, normal(2, 5, 1), sample_weight=torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(reduction: str) -> None:
    x, t = torch.zeros(0, 5, requires_grad=True), torch.zeros(0, 5)
    y = torch.zeros(0, dtype=torch.int64)
    for loss in (
        functional.kd_loss(x, t, reduction=reduction),
        functional.kd_loss(x, t, torch.ones(0, 1), reduction=reduction),
        functional.bkd_loss(x, t, y, reduction=reduction),
        functional.bkd_loss(x, t, torch.zeros(0, 5), reduction=reduction),
    ):
        expected = {"mean": [], "sum": [], "none": [0]}[reduction]
        assert list(loss.shape) == expected
        if reduction != "none":
            assert loss.isnan() if reduction == "mean" else loss == 0
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert gradient.shape == (0, 5)


def test_one_class_has_neither_loss_nor_gradient() -> None:
    for dtype in DTYPES:
        x = torch.tensor([[3.0], [-1e4]], dtype=dtype, requires_grad=True)
        y = torch.zeros(2, dtype=torch.int64)
        by_row = torch.tensor([[1.0], [9.0]])
        for temperature in (0.05, 1.0, 2.0, 4.0, 100.0, torch.tensor([0.3]), by_row):
            loss = functional.kd_loss(x, x.detach() * 2, temperature)
            loss = loss + functional.bkd_loss(x, x.detach() * 2, y, None, temperature)
            assert loss == 0
            assert not torch.autograd.grad(loss, x)[0].any()


def test_alpha_zero_does_not_look_at_the_teacher() -> None:
    student, teacher = normal(3, 6).requires_grad_(), torch.full((3, 6), NAN).double()
    target = torch.tensor([0, 5, 2])
    weight = torch.tensor([0.0, 0, 0, 0, 0, 0])
    loss = functional.bkd_loss(student, teacher, target, weight, 2.0, 0)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(student, target))
    ours, expected = (
        torch.autograd.grad(value, student)[0]
        for value in (loss, torch.nn.functional.cross_entropy(student, target))
    )
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("lam", [0.0, 1.0, torch.tensor([0.0, 1.0, 0.5])])
def test_a_share_of_zero_drops_an_impossible_target(lam: float | Tensor) -> None:
    student, teacher = normal(3, 6), normal(3, 6, 1)
    student[:, 2] = teacher[:, 2] = -INF
    impossible, possible = torch.tensor([2, 0, 1]), torch.tensor([0, 2, 3])
    call = {"student": student, "teacher": teacher, "target": impossible}
    check_bkd({**call, "target_b": possible, "lam": lam, "reduction": "none"})
    check_bkd({**call, "target_b": impossible, "lam": 0.5, "reduction": "none"})


def test_all_classes_without_weight_is_nan() -> None:
    weight = torch.zeros(6)
    loss = functional.bkd_loss(
        normal(2, 6), normal(2, 6, 1), torch.tensor([0, 1]), weight, reduction="none"
    )
    assert loss.isnan().all()


def test_a_subset_of_one_class_and_of_all() -> None:
    student, teacher = normal(3, 6).requires_grad_(), normal(3, 6, 1)
    one = functional.kd_loss(student, teacher[:, :1], classes=torch.tensor([4]))
    assert one == 0
    assert not torch.autograd.grad(one, student)[0].any()
    order = torch.tensor([5, 3, 0, 1, 4, 2])
    check_kd({"student": student.detach(), "teacher": teacher, "classes": order})
    infinite_elsewhere = student.detach().clone()
    infinite_elsewhere[:, [0, 2]] = torch.tensor([NAN, INF]).double()
    call = {"student": infinite_elsewhere, "teacher": teacher[:, :2]}
    ours = functional.kd_loss(**call, classes=torch.tensor([1, 4]))
    torch.testing.assert_close(ours, reference.kd_loss(**call, classes=torch.tensor([1, 4])))


LFME = {  # the classes of many, medium and few shots, of 2500
    "sorted": [range(1000), range(1000, 2100), range(2100, 2500)],
    "scattered": [range(0, 2500, 3), range(1, 2500, 3), range(2, 2500, 3)],
    "overlapping": [range(2000), range(1500, 2500), range(0, 2500, 2)],
    "left out": [range(100, 900), range(1200, 1201), range(1500, 2499)],
    "scattered, left out": [range(0, 2500, 7), range(1, 2500, 7)],
}


@pytest.mark.parametrize("kind", LFME)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_experts_of_subsets(kind: str, dtype: torch.dtype) -> None:
    classes = [torch.tensor(list(subset)) for subset in LFME[kind]]
    call: dict[str, Any] = {"student": normal(5, C).to(dtype), "classes": classes}
    for i, subset in enumerate(classes):
        call[f"teacher_{i}"] = normal(5, len(subset), i + 1).to(dtype)
    call |= {"temperature": 2.0, "detach_teacher": False, "subset_weight": [0.3, 1.0, 2.0][: i + 1]}
    check_subsets(call)
    student = call["student"].clone().requires_grad_()
    teachers = [call[name] for name in teachers_of(call)]
    loss = functional.kd_loss(student, teachers, classes=classes)
    (gradient,) = torch.autograd.grad(loss, student)
    inside = torch.zeros(C, dtype=torch.bool)
    inside[torch.cat(classes)] = True
    assert not gradient[:, ~inside].any()
    assert (gradient[:, inside] != 0).double().mean() > 0.9


def test_several_subsets_are_the_sum_of_each() -> None:
    student, classes = normal(4, 9).requires_grad_(), [torch.tensor(x) for x in ([8, 0, 3], [3, 4])]
    teachers = [normal(4, len(x), 1).requires_grad_() for x in classes]
    weight = torch.tensor([0.5, 3.0], requires_grad=True)  # a constant all the same

    def total(module: Any, together: bool) -> list[Tensor]:
        options = {"detach_teacher": False, "reduction": "none"}
        if together:
            loss = module.kd_loss(
                student, teachers, 2.0, classes=classes, subset_weight=weight, **options
            )
        else:
            loss = sum(
                w * module.kd_loss(student, t, 2.0, classes=c, **options)
                for w, t, c in zip((0.5, 3.0), teachers, classes, strict=True)
            )
        return [loss, *torch.autograd.grad(loss, [student, *teachers], torch.ones(4).double())]

    for module in (functional, reference):
        for ours, expected in zip(total(module, True), total(module, False), strict=True):
            torch.testing.assert_close(ours, expected)


def test_one_subset_in_a_sequence_is_that_subset() -> None:
    student, teacher, classes = normal(3, 6), normal(3, 2), torch.tensor([4, 1])
    pair = functional.kd_loss(student, teacher, 2.0, classes=classes)
    assert torch.equal(pair, functional.kd_loss(student, [teacher], 2.0, classes=[classes]))
    assert torch.equal(pair, functional.kd_loss(student, (teacher,), 2.0, classes=(classes,)))


def test_more_subsets_than_the_kernel_takes() -> None:
    count = ltkernels._ops.MOST_SUBSETS
    for subsets in (count, count + 1):
        classes = [torch.arange(i, i + 4) for i in range(subsets)]
        call = {"student": normal(3, 30), "classes": classes, "detach_teacher": False}
        check_subsets({**call, **{f"teacher_{i}": normal(3, 4, i) for i in range(subsets)}})


def test_a_bad_subset_poisons_its_own_columns() -> None:
    student, classes = normal(3, 6), [torch.tensor([0, 1, 2]), torch.tensor([2, 4])]
    teachers = [normal(3, 3, 1), normal(3, 2, 2)]
    teachers[0][1] = -INF
    leaf = student.requires_grad_()
    loss = functional.kd_loss(leaf, teachers, classes=classes, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert gradient.isnan().any(dim=0).tolist() == [True, True, True, False, False, False]
    assert gradient.isnan().any(dim=1).tolist() == [False, True, False]
    expected = reference.kd_loss(leaf, teachers, classes=classes, reduction="none")
    (expected_gradient,) = torch.autograd.grad(expected.sum(), leaf)
    torch.testing.assert_close(gradient, expected_gradient, equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_subsets_of_no_rows(reduction: str) -> None:
    student = torch.zeros(0, 5, requires_grad=True)
    teachers = [torch.zeros(0, 2, requires_grad=True), torch.zeros(0, 3)]
    loss = functional.kd_loss(
        student,
        teachers,
        classes=[torch.tensor([0, 4]), torch.tensor([1, 2, 3])],
        reduction=reduction,
        detach_teacher=False,
    )
    if reduction != "none":
        assert loss.isnan() if reduction == "mean" else loss == 0
    of_student, of_teacher = torch.autograd.grad(loss.sum(), [student, teachers[0]])
    assert (of_student.shape, of_teacher.shape) == ((0, 5), (0, 2))


def test_subsets_do_not_depend_on_the_number_of_threads() -> None:
    classes = [torch.tensor(list(subset)) for subset in LFME["overlapping"]]
    student = normal(64, C).float().requires_grad_()
    teachers = [normal(64, len(x), 1).float() for x in classes]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            loss = functional.kd_loss(student, teachers, classes=classes)
            results.append((loss, *torch.autograd.grad(loss, student)))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def test_strided_targets_classes_and_weights() -> None:
    student, teacher = normal(4, 6), normal(4, 6, 1)
    target = torch.tensor([[0, 9], [5, 9], [3, 9], [3, 9]])[:, 0]
    weight = (torch.rand(6, 2) + 0.5)[:, 0]
    check_bkd({"student": student, "teacher": teacher, "target": target, "class_weight": weight})
    soft = torch.softmax(normal(6, 4), dim=0).t()
    check_bkd({"student": student, "teacher": teacher, "target": soft})
    classes = torch.tensor([[5, 0], [1, 0], [2, 0]])[:, 0]
    temperature = (torch.rand(4, 2) + 0.5)[:, :1]
    call = {"student": student, "teacher": teacher[:, ::2], "classes": classes}
    check_kd({**call, "temperature": temperature, "sample_weight": torch.rand(1).expand(4)})
    several = {"classes": [classes, classes + 0], "subset_weight": torch.rand(2, 2)[:, 0]}
    several |= {"teacher_0": teacher[:, ::2], "teacher_1": teacher[:1, 1::2].expand(4, 3)}
    check_subsets({"student": student, **several, "temperature": temperature})


def test_float16_teacher_gradient_of_distant_logits() -> None:
    """|d teacher| grows with the divergence; it is finite where float16 can hold it."""
    student = torch.tensor([[0.0, 2e4], [0.0, 100.0]], dtype=torch.float64)
    case("kd_teacher", student, torch.zeros(2, 2, dtype=torch.float64), t2=False)


@pytest.mark.parametrize("scale", ["number", "sample", "class"])
@pytest.mark.parametrize("wrt", [LOGITS, LOGITS[1:]], ids="+".join)
@pytest.mark.parametrize("subsets", [False, True])
def test_float16_teacher_gradient_of_a_teacher_almost_certain(
    subsets: bool, wrt: tuple[str, ...], scale: str
) -> None:
    """|d teacher| is far below the divergence, which must not decide what float16 can hold."""
    near = torch.tensor([0.0, -1.2, -1.4, -1.6]).half()
    teacher = torch.stack([near, near.roll(2)])
    student = torch.tensor([[-2e4, 2e4, 0, 1e4], [0, 1e4, -2e4, 2e4]]).half()
    temperature = {
        "number": 0.05,
        "sample": torch.full((2, 1), 0.05),
        "class": torch.full((4,), 0.05),
    }[scale]

    def gradients(op: Callable[..., Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        logits = {"student": student.to(dtype), "teacher": teacher.to(dtype)}
        leaves = [logits[name].requires_grad_() for name in wrt]
        classes = torch.arange(4) if subsets else None
        loss = op(**logits, temperature=temperature, classes=classes, t2=3, detach_teacher=False)
        return dict(zip(wrt, torch.autograd.grad(loss, leaves), strict=True))

    ours, exact = (
        gradients(functional.kd_loss, torch.float16),
        gradients(reference.kd_loss, torch.float64),
    )
    unlikely = teacher != 0  # at the others the gradient is a difference of large numbers
    got, want = ours["teacher"][unlikely].double(), exact["teacher"][unlikely]
    assert 1e-8 < want.abs().min() < want.abs().max() < 1e-2
    torch.testing.assert_close(got, want, rtol=2e-3, atol=2.0**-24)


@pytest.mark.parametrize("subsets", [False, True])
def test_float16_teacher_gradient_that_vanishes_stays_finite(subsets: bool) -> None:
    student = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).half()
    teacher = torch.tensor([[4.3, 0.0], [4.3, 0.0]]).half().requires_grad_()
    loss = functional.kd_loss(
        student,
        teacher,
        0.05,
        classes=torch.arange(2) if subsets else None,
        sample_weight=torch.tensor([1e7, -1e7]),
        t2=3,
        detach_teacher=False,
    )
    (gradient,) = torch.autograd.grad(loss, teacher)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_loss_is_to_the_bit_the_same_with_and_without_gradient(dtype: torch.dtype) -> None:
    """Also where logits are scaled and shifted, which the compiler may round in two ways."""
    student, teacher = (normal(24, 255, seed) - 100 for seed in (0, 1))
    call = {
        "teacher": teacher.to(dtype),
        "target": torch.arange(24),
        "class_weight": draw_.vector(255, 0, 0.01, 2.0),
        "temperature": draw_.vector(255, 1, 1.0, 2.0),
        "reduction": "none",
    }
    without = functional.bkd_loss(student.to(dtype), **call)
    assert torch.equal(without, functional.bkd_loss(student.to(dtype).requires_grad_(), **call))


# --- the comparison can fail ----------------------------------------------------------------------


@pytest.mark.parametrize("output", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_an_error_in_one_element_is_found(
    monkeypatch: pytest.MonkeyPatch, output: int, dtype: torch.dtype
) -> None:
    kernel = ltkernels._ops.distillation
    relative = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 2e-2}[dtype]
    if output == 0:
        relative = 1e-12 if dtype == torch.float64 else 3e-5

    def perturbed(*args: Any) -> tuple[Tensor, ...]:
        outputs = tuple(x.clone() for x in kernel(*args))
        if outputs[output].numel() > 0:
            flat = outputs[output].view(-1)
            flat[flat.abs().argmax()] *= 1 + relative
        return outputs

    call = {
        "student": normal(3, 11).to(dtype),
        "teacher": normal(3, 11, 1).to(dtype),
        "temperature": 2.0,
        "reduction": "none",
        "detach_teacher": False,
    }
    check_kd(call)
    monkeypatch.setattr(ltkernels._ops, "distillation", perturbed)
    with pytest.raises(AssertionError):
        check_kd(call)


@pytest.mark.parametrize("output", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_an_error_in_one_element_of_subsets_is_found(
    monkeypatch: pytest.MonkeyPatch, output: int, dtype: torch.dtype
) -> None:
    kernel = ltkernels._ops.subset_distillation
    relative = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 2e-2}[dtype]
    if output == 0:
        relative = 1e-12 if dtype == torch.float64 else 3e-5

    def perturbed(*args: Any) -> tuple[Tensor, ...]:
        outputs = tuple(x.clone() for x in kernel(*args))
        if outputs[output].numel() > 0:
            flat = outputs[output].view(-1)
            flat[flat.abs().argmax()] *= 1 + relative
        return outputs

    call = {
        "student": normal(3, 11).to(dtype),
        "teacher_0": normal(3, 6, 1).to(dtype),
        "teacher_1": normal(3, 5, 2).to(dtype),
        "classes": [torch.arange(6), torch.tensor([10, 7, 2, 9, 4])],
        "temperature": 2.0,
        "reduction": "none",
        "detach_teacher": False,
    }
    check_subsets(call)
    monkeypatch.setattr(ltkernels._ops, "subset_distillation", perturbed)
    with pytest.raises(AssertionError):
        check_subsets(call)
