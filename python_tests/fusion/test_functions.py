"""kl_min, soft_vote, the oracle, the reject correction: against slow definitions and references."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusion_definitions as definitions
from fusion_cases import experts
from golden_vectors import load_case
from ltkernels.fusion import (
    balanced_weight,
    correct_reject,
    kl_min,
    oracle,
    reject_correction,
    soft_vote,
)
from ltkernels.fusion.kl import subset_masses

FUSION = load_case("derived", "cbe_fusion_C10")


def golden_experts():
    """The reference's experts: many, medium, few by rule C."""
    counts = FUSION["cls_num_list"]
    masks = (counts >= 100, (counts >= 20) & (counts < 100), counts < 20)
    logits = [FUSION[f"logits_{name}"] for name in ("many", "medium", "few")]
    return logits, [mask.nonzero().flatten() for mask in masks]


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


# --- references -----------------------------------------------------------------------------------


def test_kl_min_is_the_reference():
    logits, classes = golden_experts()
    q = kl_min(logits, classes)
    close(q, FUSION["kl_min"], 1e-12)
    masses = torch.stack([q[:, own].sum(1) for own in classes], 1)
    close(masses, FUSION["subset_mass"], 1e-12)


def test_soft_vote_is_the_reference():
    logits, classes = golden_experts()
    close(soft_vote(logits, classes), FUSION["soft_voting_reject"], 1e-12)
    close(soft_vote(logits, classes, padding="zeros"), FUSION["soft_voting_pad"], 1e-12)


def test_the_correction_of_the_released_code_is_half():
    case = load_case("cbe", "reject_correction")
    for ratio, added in zip(case["open_ratio"], case["added_to_reject_logit"], strict=True):
        assert reject_correction("half", int(ratio)) == pytest.approx(float(added), abs=1e-12)


# --- slow definitions -----------------------------------------------------------------------------


@settings(max_examples=60)
@given(experts(overlapping=False))
def test_kl_min_of_disjoint_experts_is_the_fixed_point(case):
    logits, classes, num_classes = case
    q = kl_min(logits, classes, num_classes=num_classes)
    for i, row in enumerate(q):
        slow = definitions.kl_min([z[i] for z in logits], classes, num_classes, steps=3000)
        # The fixed point creeps where mass leaves a subset; the objective is what is compared.
        parts = [z[i] for z in logits]
        own, reference = (definitions.kl_objective(x, parts, classes) for x in (row, slow))
        assert own <= reference + 1e-8 * (1 + abs(reference))
        assert float(row.sum()) == pytest.approx(1, abs=1e-12)
        assert float(row.min()) >= 0


@settings(max_examples=60)
@given(experts(overlapping=True))
def test_kl_min_of_overlapping_experts_is_the_fixed_point(case):
    logits, classes, num_classes = case
    q = kl_min(logits, classes, num_classes=num_classes)
    for i, row in enumerate(q):
        parts = [z[i] for z in logits]
        slow = definitions.kl_min(parts, classes, num_classes, steps=1000)
        own, reference = (definitions.kl_objective(x, parts, classes) for x in (row, slow))
        assert own <= reference + 1e-8 * (1 + abs(reference))
        assert float(row.sum()) == pytest.approx(1, abs=1e-12)


@given(experts())
def test_soft_vote_is_the_mean_of_posteriors(case):
    logits, classes, num_classes = case
    q = soft_vote(logits, classes, num_classes=num_classes)
    for i, row in enumerate(q):
        slow = definitions.soft_vote([z[i] for z in logits], classes, num_classes)
        close(row, slow, 1e-12)


@given(experts())
def test_float32_is_near_float64(case):
    logits, classes, num_classes = case
    for function in (kl_min, soft_vote):
        fine = function(logits, classes, num_classes=num_classes)
        coarse = function([z.float() for z in logits], classes, num_classes=num_classes)
        assert coarse.dtype == torch.float32
        # A logit of 100 has an error of 4e-6, and the masses move with it.
        close(coarse, fine, 2e-4)


