"""The losses on adjusted_cross_entropy: official vectors, presets, schedules, state."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as torch_f

from golden_vectors import Case, cases, load_case
from ltkernels.losses import (
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
)
from ltkernels.schedules import effective_number_weight, inverse_frequency_weight

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
COUNTS = [500, 100, 20, 5]


def batch(n: int = 6, c: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, c, generator=generator, dtype=torch.float64)
    return logits, torch.randint(c, (n,), generator=generator)


def check(loss: nn.Module, case: Case, logits: str, grad: str, output: str = "loss") -> None:
    """Loss and gradient of the module are those of the official code."""
    leaf = case.leaf(logits)
    value = loss(leaf, case["target"])
    torch.testing.assert_close(value, case[output], **EXACT)
    value.sum().backward()
    torch.testing.assert_close(leaf.grad, case[grad], **EXACT)


# --- official vectors -----------------------------------------------------------------------------


def test_official_ldam() -> None:
    case = load_case("bkd", "ldam_C10_none_f64")
    check(LDAMLoss(case["cls_num_list"]), case, "cosine_logits", "grad")


@pytest.mark.parametrize("case_id", cases("ride", "LDAMLoss.forward"))
def test_official_ldam_of_ride(case_id: str) -> None:
    """RIDE counts epochs from 1 and re-weights after epoch 160: the 160th is still plain."""
    case = load_case("ride", case_id)
    loss = LDAMLoss(
        case["cls_num_list"],
        s=case.params["s"],
        prescaled=True,
        drw_epoch=case.params["reweight_epoch"],
    )
    loss.on_epoch_start(case.params["epoch_passed_to_hook"] - 1)
    check(loss, case, "logits", "grad_logits")


@pytest.mark.parametrize("case_id", cases("ride", "CrossEntropyLoss.forward"))
def test_official_class_balanced(case_id: str) -> None:
    case = load_case("ride", case_id)
    check(ClassBalancedLoss(case["cls_num_list"]), case, "logits", "grad_logits")


@pytest.mark.parametrize("case_id", cases("ride", "FocalLoss.forward"))
def test_official_focal(case_id: str) -> None:
    case = load_case("ride", case_id)
    check(FocalLoss(gamma=case.params["gamma"]), case, "logits", "grad_logits")


@pytest.mark.parametrize("case_id", cases("neighbours", "balanced_softmax_loss"))
def test_official_balanced_softmax(case_id: str) -> None:
    case = load_case("neighbours", case_id)
    loss = BalancedSoftmaxLoss(case["cls_num_list"], reduction=case.params["reduction"])
    check(loss, case, "logits", "grad_logits_of_sum")


@pytest.mark.parametrize("case_id", cases("ecl_base_ncl", "Bayias"))
def test_bayias_compensated_loss(case_id: str) -> None:
    case = load_case("ecl_base_ncl", case_id)
    rows = BalancedSoftmaxLoss(case["cls_num_list"], reduction="none")
    torch.testing.assert_close(rows(case["logits"], case["target"]), case["loss_per_sample"])
    leaf = case.leaf("logits")
    BalancedSoftmaxLoss(case["cls_num_list"])(leaf, case["target"]).backward()
    torch.testing.assert_close(leaf.grad, case["grad_logits_of_mean"], **EXACT)


@pytest.mark.parametrize("case_id", cases("ecl_base_ncl", "Bal_CE_loss"))
def test_balanced_cross_entropy_with_tau(case_id: str) -> None:
    case = load_case("ecl_base_ncl", case_id)
    leaf = case.leaf("logits")
    loss = LogitAdjustedLoss(case["cls_num_list"], tau=case.params["tau"])
    value = loss(leaf, case["target_onehot"].argmax(dim=1))
    torch.testing.assert_close(value, case["loss"], **EXACT)
    value.backward()
    torch.testing.assert_close(leaf.grad, case["grad_logits"], **EXACT)


@pytest.mark.parametrize("case_id", cases("ecl_base_ncl", "ratios 0 except CE"))
def test_balanced_softmax_of_several_experts(case_id: str) -> None:
    case = load_case("ecl_base_ncl", case_id)
    leaf, loss = case.leaf("logits"), BalancedSoftmaxLoss(case["cls_num_list"])
    total = torch.stack([loss(logits, case["target"]) for logits in leaf]).sum()
    torch.testing.assert_close(total, case["loss"], **EXACT)
    total.backward()
    torch.testing.assert_close(leaf.grad, case["grad_logits"], **EXACT)


def test_ecl_supervision() -> None:
    case = load_case("derived", "ecl_sup_eq10_B4_C10")
    cls, ref = case.leaf("cls_logits"), case.leaf("ref_logits")
    loss = BalancedSoftmaxLoss(case["cls_num_list"])
    pairs = zip(cls, ref, strict=True)
    total = torch.stack(
        [loss(a, case["target"]) + loss(b, case["target"]) for a, b in pairs]
    ).mean()
    torch.testing.assert_close(total, case["loss"], **EXACT)
    total.backward()
    torch.testing.assert_close(cls.grad, case["grad_cls"], **EXACT)
    torch.testing.assert_close(ref.grad, case["grad_ref"], **EXACT)


def test_lfme_weighted_cross_entropy() -> None:
    """LFME's mean_i v_i CE_i is plain cross-entropy a row, times v."""
    case = load_case("derived", "lfme_weighted_ce_B8_C10")
    logits = case.leaf("logits")
    rows = LogitAdjustedLoss([1] * 10, reduction="none")(logits, case["target"])
    loss = (case["v"] * rows).mean()
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    loss.backward()
    torch.testing.assert_close(logits.grad, case["grad"], **EXACT)


