"""JointCalibration, ExpertSelection, Stacking: forward, gradients and what a fit finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

import fusion_definitions as definitions
from fusion_cases import experts
from golden_vectors import cases, load_case
from ltkernels.fusion import (
    ExpertSelection,
    JointCalibration,
    Stacking,
    balanced_weight,
    expand_posterior,
    kl_min,
    soft_vote,
)
from ltkernels.fusion._experts import check_experts
from ltkernels.fusion.calibration import _columns_of_target, _nll

LEARNED = [JointCalibration, ExpertSelection, Stacking]


def subsets_of(case):
    if "mask_many" in case.arrays:
        masks = [case[f"mask_{name}"] for name in ("many", "medium", "few")]
    else:
        n = case["cls_num_list"]
        masks = [n >= 100, (n >= 20) & (n < 100), n < 20]
    return [mask.nonzero().flatten() for mask in masks]


def split(concatenated, classes):
    return list(concatenated.split([len(own) + 1 for own in classes], 1))


@pytest.mark.parametrize("name", cases("cbe", "CalibrateExperts.forward + nn.NLLLoss"))
def test_joint_calibration_is_the_released_code(name):
    case = load_case("cbe", name)
    classes = subsets_of(case)
    fusion = JointCalibration(classes).double()
    for e, group in enumerate(("many", "medium", "few")):
        fusion.scale[e].data.copy_(case[f"scale_{group}"][0])
        fusion.shift[e].data.copy_(case[f"bias_{group}"][0])
    z = case.leaf("expert_logits_concat")
    log_q = fusion(split(z, classes), classes)
    torch.testing.assert_close(log_q, case["log_posterior"], rtol=1e-9, atol=1e-11)
    nll = torch.nn.functional.nll_loss(log_q, case["target"])
    torch.testing.assert_close(nll, case["nll"], rtol=1e-9, atol=1e-11)
    nll.backward()
    torch.testing.assert_close(z.grad, case["grad_logits"], rtol=1e-8, atol=1e-11)
    for e, group in enumerate(("many", "medium", "few")):
        for own, name_ in ((fusion.scale[e], "scale"), (fusion.shift[e], "bias")):
            expected = case[f"grad_{name_}_{group}"][0]
            torch.testing.assert_close(own.grad, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_joint_calibration_is_finite_where_every_expert_rejects(dtype):
    derived = load_case("derived", "cbe_joint_calibration_logspace")
    official = load_case("cbe", "calib_all_reject_f64")
    for case in (derived, official):
        classes = subsets_of(case)
        fusion = JointCalibration(classes)
        log_q = fusion(split(case["expert_logits_concat"].to(dtype), classes))
        expected = case["log_posterior"].to(dtype)
        torch.testing.assert_close(log_q, expected, rtol=1e-4, atol=1e-4)
        assert log_q.isfinite().all()


def randomised(fusion, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in fusion.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return fusion.double()


def rejects_of(logits, classes):
    return [z.shape[1] > len(own) for z, own in zip(logits, classes, strict=True)]


@settings(max_examples=50)
@given(experts())
def test_joint_calibration_is_its_definition(case):
    logits, classes, num_classes = case
    fusion = randomised(JointCalibration(classes, num_classes, reject=rejects_of(logits, classes)))
    scales, shifts = ([p.detach() for p in x] for x in (fusion.scale, fusion.shift))
    q = fusion(logits, classes).exp()
    for i, row in enumerate(q):
        parts = [z[i] for z in logits]
        # -inf times a scale is what the definition cannot do: an impossible class stays one.
        finite = [torch.where(z.isinf(), -1e6, z) for z in parts]
        slow = definitions.joint_calibration(
            finite, classes, num_classes, [w.clamp(min=0.1) for w in scales], shifts
        )
        if all(bool((w >= 0.1).all()) for w in scales) and slow.isfinite().all():
            torch.testing.assert_close(row, slow, rtol=1e-9, atol=1e-9)


@settings(max_examples=50)
@given(experts())
def test_the_gradient_of_the_fit_is_that_of_the_loss(case):
    logits, classes, num_classes = case
    fusion = randomised(JointCalibration(classes, num_classes, reject=rejects_of(logits, classes)))
    found = check_experts("test", logits, classes, num_classes)
    known = sorted({c for own in classes for c in own})
    target = torch.tensor([known[i % len(known)] for i in range(len(logits[0]))])
    log_q = fusion(logits)
    picked = log_q.gather(1, target[:, None]).squeeze(1)
    if not bool(picked.isfinite().all()):
        return  # the true class is impossible: no parameter helps
    weight = torch.linspace(1, 2, len(target), dtype=torch.float64)
    loss = -(weight * picked).sum()
    loss.backward()
    value, by_scale, by_shift = _nll(
        found,
        _columns_of_target(found, target),
        weight,
        [p.detach() for p in fusion.scale],
        [p.detach() for p in fusion.shift],
        [bool(z.isneginf().any()) for z in found.logits],
    )
    torch.testing.assert_close(value, loss.detach(), rtol=1e-9, atol=1e-9)
    for parameters, gradients in ((fusion.scale, by_scale), (fusion.shift, by_shift)):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-7, atol=1e-8)


def toy(rows=600, seed=0):
    """Three experts of six classes; expert 0 is confident everywhere, expert 2 shy."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(rows) % 6
    classes = [[0, 1], [2, 3], [4, 5]]
    logits = []
    for e, own in enumerate(classes):
        z = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
        for column, c in enumerate(own):
            z[:, column] += 3.0 * (y == c)
        inside = (y == own[0]) | (y == own[1])
        z[:, 2] += 2.0 * ~inside
        z[:, :2] += (2.0, 0.0, -2.0)[e]
        logits.append(z)
    return logits, classes, y


