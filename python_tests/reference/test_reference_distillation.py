"""The definitions of kd_loss and bkd_loss against the official codes, autograd and themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as torch_f

from golden_vectors import cases, load_case
from ltkernels.reference import bkd_loss, kd_loss

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
INF = float("inf")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.sum(), inputs)


# --- official vectors -----------------------------------------------------------------------------


@pytest.mark.parametrize("case_id", cases("lfme", "DistillationLoss"))
def test_lfme_distillation(case_id: str) -> None:
    case = load_case("lfme", case_id)
    student = case.leaf("student_subset_logits")
    loss = kd_loss(student, case["expert_logits"], case.params["T"], t2=False)
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    torch.testing.assert_close(gradients(loss, student)[0], case["grad_student"], **EXACT)


def test_lfme_batch_loss() -> None:
    """The released batch_loss: CE and three subset distillations of v * log-probs."""
    case = load_case("lfme", "batch_loss_B8_C10_s1_f64")
    log_probs = case.leaf("log_probs")
    scaled = log_probs * case["instance_weight"].unsqueeze(1)
    total = torch_f.cross_entropy(scaled, case["target"])
    torch.testing.assert_close(total, case["loss_perf"], **EXACT)
    for shot in ("low_shot", "median_shot", "many_shot"):
        part = kd_loss(
            scaled,
            case[f"expert_{shot}"],
            case.params["T"],
            classes=case[f"classes_{shot}"],
            t2=False,
        )
        torch.testing.assert_close(part, case[f"kd_{shot}"], **EXACT)
        total = total + case[f"w_{shot}"] * part
    torch.testing.assert_close(total, case["loss"], **EXACT)
    torch.testing.assert_close(gradients(total, log_probs)[0], case["grad"], **EXACT)


def test_lfme_cross_entropy_form_has_the_same_gradient() -> None:
    case = load_case("derived", "lfme_kd_crossentropy_B8_C10")
    student = case.leaf("student_logits")
    q = torch.softmax(case["expert_logits"] / case.params["T"], dim=1)
    entropy = torch.special.entr(q).sum(dim=1).mean()
    loss = kd_loss(
        student, case["expert_logits"], case.params["T"], classes=case["classes"], t2=False
    )
    torch.testing.assert_close(loss + entropy, case["loss"], **EXACT)
    torch.testing.assert_close(gradients(loss, student)[0], case["grad"], **EXACT)


@pytest.mark.parametrize("case_id", cases("bkd", "KDLoss.forward"))
def test_official_kd_and_bkd(case_id: str) -> None:
    case = load_case("bkd", case_id)
    student = case.leaf("student_logits")
    loss = bkd_loss(
        student,
        case["teacher_logits"],
        case["target"],
        case.get("weight"),
        case.params["T"],
        case.params["alpha"],
    )
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    torch.testing.assert_close(gradients(loss, student)[0], case["grad_student_logits"], **EXACT)


# --- derivatives ----------------------------------------------------------------------------------

TEMPERATURES = {
    "number": 2.0,
    "scalar": torch.tensor([1.7], dtype=torch.float64),
    "class": torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64),
    "sample": torch.tensor([[0.7], [1.3], [2.5]], dtype=torch.float64),
}


@pytest.mark.parametrize("kind", TEMPERATURES)
def test_kd_derivatives(kind: str) -> None:
    given_temperature = TEMPERATURES[kind]
    variable = isinstance(given_temperature, Tensor)
    start = given_temperature.clone() if isinstance(given_temperature, Tensor) else draw(1).abs()

    def loss(student: Tensor, teacher: Tensor, weight: Tensor, temperature: Tensor) -> Tensor:
        return kd_loss(
            student,
            teacher,
            temperature if variable else given_temperature,
            sample_weight=weight,
            detach_teacher=False,
            reduction="none",
        )

    inputs = [x.requires_grad_() for x in (draw(3, 4), draw(3, 4, seed=1), draw(3, seed=2), start)]
    if not variable:
        inputs[3].requires_grad_(False)
    assert gradcheck(loss, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(loss, inputs)


def test_kd_subset_derivatives() -> None:
    classes = torch.tensor([3, 0, 4])
    inputs = (draw(2, 5).requires_grad_(), draw(2, 3, seed=1).requires_grad_())

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return kd_loss(student, teacher, 2.0, classes=classes, detach_teacher=False)

    assert gradcheck(loss, inputs, check_forward_ad=True)
    assert gradgradcheck(loss, inputs)


@pytest.mark.parametrize("labels", ["hard", "soft", "mixup", "mixup_rows"])
def test_bkd_derivatives(labels: str) -> None:
    a, b = torch.tensor([0, 3, 2]), torch.tensor([1, 3, 0])
    weight = torch.tensor([0.2, 1.0, 0.0, 2.8], dtype=torch.float64)
    target = torch.softmax(draw(3, 4, seed=5), dim=1) if labels == "soft" else a
    extra: dict[str, Any] = {}
    if labels == "mixup":
        extra = {"target_b": b, "lam": 0.3}
    if labels == "mixup_rows":
        extra = {"target_b": b, "lam": torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)}

    def loss(student: Tensor, temperature: Tensor) -> Tensor:
        teacher = draw(3, 4, seed=1)
        return bkd_loss(student, teacher, target, weight, temperature, 0.7, **extra)

    inputs = (draw(3, 4).requires_grad_(), TEMPERATURES["class"].clone().requires_grad_())
    assert gradcheck(loss, inputs, check_forward_ad=True)
    assert gradgradcheck(loss, inputs)


# --- what the formula says ------------------------------------------------------------------------

rows_and_classes = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(0, 10_000))
few_examples = settings(max_examples=40, deadline=None)


@few_examples
@given(rows_and_classes, st.floats(0.05, 100))
def test_kl_is_not_negative_and_zero_at_equality(
    size: tuple[int, int, int], temperature: float
) -> None:
    n, c, seed = size
    student, teacher = draw(n, c, seed=seed), draw(n, c, seed=seed + 1)
    loss = kd_loss(student, teacher, temperature, t2=False, reduction="none")
    assert (loss >= -1e-12).all()
    same = kd_loss(student, student.clone(), temperature, reduction="none")
    torch.testing.assert_close(same, torch.zeros_like(same))


@few_examples
@given(rows_and_classes, st.floats(-50, 50))
def test_shifting_a_row_changes_nothing(size: tuple[int, int, int], shift: float) -> None:
    n, c, seed = size
    student, teacher = draw(n, c, seed=seed), draw(n, c, seed=seed + 1)
    moved = kd_loss(student + shift, teacher - shift, 2.0, reduction="none")
    torch.testing.assert_close(moved, kd_loss(student, teacher, 2.0, reduction="none"))


@few_examples
@given(rows_and_classes, st.randoms(use_true_random=False))
def test_class_order_does_not_matter(size: tuple[int, int, int], random: Any) -> None:
    n, c, seed = size
    order = torch.tensor(random.sample(range(c), c))
    student, teacher = draw(n, c, seed=seed), draw(n, c, seed=seed + 1)
    temperature = draw(c, seed=seed + 2).abs() + 0.1
    torch.testing.assert_close(
        kd_loss(student[:, order], teacher[:, order], temperature[order]),
        kd_loss(student, teacher, temperature),
    )
    by_classes = kd_loss(student, teacher[:, order], temperature, classes=order)
    torch.testing.assert_close(by_classes, kd_loss(student, teacher, temperature))


@few_examples
@given(rows_and_classes)
def test_reductions_agree(size: tuple[int, int, int]) -> None:
    n, c, seed = size
    student, teacher, weight = draw(n, c, seed=seed), draw(n, c), draw(n, seed=seed + 1)
    rows = kd_loss(student, teacher, 2.0, sample_weight=weight, reduction="none")
    assert rows.shape == (n,)
    total = kd_loss(student, teacher, 2.0, sample_weight=weight, reduction="sum")
    mean = kd_loss(student, teacher, 2.0, sample_weight=weight, reduction="mean")
    torch.testing.assert_close(total, rows.sum())
    torch.testing.assert_close(mean * n, total)


def test_subset_is_the_gathered_student() -> None:
    student, teacher, temperature = draw(4, 6), draw(4, 3, seed=1), draw(6, seed=2).abs() + 0.2
    classes = torch.tensor([5, 1, 2])
    torch.testing.assert_close(
        kd_loss(student, teacher, temperature, classes=classes),
        kd_loss(student[:, classes], teacher, temperature[classes]),
    )


def test_temperature_factor() -> None:
    student, teacher = draw(3, 4), draw(3, 4, seed=1)
    for temperature in TEMPERATURES.values():
        plain = kd_loss(student, teacher, temperature, t2=False, reduction="none")
        squared = kd_loss(student, teacher, temperature, reduction="none")
        if not isinstance(temperature, Tensor) or temperature.numel() == 1:
            factor = torch.as_tensor(temperature, dtype=torch.float64).reshape(()) ** 2
        elif temperature.dim() == 2:
            factor = temperature[:, 0] ** 2
        else:
            factor = temperature.mean() ** 2
        torch.testing.assert_close(squared, factor * plain)
        number = kd_loss(student, teacher, temperature, t2=2.5, reduction="none")
        torch.testing.assert_close(number, 2.5 * plain)


def test_definition_matches_torch() -> None:
    student, teacher = draw(5, 7), draw(5, 7, seed=1)
    log_p, log_q = (student / 3).log_softmax(1), (teacher / 3).log_softmax(1)
    expected = 9 * torch_f.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    torch.testing.assert_close(kd_loss(student, teacher, 3.0), expected)


def test_soft_and_mixup_targets_agree_with_torch() -> None:
    student, teacher = draw(3, 4), draw(3, 4, seed=1)
    a, b, lam = torch.tensor([0, 3, 2]), torch.tensor([1, 3, 0]), 0.3
    one_hot = lam * torch_f.one_hot(a, 4).double() + (1 - lam) * torch_f.one_hot(b, 4).double()
    expected = torch_f.cross_entropy(student, one_hot) + kd_loss(student, teacher, 2.0)
    mixed = bkd_loss(student, teacher, a, target_b=b, lam=lam)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(bkd_loss(student, teacher, one_hot), expected)
    rows = bkd_loss(student, teacher, a, target_b=b, lam=torch.full((3,), lam).double())
    torch.testing.assert_close(rows, expected)
    scalar = bkd_loss(student, teacher, a, target_b=b, lam=torch.tensor(lam).double())
    torch.testing.assert_close(scalar, expected)


def test_alpha_zero_is_cross_entropy_whatever_the_teacher() -> None:
    student, target = draw(3, 4), torch.tensor([0, 3, 2])
    loss = bkd_loss(student, torch.full((3, 4), -INF).double(), target, alpha=0)
    torch.testing.assert_close(loss, torch_f.cross_entropy(student, target))


def test_scaling_the_class_weight_changes_nothing() -> None:
    student, teacher, target = draw(3, 4), draw(3, 4, seed=1), torch.tensor([0, 3, 2])
    weight = draw(4, seed=2).abs()
    torch.testing.assert_close(
        bkd_loss(student, teacher, target, 7 * weight),
        bkd_loss(student, teacher, target, weight),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    student = draw(3, 4, dtype=dtype).requires_grad_()
    teacher, target = draw(3, 4, seed=1, dtype=dtype), torch.tensor([0, 3, 2])
    weight = torch.tensor([0.5, 1.0, 1.0, 1.5], dtype=torch.float64)
    for loss in (kd_loss(student, teacher, 2.0), bkd_loss(student, teacher, target, weight)):
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert gradients(loss, student)[0].dtype == dtype


# --- the edges ------------------------------------------------------------------------------------


def edge_rows() -> tuple[Tensor, Tensor]:
    student, teacher = draw(5, 4), draw(5, 4, seed=1)
    student[0, 1] = teacher[0, 1] = -INF  # a class neither of them has
    teacher[1, 2] = -INF  # one the teacher excludes
    student[2, 0] = -INF  # one the student excludes and the teacher does not: +inf
    student[3] = -INF  # a row without a finite logit
    return student.requires_grad_(), teacher.requires_grad_()


@pytest.mark.parametrize("temperature", TEMPERATURES.values(), ids=TEMPERATURES.keys())
def test_infinite_logits(temperature: float | Tensor) -> None:
    if isinstance(temperature, Tensor) and temperature.dim() == 2:
        temperature = torch.tensor([[0.7], [1.3], [2.5], [1.0], [3.0]], dtype=torch.float64)
    student, teacher = edge_rows()
    loss = kd_loss(student, teacher, temperature, detach_teacher=False, reduction="none")
    assert loss[[0, 1, 4]].isfinite().all()
    assert loss[2] == INF
    assert loss[3].isnan()
    # Row 0 is the distillation over the classes that are left.
    left = torch.tensor([0, 2, 3])
    per_class = isinstance(temperature, Tensor) and temperature.dim() == 1 and len(temperature) > 1
    if not per_class:  # (the factor of a temperature a class is over all classes)
        rest = kd_loss(
            student[:1, left],
            teacher[:1, left],
            temperature[:1] if isinstance(temperature, Tensor) else temperature,
        )
        torch.testing.assert_close(loss[0], rest)

    of_student, of_teacher = gradients(loss, student, teacher)
    for grad in (of_student, of_teacher):
        assert grad[[0, 1, 2, 4]].isfinite().all()
        assert grad[3].isnan().all()
    assert of_student[0, 1] == 0
    assert of_student[2, 0] == 0
    assert of_teacher[0, 1] == 0
    assert of_teacher[1, 2] == 0
    assert (of_teacher[2] == 0).all()
    scale = temperature if not isinstance(temperature, Tensor) else temperature.expand(5, 4)[2]
    factor = temperature**2 if not isinstance(temperature, Tensor) else _factor_of_row(temperature)
    expected = (
        factor
        / scale
        * (torch.softmax(student[2] / scale, 0) - torch.softmax(teacher[2] / scale, 0))
    )
    expected = torch.where(student[2] == -INF, 0.0, expected)
    torch.testing.assert_close(of_student[2], expected)


def _factor_of_row(temperature: Tensor) -> Tensor:
    return temperature[2, 0] ** 2 if temperature.dim() == 2 else temperature.mean() ** 2


def test_a_teacher_without_a_finite_logit_is_nan_for_its_row_alone() -> None:
    student, teacher = draw(2, 3), draw(2, 3, seed=1)
    student[0, 1] = -INF
    teacher[0] = -INF
    student.requires_grad_()
    teacher.requires_grad_()
    loss = kd_loss(student, teacher, 2.0, detach_teacher=False, reduction="none")
    assert loss[0].isnan()
    assert loss[1].isfinite()
    for grad in gradients(loss, student, teacher):
        assert grad[0].isnan().all()
        assert grad[1].isfinite().all()


def test_infinite_logits_and_the_temperature_gradient() -> None:
    student, teacher = (x.detach()[:2] for x in edge_rows())
    temperature = TEMPERATURES["class"].clone().requires_grad_()
    loss = kd_loss(student, teacher, temperature)
    assert gradients(loss, temperature)[0].isfinite().all()


def test_bkd_infinite_logits() -> None:
    student, teacher = (x.detach() for x in edge_rows())
    student.requires_grad_()
    target = torch.tensor([1, 0, 1, 0, 0])  # row 0: the label's logit is -inf
    loss = bkd_loss(student, teacher, target, reduction="none")
    assert loss[0] == INF
    assert loss[2] == INF
    assert loss[3].isnan()
    assert loss[[1, 4]].isfinite().all()
    grad = gradients(loss, student)[0]
    assert grad[[0, 1, 2, 4]].isfinite().all()
    assert grad[3].isnan().all()
    assert grad[0, 1] == 0
    assert grad[2, 0] == 0


def test_zero_weights_drop_infinite_terms() -> None:
    student, teacher = draw(2, 3).requires_grad_(), draw(2, 3, seed=1)
    with torch.no_grad():
        student[:, 0] = -INF
    weight = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)  # the teacher's class 0 is gone
    soft = torch.tensor([[0.0, 0.5, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64)
    loss = bkd_loss(student, teacher, soft, weight)
    assert loss.isfinite()
    assert gradients(loss, student)[0].isfinite().all()
    mixed = bkd_loss(
        student, teacher, torch.tensor([0, 0]), weight, target_b=torch.tensor([1, 2]), lam=0.0
    )
    assert mixed.isfinite()
    assert gradients(mixed, student)[0].isfinite().all()


@pytest.mark.parametrize("temperature", [0.05, 1.0, 100.0])
@pytest.mark.parametrize("size", [1e4, 1e5])
def test_huge_logits(temperature: float, size: float) -> None:
    student = (size * draw(4, 6, dtype=torch.float32)).requires_grad_()
    teacher = (size * draw(4, 6, seed=1, dtype=torch.float32)).requires_grad_()
    loss = kd_loss(student, teacher, temperature, detach_teacher=False)
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in gradients(loss, student, teacher))


@pytest.mark.parametrize(("reduction", "expected"), [("mean", float("nan")), ("sum", 0.0)])
def test_zero_rows(reduction: Any, expected: float) -> None:
    student = torch.zeros(0, 3, requires_grad=True)
    target = torch.zeros(0, dtype=torch.int64)
    for loss in (
        kd_loss(student, student.detach(), reduction=reduction),
        bkd_loss(student, student.detach(), target, reduction=reduction),
    ):
        torch.testing.assert_close(loss, torch.tensor(expected), equal_nan=True)
        assert gradients(loss, student)[0].shape == (0, 3)
    assert kd_loss(student, student, reduction="none").shape == (0,)


def test_one_class() -> None:
    student = draw(3, 1).requires_grad_()
    loss = bkd_loss(student, draw(3, 1, seed=1), torch.zeros(3, dtype=torch.int64))
    assert loss == 0
    assert (gradients(loss, student)[0] == 0).all()


def test_inputs_are_not_written_to() -> None:
    inputs = [draw(3, 4), draw(3, 4, seed=1), draw(4, seed=2).abs()]
    copies = [x.clone() for x in inputs]
    bkd_loss(inputs[0], inputs[1], torch.tensor([0, 1, 2]), inputs[2], inputs[2] + 1)
    for now, before in zip(inputs, copies, strict=True):
        assert torch.equal(now, before)


def test_constants_get_no_gradient() -> None:
    student, teacher = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    weight = draw(4).abs().requires_grad_()
    loss = bkd_loss(student, teacher, torch.tensor([0, 1, 2]), weight)
    grads = torch.autograd.grad(loss, (student, teacher, weight), allow_unused=True)
    assert grads[0] is not None
    assert grads[1] is None
    assert grads[2] is None
    assert torch.autograd.grad(kd_loss(student, teacher), teacher, allow_unused=True)[0] is None


# --- transforms -----------------------------------------------------------------------------------


def test_vmap_and_func_grad() -> None:
    student, teacher = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    target, weight = torch.tensor([[0, 1, 2], [3, 3, 0]]), draw(4).abs()

    def loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        return bkd_loss(student, teacher, target, weight) + kd_loss(student, teacher, weight + 1)

    expected = torch.stack([loss(*x) for x in zip(student, teacher, target, strict=True)])
    torch.testing.assert_close(torch.vmap(loss)(student, teacher, target), expected)
    grads = torch.vmap(torch.func.grad(loss))(student, teacher, target)
    leaf = student.clone().requires_grad_()
    one_by_one = torch.stack([loss(*x) for x in zip(leaf, teacher, target, strict=True)])
    torch.testing.assert_close(grads, gradients(one_by_one, leaf)[0])


def test_traces_in_one_graph() -> None:
    classes = torch.tensor([2, 0])

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        part = kd_loss(student, teacher[:, :2], 2.0, classes=classes)
        return part + bkd_loss(student, teacher, target, temperature=3.0)

    student, teacher = draw(3, 4).requires_grad_(), draw(3, 4, seed=1)
    target = torch.tensor([0, 3, 2])
    traced = loss(student, teacher, target)
    eager = kd_loss(student, teacher[:, :2], 2.0, classes=classes)
    eager = eager + bkd_loss(student, teacher, target, temperature=3.0)
    torch.testing.assert_close(traced, eager)
    torch.testing.assert_close(gradients(traced, student)[0], gradients(eager, student)[0])


# --- errors ---------------------------------------------------------------------------------------

S, T_ = torch.zeros(3, 4), torch.zeros(3, 4)
Y = torch.tensor([0, 1, 2])
BAD_KD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "`kd_loss`: expected `student` to be a Tensor, got list", {"student": [[1.0]]}),
    (TypeError, "`student` to be float16, bfloat16", {"student": S.long()}),
    (ValueError, r"`student` to be \[N, C\] with at least one class", {"student": S[0]}),
    (ValueError, r"`teacher` to be \[N, C\] = \[3, 4\], got \[3, 3\]", {"teacher": T_[:, :3]}),
    (ValueError, "`teacher` to be on cpu", {"teacher": T_.to("meta")}),
    (ValueError, "`temperature` to be finite and > 0, got 0", {"temperature": 0.0}),
    (ValueError, "`temperature` to be finite and > 0, got nan", {"temperature": float("nan")}),
    (TypeError, "`temperature` to be a number, got str", {"temperature": "2"}),
    (TypeError, "`temperature` to be a number, got bool", {"temperature": True}),
    (ValueError, "`temperature` > 0, got -1", {"temperature": torch.tensor([1.0, -1, 1, 1])}),
    (TypeError, "`temperature` to be floating", {"temperature": torch.tensor([1, 2, 3, 4])}),
    (ValueError, r"\[C\] = \[4\] or \[N, 1\] = \[3, 1\]", {"temperature": torch.ones(3)}),
    (ValueError, r"got \[1, 4\]", {"temperature": torch.ones(1, 4)}),
    (ValueError, r"`sample_weight` to be \[N\] = \[3\]", {"sample_weight": torch.ones(4)}),
    (TypeError, "`sample_weight` to be a floating", {"sample_weight": torch.ones(3).long()}),
    (TypeError, "`t2` to be a bool or a number", {"t2": "yes"}),
    (ValueError, "`reduction` to be 'mean', 'sum' or 'none', got 'avg'", {"reduction": "avg"}),
    (
        ValueError,
        r"`teacher` to be \[N, S\] = \[3, 2\], got \[3, 4\]",
        {"classes": torch.tensor([0, 1])},
    ),
    (TypeError, "`classes` to be int64", {"classes": torch.tensor([0.0, 1.0])}),
    (ValueError, r"`classes` to be \[S\]", {"classes": torch.zeros(0, dtype=torch.int64)}),
    (
        IndexError,
        r"`classes` in 0\.\.3, got 4",
        {"classes": torch.tensor([0, 4]), "teacher": T_[:, :2]},
    ),
    (
        IndexError,
        r"`classes` in 0\.\.3, got -1",
        {"classes": torch.tensor([0, -1]), "teacher": T_[:, :2]},
    ),
    (
        ValueError,
        "`classes` to be distinct, got 1 twice",
        {"classes": torch.tensor([1, 1]), "teacher": T_[:, :2]},
    ),
]
BAD_BKD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, r"`bkd_loss`: expected `teacher` to be \[N, C\]", {"teacher": T_[:2]}),
    (TypeError, "`target` to be int64 class indices, got torch.int32", {"target": Y.int()}),
    (ValueError, r"`target` to be \[N\] = \[3\], got \[2\]", {"target": Y[:2]}),
    (ValueError, r"`target` to be probabilities \[N, C\]", {"target": torch.ones(3)}),
    (IndexError, r"`target` in 0\.\.3, got 4", {"target": Y + 2}),
    (IndexError, r"`target` in 0\.\.3, got -1", {"target": Y - 1}),
    (ValueError, "expected `lam` where `target_b` is given", {"target_b": Y}),
    (ValueError, "expected `target_b` where `lam` is given", {"lam": 0.5}),
    (ValueError, r"`lam` in 0\.\.1, got 1.5", {"target_b": Y, "lam": 1.5}),
    (
        ValueError,
        r"`lam` in 0\.\.1",
        {"target_b": Y, "lam": torch.tensor([0.5, -0.5, 1.0])},
    ),
    (TypeError, "`lam` to be a number", {"target_b": Y, "lam": "half"}),
    (IndexError, "`target_b` in", {"target_b": Y + 3, "lam": 0.5}),
    (
        ValueError,
        r"`target` to be int64 \[N\] where `target_b`",
        {"target": S, "target_b": Y, "lam": 0.5},
    ),
    (ValueError, r"`class_weight` to be \[C\] = \[4\]", {"class_weight": torch.ones(3)}),
    (ValueError, "`class_weight` >= 0, got -1", {"class_weight": torch.tensor([1.0, 1, 1, -1])}),
    (TypeError, "`alpha` to be a number", {"alpha": "1"}),
    (ValueError, "`temperature`", {"temperature": -2.0}),
    (ValueError, "`reduction`", {"reduction": "batchmean"}),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD_KD)
def test_kd_errors(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        kd_loss(**{"student": S, "teacher": T_, **change})


@pytest.mark.parametrize(("error", "message", "change"), BAD_BKD)
def test_bkd_errors(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        bkd_loss(**{"student": S, "teacher": T_, "target": Y, **change})