# --- options --------------------------------------------------------------------------------------


def test_prescaled_ldam_is_ldam_of_scaled_logits() -> None:
    logits, target = batch()
    torch.testing.assert_close(
        LDAMLoss(COUNTS, s=20.0, prescaled=True)(20 * logits, target),
        LDAMLoss(COUNTS, s=20.0)(logits, target),
    )


@pytest.mark.parametrize("epoch", [0, 159, 160, 320, 1000])
@pytest.mark.parametrize("preset", ["official", "paper"])
def test_ldam_drw(epoch: int, preset: Any) -> None:
    logits, target = batch()
    loss = LDAMLoss(COUNTS, drw_epoch=160, preset=preset)
    plain = LDAMLoss(COUNTS)(logits, target)
    torch.testing.assert_close(loss(logits, target), plain)
    loss.on_epoch_start(epoch)
    of_counts = effective_number_weight if preset == "official" else inverse_frequency_weight
    weighted = LDAMLoss(COUNTS, weight=of_counts(COUNTS))(logits, target)
    torch.testing.assert_close(loss(logits, target), weighted if epoch >= 160 else plain)


def test_focal_mean_is_over_the_samples() -> None:
    logits, target = batch()
    target[0] = -100
    weight = effective_number_weight(COUNTS)
    row = torch_f.cross_entropy(logits, target, weight, reduction="none")
    expected = ((1 - torch.exp(-row)) ** 1.5 * row)[1:].mean()
    loss = FocalLoss(COUNTS, "effective_number", 1.5)
    torch.testing.assert_close(loss(logits, target), expected)


def test_focal_presets() -> None:
    assert FocalLoss().focal_gamma == 1
    assert FocalLoss(preset="paper").focal_gamma == 2
    assert FocalLoss(preset="paper", gamma=0.5).focal_gamma == 0.5


