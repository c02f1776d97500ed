"""NCLLoss: official vectors, masking, its parts, its state."""

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
from ltkernels.losses import NCLLoss

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
COUNTS = [500, 100, 20, 5]


def batch(n: int = 6, c: int = 4, k: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    experts = 3 * torch.randn(k, n, c, generator=generator, dtype=torch.float64)
    return experts, torch.randint(c, (n,), generator=generator)


# --- official vectors -----------------------------------------------------------------------------


@pytest.mark.parametrize("case_id", cases("ecl_base_ncl", "NIL_NBOD.forward"))
def test_official_loss(case_id: str) -> None:
    case = load_case("ecl_base_ncl", case_id)
    p = case.params
    options: dict[str, Any] = {
        "ce_ratio": p["CE_RATIO"],
        "hcm_ratio": p["HCM_RATIO"],
        "diversity_factor": p["DIVERSITY_FACTOR"],
        "diversity_factor_hcm": p.get("DIVERSITY_FACTOR_HCM", 0.0),
    }
    counts = case["cls_num_list"]
    loss = NCLLoss(counts, p["HCM_N"], eps=1e-9, **options)
    assert NCLLoss(counts).hcm_n == p["HCM_N"]
    leaf = case.leaf("logits")
    value = loss(leaf, case["target"])
    torch.testing.assert_close(value, case["loss"], **EXACT)
    value.backward()
    torch.testing.assert_close(leaf.grad, case["grad_logits"], **EXACT)
    # The default leaves the official epsilon out.
    plain = NCLLoss(counts, **options)(case["logits"], case["target"])
    torch.testing.assert_close(plain, case["loss"], rtol=1e-4, atol=0)


@pytest.mark.parametrize("case_id", [c for c in cases("ecl_base_ncl") if c.startswith("nbod")])
def test_official_distillation(case_id: str) -> None:
    case = load_case("ecl_base_ncl", case_id)
    leaf = case.leaf("logits")
    _, n, c = leaf.shape
    loss = NCLLoss(
        [1] * c,  # log 1 = 0: the stored logits are adjusted already
        ce_ratio=0.0,
        hcm_ratio=0.0,
        diversity_factor=case.params["factor"],
        diversity_factor_hcm=0.0,
        eps=1e-9,
    )
    value = loss(leaf, torch.zeros(n, dtype=torch.int64))
    torch.testing.assert_close(value, case["loss"], **EXACT)
    value.backward()
    torch.testing.assert_close(leaf.grad, case["grad_logits"], **EXACT)


# --- the parts ------------------------------------------------------------------------------------


def hard_mask(experts: Tensor, target: Tensor, hcm_n: int) -> Tensor:
    order = experts[0].clone()
    order[torch.arange(len(target)), target] = 1e9
    return order >= order.sort(dim=1, descending=True).values[:, hcm_n - 1 : hcm_n]


@pytest.mark.parametrize("masking", ["zero", "exclude"])
@pytest.mark.parametrize("hcm_n", [1, 2, 4])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nested_parts(masking: Any, hcm_n: int, reduction: Any) -> None:
    experts, target = batch()
    factors = {"ce_ratio": 0.5, "hcm_ratio": 2.0, "diversity_factor": 0.7}
    loss = NCLLoss(
        COUNTS,
        hcm_n,
        diversity_factor_hcm=0.3,
        masking=masking,
        reduction=reduction,
        **factors,  # type: ignore[arg-type]
    )
    ours = experts.clone().requires_grad_()
    value = loss(ours, target)

    theirs = experts.clone().requires_grad_()
    adjusted = theirs + torch.tensor(COUNTS).double().log()
    away = 0.0 if masking == "zero" else float("-inf")
    hard = torch.where(hard_mask(experts, target, hcm_n), adjusted, away)
    expected = torch.zeros(())
    for logits, ce, kd in ((adjusted, 0.5, 0.7), (hard, 2.0, 0.3)):
        for z in logits:
            expected = expected + ce * torch_f.cross_entropy(z, target, reduction=reduction)
        mutual = functional.collaborative_kd_loss(logits, reduction=reduction)
        expected = expected + 3 * kd * mutual
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value.sum(), ours)[0], torch.autograd.grad(expected.sum(), theirs)[0]
    )
    mean = NCLLoss(
        COUNTS,
        hcm_n,
        diversity_factor_hcm=0.3,
        masking=masking,
        reduction=reduction,
        expert_reduction="mean",
        **factors,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(mean(experts, target), value / 3)


def test_presets() -> None:
    assert NCLLoss(COUNTS).masking == "zero"
    assert NCLLoss(COUNTS, preset="paper").masking == "exclude"
    assert NCLLoss(COUNTS, preset="paper", masking="zero").masking == "zero"


@pytest.mark.parametrize("masking", ["zero", "exclude"])
@pytest.mark.parametrize("eps", [0.0, 1e-9])
def test_infinite_logits(masking: Any, eps: float) -> None:
    experts, target = batch()
    experts[:, 0, (target[0] + 1) % 4] = float("-inf")
    experts[1, 1] = float("-inf")
    leaf = experts.requires_grad_()
    loss = NCLLoss(COUNTS, 2, masking=masking, eps=eps, reduction="none")(leaf, target)
    kept = torch.arange(6) != 1
    assert loss[1].isnan()
    assert loss[kept].isfinite().all()
    grad = torch.autograd.grad(loss.sum(), leaf)[0]
    assert grad[:, kept].isfinite().all()
    assert (grad[:, 0, (target[0] + 1) % 4] == 0).all()


def test_one_expert_is_balanced_softmax_twice() -> None:
    experts, target = batch(k=1)
    loss = NCLLoss(COUNTS, 4)  # all categories are hard
    adjusted = experts[0] + torch.tensor(COUNTS).double().log()
    expected = 2 * torch_f.cross_entropy(adjusted, target)
    torch.testing.assert_close(loss(experts, target), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_float32_arithmetic(dtype: torch.dtype) -> None:
    experts, target = batch()
    leaf = experts.to(dtype).requires_grad_()
    for masking in ("zero", "exclude"):
        value = NCLLoss(COUNTS, 2, masking=masking)(leaf, target)  # type: ignore[arg-type]
        assert value.dtype == torch.float32
        assert torch.autograd.grad(value, leaf)[0].dtype == dtype


# --- state ----------------------------------------------------------------------------------------


def test_state_travels() -> None:
    experts, target = batch()
    loss = NCLLoss(COUNTS)
    loss.on_epoch_start(3)
    expected = loss(experts, target)
    fresh = NCLLoss([9, 9, 9, 8])
    fresh.load_state_dict(loss.state_dict())
    for other in (fresh, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(other(experts, target), expected, rtol=0, atol=0)
    assert all(x.dtype == torch.float64 for x in loss.half().buffers())
    torch.testing.assert_close(NCLLoss(cls_num_list=COUNTS)(experts, target), expected)


def test_traces_in_one_graph() -> None:
    experts, target = batch()
    loss = NCLLoss(COUNTS, 2, masking="exclude")
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(experts, target), loss(experts, target))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: NCLLoss(), TypeError, "`NCLLoss`: expected `class_counts`"),
        (lambda: NCLLoss(COUNTS, 5), ValueError, r"`hcm_n` in 1\.\.C = 1\.\.4, got 5"),
        (lambda: NCLLoss(COUNTS, 0), ValueError, "`hcm_n` in"),
        (lambda: NCLLoss(COUNTS, 1.5), TypeError, "`hcm_n` to be an int"),  # type: ignore[arg-type]
        (lambda: NCLLoss(COUNTS, masking="inf"), ValueError, "'zero' or 'exclude', got 'inf'"),  # type: ignore[arg-type]
        (lambda: NCLLoss(COUNTS, eps=-1.0), ValueError, "`eps` >= 0"),
        (lambda: NCLLoss(COUNTS, preset="both"), ValueError, "`preset`"),  # type: ignore[arg-type]
        (lambda: NCLLoss(COUNTS, expert_reduction="max"), ValueError, "`expert_reduction`"),  # type: ignore[arg-type]
        (lambda: NCLLoss([1, 2])(*batch()), ValueError, "of C = 2 classes, got 4"),
        (lambda: NCLLoss(COUNTS)(batch()[0][0], batch()[1]), ValueError, r"\[K, N, C\]"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
