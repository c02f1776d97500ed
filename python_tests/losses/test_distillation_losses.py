"""KDLoss and BKDLoss: the official vectors, both call forms, the schedule, the state."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as torch_f

from golden_vectors import cases, load_case
from ltkernels import functional
from ltkernels.losses import BKDLoss, KDLoss
from ltkernels.schedules import effective_number_weight, inverse_frequency_weight

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
COUNTS = [500, 100, 20, 5]


def batch(n: int = 6, c: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return student, teacher, torch.randint(c, (n,), generator=generator)


def official_loss(case_id: str) -> BKDLoss | KDLoss:
    """The module as the official training code builds it: (cls_num_list, T, weight)."""
    case = load_case("bkd", case_id)
    weight = case.get("weight")
    loss = BKDLoss if case_id.startswith("bkd") else KDLoss
    return loss([7] * case["student_logits"].shape[1], case.params["T"], weight)


@pytest.mark.parametrize("case_id", cases("bkd", "KDLoss.forward"))
def test_official_call_form(case_id: str) -> None:
    case = load_case("bkd", case_id)
    student = case.leaf("student_logits")
    loss, kd = official_loss(case_id)(
        student, case["teacher_logits"], case["target"], case.params["alpha"]
    )
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    torch.testing.assert_close(kd, case["kd_per_class"], **EXACT)
    loss.backward()
    torch.testing.assert_close(student.grad, case["grad_student_logits"], **EXACT)


@pytest.mark.parametrize("case_id", cases("bkd", "KDLoss.forward"))
def test_paper_call_form(case_id: str) -> None:
    case = load_case("bkd", case_id)
    loss = official_loss(case_id)(case["student_logits"], case["teacher_logits"], case["target"])
    torch.testing.assert_close(loss, case["loss"], **EXACT)


def test_alpha_of_the_call_replaces_that_of_the_module() -> None:
    student, teacher, target = batch()
    loss = BKDLoss(COUNTS, alpha=3.0)
    torch.testing.assert_close(
        loss(student, teacher, target), loss(student, teacher, target, 3.0)[0]
    )
    validation, kd = loss(student, teacher, target, 0.0)
    torch.testing.assert_close(validation, torch_f.cross_entropy(student, target))
    assert kd.shape == (4,)
    assert not kd.requires_grad


def test_bkd_takes_its_weights_from_the_counts() -> None:
    student, teacher, target = batch()
    for weight, expected in (
        ("effective_number", effective_number_weight(COUNTS, 0.99)),
        ("inverse_frequency", inverse_frequency_weight(COUNTS)),
        ([1.0, 2.0, 3.0, 4.0], torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)),
        (None, None),
    ):
        loss = BKDLoss(COUNTS, 3.0, weight, beta=0.99)  # type: ignore[arg-type]
        torch.testing.assert_close(
            loss(student, teacher, target),
            functional.bkd_loss(student, teacher, target, expected, 3.0),
        )


def test_bkd_mixup_and_soft_targets() -> None:
    student, teacher, target = batch()
    loss, other = BKDLoss(COUNTS), target.flip(0)
    mixed = loss(student, teacher, target, target_b=other, lam=0.3)
    one_hot = 0.3 * torch_f.one_hot(target, 4) + 0.7 * torch_f.one_hot(other, 4)
    torch.testing.assert_close(mixed, loss(student, teacher, one_hot.double()))
    torch.testing.assert_close(
        mixed, 0.3 * loss(student, teacher, target) + 0.7 * loss(student, teacher, other)
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_kd_weighs_the_cross_entropy_where_asked(reduction: Any) -> None:
    student, teacher, target = batch()
    weight = effective_number_weight(COUNTS)
    kd = functional.kd_loss(student, teacher, 2.0, reduction=reduction)
    plain = torch_f.cross_entropy(student, target, reduction=reduction) + kd
    weighted = torch_f.cross_entropy(student, target, weight, reduction=reduction) + kd

    def loss(**options: Any) -> Tensor:
        module = KDLoss(COUNTS, reduction=reduction, **options)
        return module(student, teacher, target)

    torch.testing.assert_close(loss(), plain)
    torch.testing.assert_close(loss(weight="effective_number"), weighted)
    torch.testing.assert_close(loss(weight=weight), weighted)
    torch.testing.assert_close(loss(weight=weight, preset="paper"), plain)
    torch.testing.assert_close(loss(weight=weight, preset="paper", ce_weight=True), weighted)
    torch.testing.assert_close(loss(weight=weight, ce_weight=False), plain)


def test_weighted_kd_with_mixup_and_alpha() -> None:
    student, teacher, target = batch()
    loss, other = KDLoss(COUNTS, weight="effective_number"), target.flip(0)
    mixed = loss(student, teacher, target, target_b=other, lam=0.3)
    torch.testing.assert_close(
        mixed, 0.3 * loss(student, teacher, target) + 0.7 * loss(student, teacher, other)
    )
    validation, _ = loss(student, teacher, target, 0)
    weight = effective_number_weight(COUNTS)
    torch.testing.assert_close(validation, torch_f.cross_entropy(student, target, weight))


@pytest.mark.parametrize("epoch", [0, 159, 160, 199, 320, 1000])
def test_deferred_reweighting(epoch: int) -> None:
    student, teacher, target = batch()
    loss = BKDLoss(COUNTS, drw_epoch=160)
    before = functional.bkd_loss(student, teacher, target)
    after = functional.bkd_loss(student, teacher, target, effective_number_weight(COUNTS))
    torch.testing.assert_close(loss(student, teacher, target), before)  # never told an epoch
    loss.on_epoch_start(epoch)
    torch.testing.assert_close(loss(student, teacher, target), after if epoch >= 160 else before)
    loss.on_epoch_start(0)
    torch.testing.assert_close(loss(student, teacher, target), before)


def test_state_travels() -> None:
    student, teacher, target = batch()
    loss = BKDLoss(COUNTS, drw_epoch=10)
    fresh = BKDLoss([9, 9, 9, 9], drw_epoch=10)
    loss.on_epoch_start(10)
    expected = loss(student, teacher, target)
    assert set(loss.state_dict()) == {"class_weight", "full_class_weight"}
    fresh.load_state_dict(loss.state_dict())
    for other in (fresh, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(other(student, teacher, target), expected, rtol=0, atol=0)


def test_class_constants_keep_their_precision() -> None:
    student, teacher, target = batch()
    loss = BKDLoss(COUNTS)
    expected = loss(student, teacher, target)
    assert loss.half().class_weight.dtype == torch.float64
    assert loss.to(torch.bfloat16).to("cpu").class_weight.dtype == torch.float64
    torch.testing.assert_close(loss(student, teacher, target), expected, rtol=0, atol=0)


def test_official_keyword() -> None:
    weight = BKDLoss(cls_num_list=COUNTS, T=4.0).class_weight
    torch.testing.assert_close(weight, effective_number_weight(COUNTS))
    with pytest.raises(TypeError, match="got both"):
        BKDLoss(COUNTS, cls_num_list=COUNTS)


def test_repr_says_what_it_is() -> None:
    text = repr(BKDLoss(COUNTS, drw_epoch=160))
    for part in ("BKDLoss", "T=2", "alpha=1", "class_weight=[4]", "drw_epoch=160", "'mean'"):
        assert part in text


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BKDLoss(), TypeError, "`BKDLoss`: expected `class_counts`"),
        (lambda: BKDLoss([3, 0]), ValueError, "`class_counts` to be finite and > 0"),
        (lambda: BKDLoss(COUNTS, 0.0), ValueError, "`BKDLoss`: expected `T`"),
        (lambda: BKDLoss(COUNTS, weight="rare"), ValueError, "'effective_number'"),  # type: ignore[arg-type]
        (lambda: BKDLoss(COUNTS, weight=[1.0]), ValueError, r"`weight` to be \[C\] = \[4\]"),
        (lambda: BKDLoss(COUNTS, weight=[1.0, -1, 1, 1]), ValueError, "`weight` >= 0"),
        (lambda: BKDLoss(COUNTS, weight=None, drw_epoch=3), ValueError, "expected `weight` where"),
        (lambda: BKDLoss(COUNTS, drw_epoch=-1), ValueError, "`drw_epoch` >= 0"),
        (lambda: BKDLoss(COUNTS, reduction="avg"), ValueError, "`reduction`"),  # type: ignore[arg-type]
        (lambda: KDLoss(preset="both"), ValueError, "`preset`"),  # type: ignore[arg-type]
        (lambda: BKDLoss(COUNTS).on_epoch_start(-1), ValueError, "`epoch` >= 0"),
        (lambda: BKDLoss(COUNTS).on_epoch_start(1.0), TypeError, "`epoch` to be an int"),  # type: ignore[arg-type]
        (
            lambda: KDLoss(COUNTS, weight="effective_number")(*batch(), target_b=batch()[2]),
            ValueError,
            "expected `lam`",
        ),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