def test_class_balanced_means() -> None:
    logits, target = batch()
    weight = effective_number_weight(COUNTS)
    rows = torch_f.cross_entropy(logits, target, weight, reduction="none")
    over_weights = rows.sum() / weight[target].sum()
    for options, expected in (
        ({}, over_weights),
        ({"preset": "paper"}, rows.mean()),
        ({"mean_over": "samples"}, rows.mean()),
        ({"preset": "paper", "mean_over": "weights"}, over_weights),
        ({"reduction": "sum"}, rows.sum()),
        ({"gamma": 2.0}, ((1 - torch.exp(-rows)) ** 2 * rows).mean()),
    ):
        loss = ClassBalancedLoss(COUNTS, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(loss(logits, target), expected)


def test_balanced_softmax_is_logit_adjustment_at_one() -> None:
    logits, target = batch()
    expected = torch_f.cross_entropy(logits + torch.tensor(COUNTS).log(), target)
    torch.testing.assert_close(BalancedSoftmaxLoss(COUNTS)(logits, target), expected)
    torch.testing.assert_close(LogitAdjustedLoss(COUNTS)(logits, target), expected)
    plain = torch_f.cross_entropy(logits, target)
    torch.testing.assert_close(LogitAdjustedLoss(COUNTS, 0.0)(logits, target), plain)


# --- state ----------------------------------------------------------------------------------------

MODULES: list[Callable[[Any], nn.Module]] = [
    lambda counts: LDAMLoss(counts, drw_epoch=160),
    lambda counts: FocalLoss(counts, "effective_number"),
    ClassBalancedLoss,
    BalancedSoftmaxLoss,
    LogitAdjustedLoss,
]


@pytest.mark.parametrize("make", MODULES)
def test_state_travels(make: Callable[[Any], nn.Module]) -> None:
    logits, target = batch()
    loss = make(COUNTS)
    loss.on_epoch_start(200)  # type: ignore[operator]
    expected = loss(logits, target)
    fresh = make([3, 3, 3, 3])
    fresh.load_state_dict(loss.state_dict())
    for other in (fresh, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(other(logits, target), expected, rtol=0, atol=0)
    assert all(x.dtype == torch.float64 for x in loss.half().buffers())
    assert not list(loss.parameters())


@pytest.mark.parametrize("make", MODULES)
def test_counts_by_either_name(make: Callable[[Any], nn.Module]) -> None:
    logits, target = batch()
    expected = make(COUNTS)(logits, target)
    for counts in (tuple(COUNTS), torch.tensor(COUNTS), torch.tensor(COUNTS).numpy()):
        torch.testing.assert_close(make(counts)(logits, target), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "loss", [LDAMLoss, ClassBalancedLoss, BalancedSoftmaxLoss, LogitAdjustedLoss]
)
def test_official_keyword(loss: Any) -> None:
    logits, target = batch()
    torch.testing.assert_close(
        loss(cls_num_list=COUNTS)(logits, target), loss(COUNTS)(logits, target)
    )
    with pytest.raises(TypeError, match="got both"):
        loss(COUNTS, cls_num_list=COUNTS)
    with pytest.raises(TypeError, match=f"`{loss.__name__}`: expected `class_counts`"):
        loss()
    with pytest.raises(ValueError, match="to be finite and > 0"):
        loss([5, 0])


def test_repr_says_what_it_is() -> None:
    text = repr(LDAMLoss(COUNTS, drw_epoch=160))
    for part in ("LDAMLoss", "margin=[4]", "class_weight=[4]", "drw_epoch=160", "scale=30"):
        assert part in text


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LDAMLoss(COUNTS, s=0.0), ValueError, "`LDAMLoss`: expected `s`"),
        (lambda: LDAMLoss(COUNTS, preset="both"), ValueError, "`preset`"),  # type: ignore[arg-type]
        (lambda: FocalLoss(weight="effective_number"), TypeError, "`class_counts`"),
        (lambda: FocalLoss(gamma=-1.0), ValueError, "`gamma` >= 0"),
        (lambda: FocalLoss(drw_epoch=5), ValueError, "expected `weight` where `drw_epoch`"),
        (lambda: ClassBalancedLoss(COUNTS, 1.0), ValueError, "`beta`"),
        (lambda: ClassBalancedLoss(COUNTS, mean_over="all"), ValueError, "`mean_over`"),  # type: ignore[arg-type]
        (lambda: LogitAdjustedLoss(COUNTS, "1"), TypeError, "`tau`"),  # type: ignore[arg-type]
        (
            lambda: BalancedSoftmaxLoss([1, 2])(*batch()),
            ValueError,
            r"`bias` to be \[C\] = \[4\], got \[2\]",
        ),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
