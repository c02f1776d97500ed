"""Metrics against the official codes and LFME's Table 1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from golden_vectors import load_case
from ltkernels import metrics

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
counts_lists = st.lists(st.integers(1, 100_000), min_size=1, max_size=50)


# --- long-tailedness ------------------------------------------------------------------------------


def long_tailedness(counts: Tensor) -> Tensor:
    values = (
        metrics.imbalance_ratio(counts),
        metrics.imbalance_divergence(counts),
        metrics.imbalance_absolute_deviation(counts),
        metrics.gini_coefficient(counts),
    )
    return torch.tensor(values, dtype=torch.float64)


def test_lfme_table_1() -> None:
    """All 16 figures that LFME prints for ImageNet-LT and its three groups."""
    case = load_case("lfme", "longtailness_imagenet_lt")
    counts = case["cls_num_list"]
    group = metrics.shot_groups(counts, "liu")
    rows = torch.stack(
        [long_tailedness(counts), *(long_tailedness(counts[group == g]) for g in range(3))]
    )
    torch.testing.assert_close(rows, case["table1_recomputed"], **EXACT)
    printed = case["table1_printed"]
    assert torch.equal((10 * rows[:, 0]).round() / 10, printed[:, 0])
    assert torch.equal((1000 * rows[:, 1:]).round() / 1000, printed[:, 1:])


def test_cifar10_long_tailedness() -> None:
    case = load_case("lfme", "longtailness_cifar10_if100")
    torch.testing.assert_close(long_tailedness(case["cls_num_list"]), case["metrics"][0], **EXACT)


@given(counts_lists, st.integers(1, 9))
def test_long_tailedness_ignores_scale_and_order(counts: list[int], factor: int) -> None:
    base = long_tailedness(torch.tensor(counts))
    other = long_tailedness(factor * torch.tensor(sorted(counts)))
    torch.testing.assert_close(base, other, rtol=1e-9, atol=1e-9)
    assert base[0] >= 1
    assert (base[1:] >= -1e-9).all()
    assert base[2] < 2
    assert base[3] < 1


@given(st.integers(1, 30), st.integers(1, 1000))
def test_a_balanced_set_has_no_tail(classes: int, count: int) -> None:
    values = long_tailedness(torch.full((classes,), count))
    torch.testing.assert_close(
        values, torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_divergence_base() -> None:
    counts = [9, 3, 1]
    assert math.isclose(
        metrics.imbalance_divergence(counts, base=math.e),
        metrics.imbalance_divergence(counts) * math.log(2),
    )


def test_counts_may_be_any_sequence() -> None:
    for counts in ([9, 3], (9, 3), np.array([9, 3]), torch.tensor([9, 3]), [9.0, 3.0]):
        assert metrics.imbalance_ratio(counts) == 3


# --- many, medium, few ----------------------------------------------------------------------------


def test_official_shot_accuracy() -> None:
    case = load_case("metrics", "shot_acc_unequal_test")
    arguments = (case["preds"], case["labels"], case["train_counts"])
    for rule, name in (("kang", "cb"), ("liu", "oltr"), ("liu", "lfme")):
        result = metrics.shot_accuracy(*arguments, rule=rule)
        expected = case[f"{name}_many_med_few"]
        assert result.rule == rule
        for value, official in zip((result.many, result.medium, result.few), expected, strict=True):
            assert value == pytest.approx(float(official), rel=1e-9)
        assert result.overall == pytest.approx(float(case["overall"]), rel=1e-9)
    ncl = metrics.shot_accuracy(*arguments, rule="liu", average="sample")
    printed = [round(100 * v, 2) for v in (ncl.many, ncl.medium, ncl.few, ncl.overall)]  # type: ignore[operator]
    assert printed == case["ncl_many_med_few_all_printed"].tolist()


def exponential_counts(classes: int, largest: int, imbalance: float) -> list[int]:
    return [int(largest * imbalance ** (-i / (classes - 1))) for i in range(classes)]


def test_group_sizes_under_every_rule() -> None:
    case = load_case("metrics", "split_sizes")
    imagenet = load_case("lfme", "longtailness_imagenet_lt")["cls_num_list"]
    for name, per_rule in zip(case.params["datasets"], case["sizes"], strict=True):
        if name == "places_lt":
            continue  # its class counts are not among the vectors
        if name == "imagenet_lt":
            counts: Any = imagenet
        else:
            classes, imbalance = (int(part.strip("cifar")) for part in name.split("_if"))
            counts = exponential_counts(classes, 50_000 // classes, imbalance)
        for rule, expected in zip("ABCD", per_rule, strict=True):
            group = metrics.shot_groups(counts, rule)
            assert torch.bincount(group, minlength=3).tolist() == expected.tolist(), (name, rule)


def test_letters_name_the_rules() -> None:
    counts = [101, 100, 21, 20, 19]
    for letter, name in metrics.SHOT_RULE_LETTERS.items():
        assert torch.equal(metrics.shot_groups(counts, letter), metrics.shot_groups(counts, name))
    assert metrics.shot_groups(counts, "kang").tolist() == [0, 1, 1, 1, 2]
    assert metrics.shot_groups(counts, "liu").tolist() == [0, 0, 1, 2, 2]
    assert metrics.shot_groups(counts, "sharma").tolist() == [0, 0, 1, 1, 2]
    assert metrics.shot_groups(counts, "wang").tolist() == [0, 1, 1, 2, 2]


def test_empty_groups_are_none() -> None:
    result = metrics.shot_accuracy(torch.tensor([0, 1]), torch.tensor([0, 0]), [500, 5])
    assert (result.many, result.medium, result.few, result.overall) == (0.5, None, None, 0.5)
    assert result.sizes == {"many": 1, "medium": 0, "few": 1}
    nothing = torch.zeros(0, dtype=torch.int64)
    assert metrics.shot_accuracy(nothing, nothing, [500, 5]).overall is None


def test_class_accuracy() -> None:
    target = torch.tensor([0, 0, 1, 3])
    accuracy = metrics.class_accuracy(torch.tensor([0, 1, 1, 0]), target, 4)
    expected = torch.tensor([0.5, 1, float("nan"), 0], dtype=torch.float64)
    torch.testing.assert_close(accuracy, expected, equal_nan=True)


# --- calibration ----------------------------------------------------------------------------------


def test_official_calibration() -> None:
    case = load_case("metrics", "ece_edges_10")
    confidence, pred = case["confidences"], case["pred_labels"]
    probs = torch.zeros(len(pred), 4, dtype=torch.float64)
    probs[torch.arange(len(pred)), pred] = confidence
    bins = metrics.reliability(probs, case["true_labels"], case.params["num_bins"])
    assert torch.equal(bins.count, case["bin_counts"])
    torch.testing.assert_close(bins.accuracy, case["bin_acc"], **EXACT)
    torch.testing.assert_close(bins.confidence, case["bin_conf"], **EXACT)
    assert bins.expected_calibration_error == pytest.approx(float(case["ece"]), rel=1e-9)
    assert bins.maximum_calibration_error == pytest.approx(float(case["mce"]), rel=1e-9)
    ece = metrics.expected_calibration_error(probs, case["true_labels"], bins=10)
    assert ece == bins.expected_calibration_error


def test_calibration_of_sure_predictions() -> None:
    probs = torch.eye(3)[[0, 1, 2, 2]]
    probs[0, 0] += 1e-6  # a softmax may round above 1
    assert metrics.expected_calibration_error(probs, torch.tensor([0, 1, 2, 2])) < 1e-12
    assert metrics.expected_calibration_error(probs, torch.tensor([1, 1, 2, 2])) == 0.25


@given(st.integers(1, 40), st.integers(1, 20), st.integers(0, 1000))
def test_calibration_bounds(n: int, bins: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(n, 5, generator=generator).softmax(dim=1)
    target = torch.randint(5, (n,), generator=generator)
    diagram = metrics.reliability(probs, target, bins)
    assert diagram.count.sum() == n
    assert 0 <= diagram.expected_calibration_error <= diagram.maximum_calibration_error <= 1
    filled = diagram.count > 0
    assert (diagram.confidence[filled] > diagram.edges[:-1][filled]).all()
    assert (diagram.confidence[filled] <= diagram.edges[1:][filled] + 1e-12).all()


# --- bias, variance, distance ---------------------------------------------------------------------


def test_bias_and_variance() -> None:
    case = load_case("derived", "bias_variance_domingos")
    result = metrics.bias_variance(case["preds"], case["labels"])
    assert torch.equal(result.main_prediction, case["main_prediction"])
    torch.testing.assert_close(result.bias, case["bias"].double(), **EXACT)
    torch.testing.assert_close(result.variance, case["variance"], **EXACT)
    for values, name in ((result.bias, "bias"), (result.variance, "variance")):
        mean = torch.stack([values[case["labels"] == c].mean() for c in range(10)])
        torch.testing.assert_close(mean, case[f"{name}_per_class"], **EXACT)
        torch.testing.assert_close(values.mean(), case[f"mean_{name}"], **EXACT)


def test_a_tie_goes_to_the_smallest_class() -> None:
    result = metrics.bias_variance(torch.tensor([[3], [1], [3], [1]]), torch.tensor([1]))
    assert result.main_prediction.item() == 1
    assert result.bias.item() == 0
    assert result.variance.item() == 0.5


def test_feature_distance() -> None:
    case = load_case("derived", "ecl_feature_distance_eq12_B4_C10")
    distance = metrics.feature_distance(case["features"], case["labels"], 10)
    torch.testing.assert_close(distance, case["distance"], equal_nan=True, **EXACT)


def test_feature_distance_pairs() -> None:
    features = torch.tensor([0.0, 1.0, 5.0]).reshape(3, 1, 1).expand(3, 2, 1)
    distance = metrics.feature_distance(features, torch.tensor([0, 0]), 1)
    assert distance[:, 0].tolist() == [1, 5, 4]


# --- errors ---------------------------------------------------------------------------------------

P, Y = torch.full((2, 3), 1 / 3), torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.imbalance_ratio([1, 0]), ValueError, "`imbalance_ratio`: expected"),
        (lambda: metrics.imbalance_divergence([1], base=1), ValueError, "`base` > 1"),
        (
            lambda: metrics.shot_accuracy(Y, Y, [9, 9, 9], rule="E"),  # type: ignore[arg-type]
            ValueError,
            "`rule`",
        ),
        (
            lambda: metrics.shot_accuracy(Y, Y, [9, 9, 9], average="none"),  # type: ignore[arg-type]
            ValueError,
            "`average`",
        ),
        (lambda: metrics.shot_accuracy(Y, Y, [9, 9]), IndexError, r"`target` in 0\.\.1, got 2"),
        (lambda: metrics.shot_accuracy(P, Y, [9, 9, 9]), TypeError, "`pred` to be int64"),
        (lambda: metrics.shot_accuracy(Y[:1], Y, [9] * 3), ValueError, r"`pred` to be \[N\]"),
        (lambda: metrics.reliability(P, Y, bins=0), ValueError, "`bins`"),
        (lambda: metrics.reliability(30 * P, Y), ValueError, "not logits"),
        (lambda: metrics.reliability(P, Y + 1), IndexError, "`target`"),
        (lambda: metrics.bias_variance(Y, Y), ValueError, r"`predictions` to be \[M, N\]"),
        (lambda: metrics.bias_variance(P, Y), TypeError, "`predictions` to be int64"),
        (lambda: metrics.feature_distance(P, Y, 3), ValueError, r"\[K, N, D\] with K >= 2"),
        (
            lambda: metrics.feature_distance(torch.zeros(2, 3, 4), Y, 3),
            ValueError,
            r"`target` to be \[N\] = \[3\]",
        ),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