@given(experts())
def test_the_oracle_asks_an_expert_that_knows(case):
    logits, classes, num_classes = case
    rows = len(logits[0])
    target = torch.arange(rows) % num_classes
    found = oracle(logits, classes, target, num_classes=num_classes)
    for i, y in enumerate(target.tolist()):
        guesses = [
            own[int(z[i, : len(own)].argmax())]
            for z, own in zip(logits, classes, strict=True)
            if y in own
        ]
        if not guesses:
            assert found[i] == -1
        else:
            assert found[i] == (y if y in guesses else guesses[0])


# --- properties -----------------------------------------------------------------------------------


def test_experts_that_reject_everything_share_the_mass():
    logits = [torch.tensor([[0.0, 1.0, 900.0]]), torch.tensor([[0.0, 900.0]])]
    for dtype in (torch.float32, torch.float64):
        q = kl_min([z.to(dtype) for z in logits], [[0, 2], [1]])
        inside = 0.5 * torch.softmax(torch.tensor([0.0, 1.0]), 0)
        close(q, torch.tensor([[inside[0], 0.5, inside[1]]]), 1e-6)


@settings(max_examples=200)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.booleans())
def test_the_masses_satisfy_their_condition(accepted, unknown):
    s = torch.tensor(accepted, dtype=torch.float64)[:, None]
    r = 1 - s
    a, rest = subset_masses(s, r, unknown)
    assert float(a.sum() + rest) == pytest.approx(1, abs=1e-12)
    assert float(a.min()) >= 0
    if len(s) == 1:
        return
    # s / a - r / (1 - a) is one number lam, 0 where mass is left over, and not more at a = 0.
    inner = (a > 1e-9) & (a < 1 - 1e-9)
    slopes = (s / a - r / (1 - a))[inner]
    if len(slopes):
        close(slopes, slopes[0].expand_as(slopes), 1e-5)
    if unknown and float(rest) > 1e-9 and len(slopes):
        close(slopes, torch.zeros_like(slopes), 1e-5)


def test_an_expert_whose_classes_are_impossible_says_nothing_about_them():
    minus = -torch.inf
    logits = [torch.tensor([[minus, minus, 0.0]]), torch.tensor([[2.0, 1.0]])]
    # With a of the mass on class 2: (1 + s) log a + r log(1 - a), s + r = 1.
    a = (1 + float(torch.tensor(1.0).sigmoid())) / 2
    close(kl_min(logits, [[0, 1], [2]]), torch.tensor([[(1 - a) / 2, (1 - a) / 2, a]]), 1e-6)
    both = [logits[0], torch.tensor([[minus, 0.0]])]
    close(kl_min(both, [[0, 1], [2]]), torch.tensor([[0.25, 0.25, 0.5]]), 1e-6)


def test_a_row_without_a_finite_logit_is_nan_alone():
    z = torch.tensor([[0.0, 1.0], [-torch.inf, -torch.inf]])
    for function in (kl_min, soft_vote):
        q = function([z, torch.zeros(2, 2)], [[0], [1]])
        assert q[0].isfinite().all()
        assert q[1].isnan().any()


def test_what_nobody_knows_gets_what_all_reject():
    accept = [torch.tensor([[9.0, 0.0]]), torch.tensor([[-9.0, 0.0]])]
    close(kl_min(accept, [[0], [1]], num_classes=4)[:, 2:], torch.zeros(1, 2), 1e-3)
    reject = [torch.tensor([[-9.0, 0.0]])] * 2
    close(kl_min(reject, [[0], [1]], num_classes=4)[:, 2:], torch.full((1, 2), 0.5), 1e-3)


def test_models_of_all_classes_are_averaged():
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, 5, generator=generator) for _ in range(3)]
    mean = torch.stack([z.softmax(1) for z in logits]).mean(0)
    everything = [range(5)] * 3
    close(kl_min(logits, everything), mean, 1e-6)
    close(soft_vote(logits, everything), mean, 1e-6)


def test_order_of_columns_and_strides_do_not_matter():
    logits, classes = golden_experts()
    flipped = [torch.cat([z[:, :-1].flip(1), z[:, -1:]], 1).t().contiguous().t() for z in logits]
    for function in (kl_min, soft_vote):
        close(function(flipped, [c.flip(0) for c in classes]), function(logits, classes), 1e-12)


