"""RIDELoss and RIDEDistillLoss: official vectors, call forms, every difference, the schedule."""

from __future__ import annotations

import copy
import pickle
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as torch_f

from golden_vectors import cases, load_case
from ltkernels import functional
from ltkernels.losses import RIDEDistillLoss, RIDELoss
from ltkernels.schedules import diversity_temperature, effective_number_weight, ldam_margin

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
COUNTS = [500, 100, 20, 5]


def batch(n: int = 6, c: int = 4, k: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    experts = 3 * torch.randn(k, n, c, generator=generator, dtype=torch.float64)
    return experts, torch.randint(c, (n,), generator=generator)


def teacher_logits(n: int = 6, c: int = 4) -> Tensor:
    return torch.randn(n, c, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def kl(first: Tensor, second: Tensor, temperature: Any = 1.0) -> Tensor:
    """KL(softmax(first / T) || softmax(second / T)), the mean over the batch."""
    p, q = torch.softmax(first / temperature, 1), torch.softmax(second / temperature, 1)
    return (p * (p / q).log()).sum(dim=1).mean()


# --- official vectors -----------------------------------------------------------------------------


def official_options(params: dict[str, Any]) -> dict[str, Any]:
    names = ("additional_diversity_factor", "reweight_epoch", "reweight_factor")
    return {name: params[name] for name in names if name in params}


@pytest.mark.parametrize("case_id", cases("ride", "RIDELoss.forward"))
@pytest.mark.parametrize("form", ["official", "own"])
def test_official_ride(case_id: str, form: str) -> None:
    case = load_case("ride", case_id)
    loss = RIDELoss(cls_num_list=case["cls_num_list"], **official_options(case.params))
    loss._hook_before_epoch(case.params["epoch_passed_to_hook"])
    leaf = case.leaf("expert_logits")
    if form == "official":
        value = loss(leaf.mean(dim=0), case["target"], extra_info={"logits": leaf})
    else:
        value = loss(list(leaf), case["target"])
    torch.testing.assert_close(value, case["loss"], **EXACT)
    value.backward()
    torch.testing.assert_close(leaf.grad, case["grad_expert_logits"], **EXACT)


@pytest.mark.parametrize("case_id", cases("ride", "RIDELossWithDistill.forward"))
@pytest.mark.parametrize("form", ["official", "own"])
def test_official_distillation(case_id: str, form: str) -> None:
    case = load_case("ride", case_id)
    loss = RIDEDistillLoss(
        cls_num_list=case["cls_num_list"],
        additional_distill_loss_factor=case.params["additional_distill_loss_factor"],
        distill_temperature=case.params["distill_temperature"],
        **official_options(case.params),
    )
    loss._hook_before_epoch(case.params["epoch_passed_to_hook"])
    leaf, target, teacher = case.leaf("expert_logits"), case["target"], case["teacher_logits"]
    torch.testing.assert_close(loss.ride_loss(leaf, target), case["ride_loss_once"], **EXACT)
    if form == "official":
        value = loss(leaf.mean(dim=0), target, teacher, extra_info={"logits": leaf})
    else:
        value = loss(leaf, target, teacher)
    torch.testing.assert_close(value, case["loss"], **EXACT)
    value.backward()
    torch.testing.assert_close(leaf.grad, case["grad_expert_logits"], **EXACT)


def test_total_of_the_paper() -> None:
    case = load_case("derived", "ride_total_eq4_B4_C10_n2_scalar")
    loss = RIDELoss(
        preset="paper",
        base_diversity_temperature=float(case["T"]),
        additional_diversity_factor=-case.params["lam"],
    )
    leaf = case.leaf("expert_logits")
    value = loss(leaf, case["target"])
    torch.testing.assert_close(value, case["loss"], **EXACT)
    value.backward()
    torch.testing.assert_close(leaf.grad, case["grad"], **EXACT)


def test_distillation_of_the_paper() -> None:
    case = load_case("derived", "ride_distill_per_expert_B4_C10_n2")
    loss = RIDEDistillLoss(
        preset="paper", distill_temperature=case.params["T"], ride_loss_factor=0.0
    )
    leaf = case.leaf("expert_logits")
    value = loss(leaf, torch.zeros(4, dtype=torch.int64), case["teacher_logits"])
    torch.testing.assert_close(value, case["loss"], **EXACT)
    value.backward()
    torch.testing.assert_close(leaf.grad, case["grad"], **EXACT)


# --- the differences between paper and code -------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 159, 160, 320, 1000])
def test_deferred_weights_and_temperatures(epoch: int) -> None:
    experts, target = batch()
    loss = RIDELoss(COUNTS, reweight_epoch=160)
    margin = 30 * ldam_margin(COUNTS)
    before = functional.ride_loss(experts, target, margin=margin, diversity_factor=-0.2)
    after = functional.ride_loss(
        experts,
        target,
        margin=margin,
        class_weight=effective_number_weight(COUNTS),
        temperature=diversity_temperature(COUNTS),
        diversity_factor=-0.2,
    )
    torch.testing.assert_close(loss(experts, target), before)  # never told an epoch
    loss.on_epoch_start(epoch)
    torch.testing.assert_close(loss(experts, target), after if epoch >= 160 else before)
    loss.on_epoch_start(0)
    torch.testing.assert_close(loss(experts, target), before)
    at_once = RIDELoss(COUNTS, reweight_epoch=0)
    torch.testing.assert_close(at_once(experts, target), after)


@pytest.mark.parametrize(
    "options",
    [{}, {"reweight_epoch": -1}, {"reweight": False, "reweight_epoch": 3}],
    ids=["default", "-1", "reweight=False"],
)
def test_where_the_official_code_crashes(options: dict[str, Any]) -> None:
    experts, target = batch()
    expected = functional.ride_loss(
        experts, target, margin=30 * ldam_margin(COUNTS), diversity_factor=-0.2
    )
    loss = RIDELoss(COUNTS, **options)
    torch.testing.assert_close(loss(experts, target), expected)
    loss.on_epoch_start(200)
    torch.testing.assert_close(loss(experts, target), expected)
    without_counts = RIDELoss(reweight_epoch=3)
    without_counts.on_epoch_start(200)
    torch.testing.assert_close(
        without_counts(experts, target),
        functional.ride_loss(experts, target, diversity_factor=-0.2),
    )


def test_validation_is_plain_cross_entropy() -> None:
    experts, target = batch()
    mean = experts.mean(dim=0)
    expected = torch_f.cross_entropy(mean, target)
    loss = RIDELoss(COUNTS, reweight_epoch=0)
    torch.testing.assert_close(loss(mean, target), expected)
    torch.testing.assert_close(loss(mean, target, extra_info=None), expected)
    torch.testing.assert_close(RIDEDistillLoss(COUNTS)(mean, target), expected)


def test_no_diversity_is_the_individual_loss_unless_asked() -> None:
    experts, target = batch()
    individual = torch.stack([torch_f.cross_entropy(z, target) for z in experts]).sum()
    collaborative = 3 * torch_f.cross_entropy(experts.mean(dim=0), target)
    for expected, options in (
        (individual, {}),
        (collaborative, {"official_zero_switch": True}),
        (collaborative, {"collaborative": True}),
        (2 * individual, {"base_loss_factor": 2.0}),
    ):
        loss = RIDELoss(additional_diversity_factor=0.0, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(loss(experts, target), expected)
    kept = RIDELoss(official_zero_switch=True)  # a factor that is not 0 switches nothing
    torch.testing.assert_close(kept(experts, target), RIDELoss()(experts, target))


def expected_diversity(experts: Tensor, options: dict[str, Any]) -> Tensor:
    """The diversity of a temperature of 2 as methods would write it down."""
    mean = experts.mean(dim=0)
    mean = mean.detach() if options.get("detach_mean", True) else mean
    t2 = {True: 4.0, False: 1.0}.get(options.get("t2", True), options.get("t2", True))
    if options.get("pairwise"):
        pairs = permutations(range(len(experts)), 2)
        terms = [kl(experts[i], experts[j], 2.0) / (len(experts) - 1) for i, j in pairs]
    elif options.get("direction") == "expert_first":
        terms = [kl(z, mean, 2.0) for z in experts]
    else:
        terms = [kl(mean, z, 2.0) for z in experts]
    return t2 * torch.stack(terms).sum()


@pytest.mark.parametrize("detach_mean", [True, False])
@pytest.mark.parametrize("direction", ["mean_first", "expert_first"])
@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("t2", [True, False, 3.0])
@pytest.mark.parametrize("base", [1.0, 0.5, 0.0])
def test_each_difference(
    detach_mean: bool, direction: str, pairwise: bool, t2: bool | float, base: float
) -> None:
    experts, target = batch()
    options: dict[str, Any] = {
        "detach_mean": detach_mean,
        "direction": direction,
        "pairwise": pairwise,
        "t2": t2,
    }
    ours = experts.clone().requires_grad_()
    value = RIDELoss(base_diversity_temperature=2.0, base_loss_factor=base, **options)(ours, target)
    theirs = experts.clone().requires_grad_()
    cross_entropy = torch.stack([torch_f.cross_entropy(z, target) for z in theirs]).sum()
    expected = base * cross_entropy - 0.2 * expected_diversity(theirs, options)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, ours)[0], torch.autograd.grad(expected, theirs)[0]
    )


@pytest.mark.parametrize("mode", ["class", "sample"])
@pytest.mark.parametrize("form", ["official", "paper"])
def test_temperatures(mode: Any, form: Any) -> None:
    experts, target = batch()
    loss = RIDELoss(
        COUNTS,
        1.5,
        reweight_epoch=0,
        weight=None,
        temperature_mode=mode,
        temperature_form=form,
        reweight_factor=0.1,
    )
    temperature = diversity_temperature(COUNTS, 1.5, 0.1, preset=form)
    expected = functional.ride_loss(
        experts,
        target,
        margin=30 * ldam_margin(COUNTS),
        temperature=temperature if mode == "class" else temperature[target].unsqueeze(1),
        diversity_factor=-0.2,
    )
    torch.testing.assert_close(loss(experts, target), expected)


@pytest.mark.parametrize("mean_over", ["weights", "samples"])
@pytest.mark.parametrize("expert_reduction", ["sum", "mean"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(mean_over: Any, expert_reduction: Any, reduction: Any) -> None:
    experts, target = batch()
    loss = RIDELoss(
        COUNTS,
        reweight_epoch=0,
        mean_over=mean_over,
        expert_reduction=expert_reduction,
        reduction=reduction,
    )
    weight, margin = effective_number_weight(COUNTS), 30 * ldam_margin(COUNTS)
    moved = experts - margin[target].unsqueeze(1) * torch_f.one_hot(target, 4)
    rows = torch.stack(
        [torch_f.cross_entropy(z, target, weight, reduction="none") for z in moved]
    ).sum(dim=0)
    diversity = functional.diversity_loss(experts, diversity_temperature(COUNTS), reduction="none")
    if reduction == "none":
        expected = rows - 0.2 * diversity
    elif reduction == "sum":
        expected = rows.sum() - 0.2 * diversity.sum()
    else:
        divisor = weight[target].sum() if mean_over == "weights" else len(target)
        expected = rows.sum() / divisor - 0.2 * diversity.mean()
    share = 3 if expert_reduction == "mean" else 1
    torch.testing.assert_close(loss(experts, target), expected / share)


def test_paper_preset_is_its_arguments() -> None:
    experts, target = batch()
    by_hand = RIDELoss(
        COUNTS,
        reweight_epoch=0,
        expert_reduction="mean",
        pairwise=True,
        t2=False,
        temperature_form="paper",
    )
    paper = RIDELoss(COUNTS, reweight_epoch=0, preset="paper")
    torch.testing.assert_close(paper(experts, target), by_hand(experts, target))
    official = RIDELoss(
        COUNTS,
        reweight_epoch=0,
        preset="paper",
        expert_reduction="sum",
        pairwise=False,
        direction="mean_first",
        detach_mean=True,
        t2=True,
        temperature_form="official",
    )
    expected = RIDELoss(COUNTS, reweight_epoch=0)
    torch.testing.assert_close(official(experts, target), expected(experts, target))


@pytest.mark.parametrize("on", ["mean", "experts"])
@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("preset", ["official", "paper"])
def test_distillation_options(on: Any, repeat: bool, preset: Any) -> None:
    experts, target = batch()
    teacher = teacher_logits()
    loss = RIDEDistillLoss(
        COUNTS, 0.5, 1.5, 2.0, preset=preset, distill_on=on, repeat=repeat, reweight_epoch=0
    )
    ride = RIDELoss(COUNTS, preset=preset, reweight_epoch=0)(experts, target)
    if on == "mean":
        distill = kl(teacher, experts.mean(dim=0), 1.5)
    else:
        each = torch.stack([kl(teacher, z, 1.5) for z in experts])
        distill = each.sum() if preset == "official" else each.mean()
    expected = (3 if repeat else 1) * (2 * ride + 0.5 * 1.5**2 * distill)
    torch.testing.assert_close(loss(experts, target, teacher), expected)


def test_distillation_reductions() -> None:
    experts, target = batch()
    rows = RIDEDistillLoss(reduction="none")(experts, target, teacher_logits())
    assert rows.shape == (6,)
    mean = RIDEDistillLoss()(experts, target, teacher_logits())
    torch.testing.assert_close(rows.mean(), mean)


# --- state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 20])
def test_state_travels(epoch: int) -> None:
    experts, target = batch()
    loss = RIDELoss(COUNTS, reweight_epoch=10)
    loss.on_epoch_start(epoch)
    expected = loss(experts, target)
    fresh = RIDELoss([9, 9, 9, 8], reweight_epoch=10)
    fresh.on_epoch_start(20 - epoch)
    fresh.load_state_dict(loss.state_dict())
    for other in (fresh, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(other(experts, target), expected, rtol=0, atol=0)
    assert all(x.dtype == torch.float64 for x in loss.half().buffers())
    assert not list(loss.parameters())
    distill = RIDEDistillLoss(COUNTS, reweight_epoch=10)
    distill.on_epoch_start(epoch)
    torch.testing.assert_close(distill.ride_loss(experts, target), expected)


def test_one_graph_before_and_after_reweighting() -> None:
    experts, target = batch()
    loss = RIDELoss(COUNTS, reweight_epoch=10)
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for epoch in (0, 10):
        loss.on_epoch_start(epoch)
        torch.testing.assert_close(traced(experts, target), loss(experts, target))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_float32_arithmetic(dtype: torch.dtype) -> None:
    experts, target = batch()
    loss = RIDEDistillLoss(COUNTS, reweight_epoch=0, detach_mean=False)
    value = loss(experts.to(dtype), target, teacher_logits().to(dtype))
    assert value.dtype == torch.float32


def test_official_keyword() -> None:
    experts, target = batch()
    for make in (RIDELoss, RIDEDistillLoss):
        with pytest.raises(TypeError, match=f"`{make.__name__}`: .* got both"):
            make(COUNTS, cls_num_list=COUNTS)
    loss = RIDELoss(cls_num_list=COUNTS)
    torch.testing.assert_close(loss(experts, target), RIDELoss(COUNTS)(experts, target))


def test_repr_says_what_it_is() -> None:
    text = repr(RIDEDistillLoss(COUNTS, reweight_epoch=160, preset="paper"))
    for part in ("RIDELoss", "margin=[4]", "reweight_epoch=160", "pairwise=True", "distill_on="):
        assert part in text


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: RIDELoss([3, 0]), ValueError, "`RIDELoss`: expected `class_counts`"),
        (lambda: RIDELoss(COUNTS, 0.0), ValueError, "`base_diversity_temperature`"),
        (lambda: RIDELoss(COUNTS, s=0.0), ValueError, "`s` to be finite and > 0"),
        (lambda: RIDELoss(COUNTS, reweight_epoch=-2), ValueError, "`reweight_epoch` >= 0"),
        (lambda: RIDELoss(COUNTS, reweight_epoch=1.5), TypeError, "`reweight_epoch` to be an int"),  # type: ignore[arg-type]
        (lambda: RIDELoss(preset="both"), ValueError, "`preset`"),  # type: ignore[arg-type]
        (lambda: RIDELoss(direction="both"), ValueError, "'mean_first' or 'expert_first'"),  # type: ignore[arg-type]
        (lambda: RIDELoss(temperature_mode="row"), ValueError, "`temperature_mode`"),  # type: ignore[arg-type]
        (lambda: RIDELoss(mean_over="all"), ValueError, "`mean_over`"),  # type: ignore[arg-type]
        (lambda: RIDELoss(expert_reduction="max"), ValueError, "`expert_reduction`"),  # type: ignore[arg-type]
        (lambda: RIDELoss(reduction="avg"), ValueError, "`reduction`"),  # type: ignore[arg-type]
        (
            lambda: RIDELoss(COUNTS, reweight_epoch=1, reweight_factor=1.0, preset="paper"),
            ValueError,
            "temperatures > 0",
        ),
        (lambda: RIDELoss()(torch.zeros(3), batch()[1]), ValueError, r"`expert_logits` to be \[K"),
        (
            lambda: RIDELoss()(batch()[0][0], batch()[1], extra_info={"feat": 1}),
            ValueError,
            r"`extra_info` to hold 'logits', got \['feat'\]",
        ),
        (
            lambda: RIDELoss()(batch()[0][0], batch()[1], extra_info={"logits": 1}),
            TypeError,
            r"`RIDELoss`: expected `extra_info\['logits'\]`",
        ),
        (lambda: RIDELoss([1, 2])(*batch()), ValueError, r"`margin` to be \[C\] = \[4\]"),
        (lambda: RIDEDistillLoss()(*batch()), TypeError, "expected `teacher` logits"),
        (lambda: RIDEDistillLoss(distill_on="all"), ValueError, "`distill_on`"),  # type: ignore[arg-type]
        (lambda: RIDEDistillLoss(distill_temperature=0.0), ValueError, "`distill_temperature`"),
        (lambda: RIDELoss(COUNTS).on_epoch_start(-1), ValueError, "`epoch` >= 0"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