def accuracy(log_q, y):
    return float((log_q.argmax(1) == y).double().mean())


@pytest.mark.parametrize("fusion_of", LEARNED)
def test_a_fit_helps_on_other_images(fusion_of):
    logits, classes, y = toy()
    test_logits, _, test_y = toy(seed=1)
    fusion = fusion_of(classes)
    before = accuracy(JointCalibration(classes)(test_logits), test_y)
    after = accuracy(fusion.fit(logits, y)(test_logits, classes), test_y)
    assert after > before + 0.02


@pytest.mark.parametrize("per", ["class", "expert"])
def test_joint_calibration_fits_to_the_minimum(per):
    logits, classes, y = toy()
    fusion = JointCalibration(classes, per=per, weight_decay=1e-2).double().fit(logits, y)
    loss = torch.nn.functional.nll_loss(fusion(logits), y)
    for w, b in zip(fusion.scale, fusion.shift, strict=True):
        loss = loss + 0.5e-2 * ((w - 1).square().sum() + b.square().sum())
    loss.backward()
    assert all(p.numel() == (2 if per == "expert" else 3) for p in fusion.parameters())
    assert max(float(p.grad.abs().max()) for p in fusion.parameters()) < 1e-5


@pytest.mark.parametrize("fusion_of", LEARNED)
def test_a_fit_is_deterministic_and_a_repeated_image_is_a_weight(fusion_of):
    logits, classes, y = toy(rows=60)
    times = 1 + (y == 0).long()
    repeated = [z.repeat_interleave(times, 0) for z in logits]
    one = fusion_of(classes).fit(logits, y, sample_weight=times.double())
    two = fusion_of(classes).fit(repeated, y.repeat_interleave(times))
    again = fusion_of(classes).fit(logits, y, sample_weight=times.double())
    for a, b, c in zip(one.parameters(), two.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, c)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_float32_fits_as_float64_does():
    logits, classes, y = toy()
    fine = JointCalibration(classes, weight_decay=1e-2).fit(logits, y)
    coarse = JointCalibration(classes, weight_decay=1e-2).fit([z.float() for z in logits], y)
    for a, b in zip(fine.parameters(), coarse.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_selection_answers_with_the_chosen_expert():
    logits, classes, y = toy(rows=30)
    fusion = ExpertSelection(classes).fit(logits, y)
    chosen = fusion.select(logits).argmax(1)
    found = check_experts("test", logits, classes, None)
    log_q = fusion(logits)
    for i, e in enumerate(chosen.tolist()):
        torch.testing.assert_close(log_q[i].exp(), expand_posterior(found, e)[i])


def test_without_reject_classes_confidence_is_what_selects():
    logits, classes, y = toy()
    known = [z[:, :2] for z in logits]
    found = {}
    for confidence in (False, True):
        fusion = ExpertSelection(classes, reject=False, confidence=confidence).fit(known, y)
        found[confidence] = accuracy(fusion(known), y)
    assert found[True] > found[False] + 0.1


def test_models_of_all_classes_and_classes_nobody_knows():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 4
    logits = [torch.randn(40, 4, generator=generator) + 2 * torch.eye(4)[y] for _ in range(2)]
    fusion = JointCalibration([range(4)] * 2, reject=False).fit(logits, y)
    torch.testing.assert_close(fusion(logits).exp().sum(1), torch.ones(40))
    # An image of a class that no expert knows says nothing and breaks nothing.
    wide = JointCalibration([range(4)] * 2, 5, reject=False).fit(logits, y)
    more = [torch.cat([z, torch.zeros(1, 4)]) for z in logits]
    again = JointCalibration([range(4)] * 2, 5, reject=False).fit(
        more, torch.cat([y, torch.tensor([4])]), sample_weight=torch.ones(41)
    )
    assert wide(logits)[:, 4].isneginf().all()
    assert all(p.isfinite().all() for p in again.parameters())


def test_many_samples_are_taken_in_chunks():
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(3000, 101, generator=generator) for _ in range(2)]
    classes = [range(100), range(100, 200)]
    fusion = randomised(JointCalibration(classes)).float()
    with torch.no_grad():
        chunked = fusion(logits)
    torch.testing.assert_close(chunked, fusion(logits).detach(), rtol=0, atol=0)
    whole = [function(logits, classes) for function in (kl_min, soft_vote)]
    for function, q in zip((kl_min, soft_vote), whole, strict=True):
        torch.testing.assert_close(q[1500:1502], function([z[1500:1502] for z in logits], classes))


