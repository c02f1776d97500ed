"""LFMELoss: the official batch loss, the paper's form, subsets, weights, state."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as torch_f

import ltkernels
from golden_vectors import cases, load_case
from ltkernels.losses import LFMELoss
from ltkernels.schedules import expert_weight

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
COUNTS = [500, 300, 100, 50, 20, 5]  # rule B: three, one, two classes
SIZES = [3, 1, 2]


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def step(n: int = 7) -> dict[str, Any]:
    return {
        "logits": draw(n, 6),
        "target": torch.randint(6, (n,), generator=torch.Generator().manual_seed(0)),
        "expert_logits": [draw(n, size, seed=i + 1) for i, size in enumerate(SIZES)],
        "expert_weight": [0.3, 1.0, 0.0],
        "instance_weight": torch.rand(n, generator=torch.Generator().manual_seed(2)),
    }


# --- official vectors -----------------------------------------------------------------------------

SHOTS = ("many_shot", "median_shot", "low_shot")


def test_official_batch_loss() -> None:
    case = load_case("lfme", "batch_loss_B8_C10_s1_f64")
    loss = LFMELoss(case["cls_num_list"], case.params["T"])
    for classes, shot in zip(loss.subsets, SHOTS, strict=True):
        assert torch.equal(classes, case[f"classes_{shot}"])
    weights = [
        expert_weight(
            case.params["acc_student"][shot],
            case.params["acc_expert"][shot],
            case.params["decay_thresh"],
        )
        for shot in SHOTS
    ]
    torch.testing.assert_close(
        torch.stack(weights), torch.stack([case[f"w_{shot}"] for shot in SHOTS]).double(), **EXACT
    )
    log_probs = case.leaf("log_probs")
    value = loss(
        log_probs,
        case["target"],
        [case[f"expert_{shot}"] for shot in SHOTS],
        torch.stack(weights),
        case["instance_weight"],
    )
    torch.testing.assert_close(value, case["loss"], **EXACT)
    value.backward()
    torch.testing.assert_close(log_probs.grad, case["grad"], **EXACT)


@pytest.mark.parametrize("case_id", cases("lfme", "DistillationLoss"))
def test_official_distillation(case_id: str) -> None:
    case = load_case("lfme", case_id)
    student = case.leaf("student_subset_logits")
    n, s = student.shape
    loss = LFMELoss(subsets=[range(s)], T=case.params["T"])
    target = torch.zeros(n, dtype=torch.int64)
    value = loss(student, target, [case["expert_logits"]])
    value = value - torch_f.cross_entropy(student, target)
    torch.testing.assert_close(value, case["loss"], **EXACT)
    value.backward()
    torch.testing.assert_close(student.grad, case["grad_student"], **EXACT)


def test_cross_entropy_form() -> None:
    case = load_case("derived", "lfme_kd_crossentropy_B8_C10")
    student, target = case.leaf("student_logits"), torch.zeros(8, dtype=torch.int64)
    loss = LFMELoss(subsets=[case["classes"]], T=case.params["T"], form="ce")
    value = loss(student, target, [case["expert_logits"]]) - torch_f.cross_entropy(student, target)
    torch.testing.assert_close(value, case["loss"], **EXACT)
    value.backward()
    torch.testing.assert_close(student.grad, case["grad"], **EXACT)


def test_weighted_cross_entropy_of_the_paper() -> None:
    case = load_case("derived", "lfme_weighted_ce_B8_C10")
    logits = case.leaf("logits")
    loss = LFMELoss(subsets=[range(10)], preset="paper")
    value = loss(logits, case["target"], [torch.zeros(8, 10)], [0.0], case["v"])
    torch.testing.assert_close(value, case["loss"], **EXACT)
    value.backward()
    torch.testing.assert_close(logits.grad, case["grad"], **EXACT)


# --- the formula ----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["official", "paper"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("form", ["kl", "ce"])
@pytest.mark.parametrize("t2", [False, True, 3.0])
def test_total(preset: Any, reduction: Any, form: Any, t2: bool | float) -> None:
    call = step()
    loss = LFMELoss(COUNTS, 1.5, preset=preset, reduction=reduction, form=form, t2=t2)
    v, student = call["instance_weight"], call["logits"]
    if preset == "official":
        student = v.unsqueeze(1) * student.log_softmax(1)  # the code's; constants cancel
        rows = torch_f.cross_entropy(student, call["target"], reduction="none")
    else:
        rows = v * torch_f.cross_entropy(student, call["target"], reduction="none")
    factor = {True: 1.5**2, False: 1.0}.get(t2, t2)
    for classes, teacher, w in zip(
        ([0, 1, 2], [3], [4, 5]), call["expert_logits"], call["expert_weight"], strict=True
    ):
        q = torch.softmax(teacher / 1.5, dim=1)
        log_p = torch.log_softmax(student[:, classes] / 1.5, dim=1)
        log_q = q.log() if form == "kl" else torch.zeros_like(q)
        rows = rows + w * factor * (q * (log_q - log_p)).sum(dim=1)
    expected = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    torch.testing.assert_close(loss(**call), expected)


def test_weights_default_to_ones() -> None:
    call = step()
    ones = {**call, "expert_weight": torch.ones(3), "instance_weight": torch.ones(7)}
    left_out = {**call, "expert_weight": None, "instance_weight": None}
    for preset in ("official", "paper"):
        loss = LFMELoss(COUNTS, preset=preset)  # type: ignore[arg-type]
        torch.testing.assert_close(loss(**left_out), loss(**ones))


@pytest.mark.parametrize("form", ["kl", "ce"])
def test_expert_weights_of_any_kind(form: Any) -> None:
    call, loss = step(), LFMELoss(COUNTS, form=form)
    expected = loss(**{**call, "expert_weight": [0.5, 1.0, 2.0]})
    weights: list[Any] = [
        (0.5, 1, 2.0),
        torch.tensor([0.5, 1.0, 2.0]),
        torch.tensor([0.5, 1.0, 2.0], dtype=torch.float16),
        [torch.tensor(0.5, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64), 2.0],
    ]
    for weight in weights:
        torch.testing.assert_close(loss(**{**call, "expert_weight": weight}), expected)
    whole = [1, 1, 2]
    torch.testing.assert_close(
        loss(**{**call, "expert_weight": torch.tensor(whole)}),
        loss(**{**call, "expert_weight": whole}),
    )


@pytest.mark.parametrize("gradients", [True, False])
def test_one_call_for_all_experts(monkeypatch: pytest.MonkeyPatch, gradients: bool) -> None:
    kernel, calls = ltkernels._ops.subset_distillation, []

    def counted(*args: Any) -> Any:
        calls.append(len(args[1]))
        return kernel(*args)

    monkeypatch.setattr(ltkernels._ops, "subset_distillation", counted)
    call = step()
    call["logits"].requires_grad_(gradients)
    LFMELoss(COUNTS)(**call)
    assert calls == [3]


def test_subsets() -> None:
    loss = LFMELoss(COUNTS)
    assert loss.subset_names == ("many", "medium", "few")
    assert [x.tolist() for x in loss.subsets] == [[0, 1, 2], [3], [4, 5]]
    kang = LFMELoss(COUNTS, rule="kang")
    assert [x.tolist() for x in kang.subsets] == [[0, 1], [2, 3, 4], [5]]
    without_few = LFMELoss([500, 300, 50])
    assert without_few.subset_names == ("many", "medium")
    own = LFMELoss(subsets=[[2, 0], torch.tensor([1])])
    assert [x.tolist() for x in own.subsets] == [[2, 0], [1]]


@pytest.mark.parametrize("preset", ["official", "paper"])
def test_infinite_logits(preset: Any) -> None:
    call = step()
    call["target"][:2] = 5
    call["logits"][0, 1] = call["expert_logits"][0][0, 1] = float("-inf")
    call["logits"][1] = float("-inf")
    call["instance_weight"][0] = 0.0  # not even 0 * -inf
    leaf = call["logits"].requires_grad_()
    rows = LFMELoss(COUNTS, preset=preset, reduction="none")(**call)
    kept = torch.arange(7) != 1
    assert rows[1].isnan()
    assert rows[kept].isfinite().all()
    grad = torch.autograd.grad(rows.sum(), leaf)[0]
    assert grad[kept].isfinite().all()
    assert grad[0, 1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("preset", ["official", "paper"])
def test_float32_arithmetic(dtype: torch.dtype, preset: Any) -> None:
    call = step()
    leaf = call["logits"] = call["logits"].to(dtype).requires_grad_()
    call["expert_logits"] = [x.to(dtype) for x in call["expert_logits"]]
    call["instance_weight"] = call["instance_weight"].double()  # as schedules give it
    call["expert_weight"] = torch.tensor(call["expert_weight"], dtype=torch.float64)
    value = LFMELoss(COUNTS, preset=preset, form="ce")(**call)
    assert value.dtype == torch.float32
    assert torch.autograd.grad(value, leaf)[0].dtype == dtype


# --- state ----------------------------------------------------------------------------------------


def test_state_travels() -> None:
    call = step()
    loss = LFMELoss(COUNTS)
    loss.on_epoch_start(3)
    expected = loss(**call)
    fresh = LFMELoss([900, 500, 200, 90, 10, 8])
    fresh.load_state_dict(loss.state_dict())
    for other in (fresh, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(other(**call), expected, rtol=0, atol=0)
    assert all(x.dtype == torch.int64 for x in loss.half().buffers())
    torch.testing.assert_close(LFMELoss(cls_num_list=COUNTS)(**call), expected)


def test_traces_in_one_graph() -> None:
    call = step()
    loss = LFMELoss(COUNTS)
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(**call), loss(**call))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LFMELoss(), TypeError, "expected `class_counts` or `subsets`, got neither"),
        (lambda: LFMELoss(COUNTS, 0.0), ValueError, "`LFMELoss`: expected `T`"),
        (lambda: LFMELoss(COUNTS, form="l2"), ValueError, "`form` to be 'kl' or 'ce'"),  # type: ignore[arg-type]
        (lambda: LFMELoss(COUNTS, preset="both"), ValueError, "`preset`"),  # type: ignore[arg-type]
        (
            lambda: LFMELoss(COUNTS, instance_weight_on="all"),  # type: ignore[arg-type]
            ValueError,
            "`instance_weight_on`",
        ),
        (
            lambda: LFMELoss(COUNTS)(**{**step(), "expert_logits": step()["expert_logits"][:2]}),
            ValueError,
            r"`expert_logits` of L = 3 experts \('many', 'medium', 'few'\), got 2",
        ),
        (
            lambda: LFMELoss(COUNTS)(**{**step(), "expert_weight": [1.0]}),
            ValueError,
            "`expert_weight` of L = 3 experts",
        ),
        (
            lambda: LFMELoss(COUNTS)(**{**step(), "instance_weight": torch.ones(3)}),
            ValueError,
            r"`instance_weight` to be \[N\] = \[7\], got \[3\]",
        ),
        (
            lambda: LFMELoss(COUNTS)(**{**step(), "expert_logits": [draw(7, 4)] * 3}),
            ValueError,
            r"`teacher\[0\]` to be \[N, S\] = \[7, 3\], got \[7, 4\]",
        ),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("preset", ["official", "paper"])
def test_on_top_of_the_focal_loss(preset: Any) -> None:
    call = step()
    loss, plain = LFMELoss(COUNTS, preset=preset, focal_gamma=2.0), LFMELoss(COUNTS, preset=preset)
    v, z, y = call["instance_weight"], call["logits"], call["target"]
    scaled = v.unsqueeze(1) * z if preset == "official" else z
    ce = torch_f.cross_entropy(scaled, y, reduction="none")
    weight = torch.ones_like(v) if preset == "official" else v
    focal = (weight * (1 - torch.exp(-ce)) ** 2 * ce).mean()
    difference = focal - (weight * ce).mean()
    torch.testing.assert_close(loss(**call) - plain(**call), difference)
    torch.testing.assert_close(loss.classification(z, y, v), focal)
    with pytest.raises(ValueError, match="`focal_gamma` >= 0, got -1"):
        LFMELoss(COUNTS, focal_gamma=-1)