def test_zero_samples():
    for function in (kl_min, soft_vote):
        assert function([torch.zeros(0, 3), torch.zeros(0, 2)], [[0, 1], [2]]).shape == (0, 3)
        assert function([torch.zeros(0, 2), torch.zeros(0, 2)], [[0, 1], [1, 0]]).shape == (0, 2)


def test_inputs_are_not_written():
    logits, classes = golden_experts()
    before = [z.clone() for z in logits]
    kl_min(logits, classes)
    soft_vote(logits, classes)
    soft_vote(logits, classes, padding="zeros")
    assert all(torch.equal(a, b) for a, b in zip(before, logits, strict=True))


def test_the_corrections():
    assert reject_correction("ratio", 16) == pytest.approx(math.log(16))
    assert reject_correction("none", 16) == 0
    assert reject_correction(1.5, 16) == 1.5
    # log(r (C - S) / S), ImageNet-LT's many-shot expert
    prior = reject_correction("test_prior", 16, known=391, num_classes=1000)
    assert prior == pytest.approx(math.log(16 * 609 / 391))
    z = torch.zeros(2, 3)
    (moved,) = correct_reject([z], [2.0])
    assert moved.tolist() == [[0, 0, 2]] * 2
    assert not z.any()


def test_balanced_weights_make_classes_equal():
    y = torch.tensor([0, 0, 0, 2, 2, 5])
    w = balanced_weight(y)
    assert float(w.mean()) == pytest.approx(1)
    assert [float(w[y == c].sum()) for c in (0, 2, 5)] == pytest.approx([2, 2, 2])


# --- wrong arguments ------------------------------------------------------------------------------

Z = [torch.zeros(2, 3), torch.zeros(2, 2)]


@pytest.mark.parametrize("function", [kl_min, soft_vote])
@pytest.mark.parametrize(
    ("logits", "classes", "error", "message"),
    [
        (Z, [[0, 1]], ValueError, "`expert_logits` of the 1 experts in `classes`, got 2"),
        (Z, [[0, 1], [2, 3, 4]], ValueError, r"`expert_logits\[1\]` to be \[N, S\] = \[2, 3\]"),
        (Z, [[0, 0], [1]], ValueError, r"`classes\[0\]` to be distinct"),
        (Z, [[0, -1], [1]], IndexError, r"`classes\[0\]` >= 0, got -1"),
        (Z, [[0, 1.5], [1]], TypeError, r"`classes\[0\]` to be integers"),
        (Z, [[0, 1], []], ValueError, r"`classes\[1\]` to be \[S\] with at least one class"),
        (Z, [], ValueError, "`classes` of at least one expert"),
        (Z, 3, TypeError, "`classes` to be a list"),
        (Z[0], [[0, 1]], TypeError, "`expert_logits` to be a list"),
        ([Z[0], torch.zeros(3, 2)], [[0, 1], [2]], ValueError, r"`expert_logits\[1\]`.*\[2, 1\]"),
        ([Z[0].long(), Z[1]], [[0, 1], [2]], TypeError, r"`expert_logits\[0\]` to be float16"),
    ],
)
def test_wrong_arguments_are_named(function, logits, classes, error, message):
    with pytest.raises(error, match=rf"`{function.__name__}`: .*{message}"):
        function(logits, classes)


def test_more_wrong_arguments():
    with pytest.raises(ValueError, match="`num_classes` > 2"):
        kl_min(Z, [[0, 1], [2]], num_classes=2)
    with pytest.raises(ValueError, match="`padding` to be 'spread' or 'zeros'"):
        soft_vote(Z, [[0, 1], [2]], padding="ones")
    with pytest.raises(IndexError, match=r"`target` in 0 ... 2, got 0 ... 3"):
        oracle(Z, [[0, 1], [2]], torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"`target` to be \[N\] = \[2\]"):
        oracle(Z, [[0, 1], [2]], torch.tensor([0]))
    with pytest.raises(ValueError, match="`kind` to be 'half'"):
        reject_correction("double", 16)
    with pytest.raises(ValueError, match="`ratio` to be finite and > 0"):
        reject_correction("half", 0)
    with pytest.raises(ValueError, match="`known` classes"):
        reject_correction("test_prior", 16, known=5, num_classes=5)
    with pytest.raises(ValueError, match="`amounts` to be one number"):
        correct_reject(Z, [1.0])