def test_it_is_saved_and_loaded():
    logits, classes, y = toy(rows=60)
    for fusion_of in LEARNED:
        one = fusion_of(classes).fit(logits, y, sample_weight=balanced_weight(y))
        two = fusion_of(classes)
        two.load_state_dict(one.state_dict())
        assert torch.equal(one(logits), two(logits))


@pytest.mark.parametrize("fusion_of", LEARNED)
def test_wrong_arguments_are_named(fusion_of):
    logits, classes, y = toy(rows=6)
    name = fusion_of.__name__
    fusion = fusion_of(classes)
    with pytest.raises(ValueError, match=rf"`{name}`: expected `classes` in the order"):
        fusion(logits, [[1, 0], [2, 3], [4, 5]])
    with pytest.raises(ValueError, match=rf"`{name}`: expected `expert_logits\[0\]` with a reject"):
        fusion([z[:, :2] for z in logits])
    with pytest.raises(ValueError, match=rf"`{name}`: expected `target` to be \[N\] = \[6\]"):
        fusion.fit(logits, y[:3])
    with pytest.raises(TypeError, match=rf"`{name}`: expected `target` to be int64"):
        fusion.fit(logits, y.float())
    with pytest.raises(ValueError, match=rf"`{name}`: expected `sample_weight` >= 0"):
        fusion.fit(logits, y, sample_weight=-torch.ones(6))
    with pytest.raises(ValueError, match=rf"`{name}`: expected `sample_weight` not to be 0"):
        fusion.fit(logits, y, sample_weight=torch.zeros(6))
    with pytest.raises(ValueError, match=rf"`{name}`: expected `expert_logits` of at least one"):
        fusion.fit([z[:0] for z in logits], y[:0])
    with pytest.raises(ValueError, match=rf"`{name}`: expected `reject` to be one value"):
        fusion_of(classes, reject=[True])
    with pytest.raises(ValueError, match="`JointCalibration`: expected `per`"):
        JointCalibration(classes, per="logit")
