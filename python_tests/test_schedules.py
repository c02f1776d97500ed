"""Schedules against the official codes and the papers' formulas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from golden_vectors import cases, load_case
from ltkernels import schedules

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
counts_lists = st.lists(st.integers(1, 100_000), min_size=1, max_size=50)


def test_official_class_weight() -> None:
    case = load_case("bkd", "class_weight_C10")
    for beta, name in ((case.params["beta"], "weight_beta0p9999"), (0.0, "weight_beta0")):
        weight = schedules.effective_number_weight(case["cls_num_list"], beta)
        torch.testing.assert_close(weight, case[name], **EXACT)


@pytest.mark.parametrize("case_id", cases("ride", "CrossEntropyLoss.forward"))
def test_official_ride_class_weight(case_id: str) -> None:
    case = load_case("ride", case_id)
    weight = schedules.effective_number_weight(case["cls_num_list"])
    torch.testing.assert_close(weight, case["per_cls_weights"], **EXACT)


@given(counts_lists, st.floats(0, 0.99999))
def test_class_weights_sum_to_the_classes_and_favour_the_rare(
    counts: list[int], beta: float
) -> None:
    for weight in (
        schedules.effective_number_weight(counts, beta),
        schedules.inverse_frequency_weight(counts),
    ):
        assert math.isclose(weight.sum(), len(counts), rel_tol=1e-9)
        order = np.argsort(counts, kind="stable")
        assert (weight[order].diff() <= 1e-9).all()


def test_effective_numbers_end_at_inverse_frequencies() -> None:
    counts = [100, 7, 3]
    near = schedules.effective_number_weight(counts, 1 - 1e-9)
    torch.testing.assert_close(near, schedules.inverse_frequency_weight(counts), rtol=1e-6, atol=0)


def test_official_margin() -> None:
    for method, case_id in [
        ("bkd", "ldam_C10_none_f64"),
        *(("ride", c) for c in cases("ride", "LDAM")),
    ]:
        case = load_case(method, case_id)
        margin = schedules.ldam_margin(case["cls_num_list"], case.params["max_m"])
        torch.testing.assert_close(margin, case["m_list"], **EXACT)


@given(counts_lists)
def test_the_rarest_class_has_the_largest_margin(counts: list[int]) -> None:
    margin = schedules.ldam_margin(counts, 0.3)
    assert math.isclose(margin[int(np.argmin(counts))], 0.3)
    assert margin.min() > 0


def test_official_and_paper_diversity_temperature() -> None:
    case = load_case("derived", "ride_T_eq3_C10_g0.02_eta1.0")
    arguments = (case["cls_num_list"], case.params["eta"], case.params["gamma"])
    official = schedules.diversity_temperature(*arguments)
    torch.testing.assert_close(official, case["T_code"], **EXACT)
    paper = schedules.diversity_temperature(*arguments, preset="paper")
    torch.testing.assert_close(paper, case["T"], **EXACT)


@given(counts_lists, st.floats(0.1, 10), st.floats(0, 1))
def test_diversity_temperature_is_positive_and_ends_at_its_base(
    counts: list[int], base: float, factor: float
) -> None:
    temperature = schedules.diversity_temperature(counts, base, factor)
    assert math.isclose(temperature.max(), base)
    assert temperature.min() > 0


def test_paper_diversity_temperature_that_is_not_positive_is_an_error() -> None:
    with pytest.raises(ValueError, match="take a smaller `reweight_factor`"):
        schedules.diversity_temperature([1000, 1, 1, 1], 1.0, 0.9, preset="paper")


def test_official_expert_weight() -> None:
    case = load_case("lfme", "expert_weight")
    weight = torch.stack(
        [
            schedules.expert_weight(student, expert, float(alpha))
            for student, expert, alpha in zip(
                case["acc_student"], case["acc_expert"], case["alpha"], strict=True
            )
        ]
    )
    torch.testing.assert_close(weight, case["weight"], **EXACT)


@given(st.floats(0.01, 1), st.floats(0, 0.95))
def test_expert_weight_is_continuous_and_falls_to_zero(expert: float, alpha: float) -> None:
    student = torch.linspace(0, 1, 401, dtype=torch.float64)
    weight = schedules.expert_weight(student, expert, alpha)
    assert weight.max() <= 1
    assert weight.min() >= 0
    assert (weight.diff() <= 1e-12).all()
    assert math.isclose(schedules.expert_weight(alpha * expert * (1 + 1e-12), expert, alpha), 1)
    assert schedules.expert_weight(expert, expert, alpha) == 0
    assert schedules.expert_weight(1.1 * expert, expert, alpha, clamp=False) < 0


def test_expert_weight_of_a_useless_expert() -> None:
    assert schedules.expert_weight(0.0, 0.0) == 1
    assert schedules.expert_weight(0.1, 0.0) == 0


@pytest.mark.parametrize("name", ["linear", "convex", "concave"])
def test_official_instance_schedule(name: Any) -> None:
    case = load_case("lfme", f"instance_weight_{name}_E90_f64")
    weight = torch.stack(
        [
            schedules.instance_schedule(
                case["init_weight"],
                int(epoch),
                case.params["total_epochs"] / 2,
                name,
                printed=True,
                clip=False,
            )
            for epoch in case["epoch"]
        ]
    )
    torch.testing.assert_close(weight, case["weight"], **EXACT)


def test_paper_instance_schedule() -> None:
    case = load_case("derived", "lfme_schedulers")
    epochs = case.params["E"]
    for column, name, printed in (
        ("linear", "linear", False),
        ("convex", "convex", False),
        ("concave", "concave", False),
        ("concave_printed", "concave", True),
    ):
        weight = torch.stack(
            [
                schedules.instance_schedule(case["v1"], int(e), epochs, name, printed=printed)
                for e in case["epoch"]
            ]
        )
        torch.testing.assert_close(weight, case[column], **EXACT)


def test_official_instance_start() -> None:
    case = load_case("lfme", "instance_init_weight_C10")
    subset_of_class = torch.zeros(10, dtype=torch.int64)  # many, medium, low
    subset_of_class[case.params["median"]] = 1
    subset_of_class[case.params["low"]] = 2
    start = schedules.instance_start(
        case["confidence"],
        subset_of_class[case["labels"]],
        [230, 53, 12],
        labels=case["labels"],
        preset="official",
    )
    torch.testing.assert_close(start, case["weight"], **EXACT)


def test_instance_weight_grows_from_the_paper_start_to_one() -> None:
    confidence = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    subset, mean_count = torch.tensor([0, 1, 2]), [100.0, 50.0, 10.0]
    for schedule in ("linear", "convex", "concave"):
        first = schedules.instance_weight(confidence, subset, mean_count, 0, 90, schedule)
        torch.testing.assert_close(first, confidence * torch.tensor([0.1, 0.2, 1.0]).double())
        last = schedules.instance_weight(confidence, subset, mean_count, 90, 90, schedule)
        torch.testing.assert_close(last, torch.ones(3).double())
    official = schedules.instance_weight(
        confidence, subset, mean_count, 45, 90, labels=torch.tensor([0, 1, 1]), preset="official"
    )
    torch.testing.assert_close(official, torch.ones(3).double())


def test_official_instance_start_of_a_class_with_one_confidence() -> None:
    start = schedules.instance_start(
        torch.tensor([0.4, 0.4]),
        torch.tensor([0, 0]),
        [20, 10],
        labels=torch.tensor([0, 0]),
        preset="official",
    )
    assert (start == 1).all()


@pytest.mark.parametrize("counts", [[1, 0], [3, -1], [], [[1, 2]], [1.0, float("nan")]])
@pytest.mark.parametrize(
    "schedule",
    ["effective_number_weight", "inverse_frequency_weight", "ldam_margin", "log_prior"],
)
def test_bad_counts(schedule: str, counts: Any) -> None:
    with pytest.raises(ValueError, match=f"`{schedule}`: expected `counts`"):
        getattr(schedules, schedule)(counts)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: schedules.effective_number_weight([1], 1.0), ValueError, r"`beta` in \[0, 1\)"),
        (lambda: schedules.ldam_margin([1], 0.0), ValueError, "`max_m`"),
        (lambda: schedules.ldam_margin("ab"), TypeError, "sequence or tensor of numbers"),  # type: ignore[arg-type]
        (lambda: schedules.expert_weight(0.1, 0.2, 1.0), ValueError, "`alpha`"),
        (lambda: schedules.expert_weight(-0.1, 0.2), ValueError, "`student_acc`"),
        (lambda: schedules.diversity_temperature([1], 1.0, 2.0), ValueError, "`reweight_factor`"),
        (
            lambda: schedules.diversity_temperature([1], preset="both"),  # type: ignore[arg-type]
            ValueError,
            "`preset`",
        ),
        (
            lambda: schedules.instance_schedule(torch.ones(1), 1, 9, "cubic"),  # type: ignore[arg-type]
            ValueError,
            "`schedule`",
        ),
        (lambda: schedules.instance_schedule(torch.ones(1), -1, 9), ValueError, "`epoch`"),
        (lambda: schedules.instance_schedule(torch.ones(1), 1, 0), ValueError, "`epochs`"),
        (
            lambda: schedules.instance_start(torch.ones(2), torch.tensor([0, 2]), [3, 4]),
            IndexError,
            r"`subset` in 0\.\.1, got 2",
        ),
        (
            lambda: schedules.instance_start(2 * torch.ones(1), torch.tensor([0]), [3]),
            ValueError,
            "`confidence` to be probabilities",
        ),
        (
            lambda: schedules.instance_start(
                torch.ones(1), torch.tensor([0]), [3], preset="official"
            ),
            ValueError,
            "`labels`",
        ),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
