"""The definition of adjusted_cross_entropy against the official codes, torch and autograd."""

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
from ltkernels.reference import adjusted_cross_entropy

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
INF = float("inf")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), logits)[0]


# --- official vectors -----------------------------------------------------------------------------


def test_official_ldam() -> None:
    case = load_case("bkd", "ldam_C10_none_f64")
    cosines = case.leaf("cosine_logits")
    loss = adjusted_cross_entropy(
        cosines, case["target"], scale=case.params["s"], margin=case["m_list"]
    )
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    torch.testing.assert_close(gradient(loss, cosines), case["grad"], **EXACT)


@pytest.mark.parametrize("case_id", cases("ride", "LDAMLoss.forward"))
def test_official_ldam_on_scaled_logits(case_id: str) -> None:
    case = load_case("ride", case_id)
    logits = case.leaf("logits")
    loss = adjusted_cross_entropy(logits, case["target"], margin=case.params["s"] * case["m_list"])
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    torch.testing.assert_close(gradient(loss, logits), case["grad_logits"], **EXACT)


@pytest.mark.parametrize("case_id", cases("ride", "CrossEntropyLoss.forward"))
def test_official_weighted_cross_entropy(case_id: str) -> None:
    case = load_case("ride", case_id)
    logits = case.leaf("logits")
    loss = adjusted_cross_entropy(logits, case["target"], class_weight=case["per_cls_weights"])
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    torch.testing.assert_close(gradient(loss, logits), case["grad_logits"], **EXACT)


@pytest.mark.parametrize("case_id", cases("ride", "FocalLoss.forward"))
def test_official_focal(case_id: str) -> None:
    case = load_case("ride", case_id)
    logits = case.leaf("logits")
    loss = adjusted_cross_entropy(logits, case["target"], focal_gamma=case.params["gamma"])
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    torch.testing.assert_close(gradient(loss, logits), case["grad_logits"], **EXACT)


@pytest.mark.parametrize("case_id", cases("neighbours", "balanced_softmax_loss"))
def test_official_balanced_softmax(case_id: str) -> None:
    case = load_case("neighbours", case_id)
    logits = case.leaf("logits")
    loss = adjusted_cross_entropy(
        logits,
        case["target"],
        bias=case["cls_num_list"].double().log(),
        reduction=case.params["reduction"],
    )
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    torch.testing.assert_close(gradient(loss, logits), case["grad_logits_of_sum"], **EXACT)


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_derivatives(gamma: float, smoothing: float) -> None:
    target = torch.tensor([0, 3, -100, 1])
    weight = torch.tensor([0.5, 0.0, 1.5, 2.0], dtype=torch.float64)

    def loss(logits: Tensor, margin: Tensor, bias: Tensor) -> Tensor:
        return adjusted_cross_entropy(
            logits,
            target,
            scale=3.0,
            margin=margin,
            bias=bias,
            class_weight=weight,
            label_smoothing=smoothing,
            focal_gamma=gamma,
        )

    inputs = [x.requires_grad_() for x in (draw(4, 4), draw(4, seed=1), draw(4, seed=2))]
    assert gradcheck(loss, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(loss, inputs)


# --- what the formula says ------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(0, 10_000))
few_examples = settings(max_examples=60, deadline=None)


@few_examples
@given(sizes, st.booleans(), st.sampled_from([0.0, 0.1]), st.sampled_from(["mean", "sum", "none"]))
def test_unadjusted_it_is_torch_cross_entropy(
    size: tuple[int, int, int], weighted: bool, smoothing: float, reduction: Any
) -> None:
    n, c, seed = size
    logits = draw(n, c, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(c, (n,), generator=generator)
    target[torch.rand(n, generator=generator) < 0.2] = -7
    weight = draw(c, seed=seed + 1).abs() if weighted else None
    ours, theirs = (x.clone().requires_grad_() for x in (logits, logits))
    loss = adjusted_cross_entropy(
        ours,
        target,
        class_weight=weight,
        label_smoothing=smoothing,
        ignore_index=-7,
        reduction=reduction,
    )
    expected = torch_f.cross_entropy(
        theirs,
        target,
        weight,
        label_smoothing=smoothing,
        ignore_index=-7,
        reduction=reduction,
    )
    torch.testing.assert_close(loss, expected, equal_nan=True)
    torch.testing.assert_close(gradient(loss, ours), gradient(expected, theirs), equal_nan=True)


@few_examples
@given(sizes, st.floats(0.1, 64))
def test_adjustments_adjust_the_logits(size: tuple[int, int, int], scale: float) -> None:
    n, c, seed = size
    logits, margin, bias = draw(n, c, seed=seed), draw(c, seed=seed + 1), draw(c, seed=seed + 2)
    target = torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed))
    adjusted = logits - margin[target].unsqueeze(1) * torch_f.one_hot(target, c)
    torch.testing.assert_close(
        adjusted_cross_entropy(logits, target, scale=scale, margin=margin, bias=bias),
        torch_f.cross_entropy(scale * adjusted + bias, target),
    )


@few_examples
@given(sizes, st.floats(-40, 40))
def test_a_constant_bias_changes_nothing(size: tuple[int, int, int], shift: float) -> None:
    n, c, seed = size
    logits, bias = draw(n, c, seed=seed), draw(c, seed=seed + 1)
    target = torch.randint(c, (n,), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        adjusted_cross_entropy(logits, target, bias=bias + shift),
        adjusted_cross_entropy(logits, target, bias=bias),
    )


def test_focal_factor_multiplies_the_weighted_row_loss() -> None:
    logits, target = draw(4, 5), torch.tensor([0, 4, 2, 2])
    weight = draw(5, seed=1).abs()
    row = torch_f.cross_entropy(logits, target, weight, reduction="none")
    expected = (1 - torch.exp(-row)) ** 1.5 * row
    for reduction, value in (
        ("none", expected),
        ("sum", expected.sum()),
        ("mean", expected.sum() / weight[target].sum()),
    ):
        loss = adjusted_cross_entropy(
            logits, target, class_weight=weight, focal_gamma=1.5, reduction=reduction
        )
        torch.testing.assert_close(loss, value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    logits = draw(3, 4, dtype=dtype).requires_grad_()
    loss = adjusted_cross_entropy(logits, torch.tensor([0, 3, 2]), bias=draw(4))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient(loss, logits).dtype == dtype


# --- the edges ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_infinite_logits(gamma: float) -> None:
    logits = draw(5, 4)
    logits[0, 1] = -INF
    logits[1, 2] = -INF  # the label
    logits[2] = -INF
    logits[3] = -INF  # ignored
    logits.requires_grad_()
    target = torch.tensor([0, 2, 1, -100, 3])
    loss = adjusted_cross_entropy(logits, target, focal_gamma=gamma, reduction="none")
    assert loss[[0, 4]].isfinite().all()
    assert loss[1] == INF
    assert loss[2].isnan()
    assert loss[3] == 0
    grad = gradient(loss, logits)
    assert grad[[0, 1, 3, 4]].isfinite().all()
    assert grad[2].isnan().all()
    assert grad[0, 1] == 0
    assert grad[1, 2] == 0
    assert (grad[3] == 0).all()
    torch.testing.assert_close(
        grad[1], torch.where(logits[1] == -INF, 0.0, torch.softmax(logits[1].detach(), 0))
    )
    rest = adjusted_cross_entropy(logits[:1, [0, 2, 3]], target[:1], focal_gamma=gamma)
    torch.testing.assert_close(loss[0], rest)


def test_infinite_bias_takes_a_class_out() -> None:
    logits = draw(2, 3).requires_grad_()
    bias = torch.tensor([0.0, 0.0, -INF], dtype=torch.float64)
    loss = adjusted_cross_entropy(logits, torch.tensor([0, 1]), bias=bias)
    torch.testing.assert_close(loss, adjusted_cross_entropy(logits[:, :2], torch.tensor([0, 1])))
    assert (gradient(loss, logits)[:, 2] == 0).all()


def test_smoothing_over_an_infinite_logit_is_infinite_unless_its_weight_is_zero() -> None:
    logits = draw(2, 3)
    logits[:, 2] = -INF
    logits.requires_grad_()
    target = torch.tensor([0, 1])
    loss = adjusted_cross_entropy(logits, target, label_smoothing=0.1)
    assert loss == INF
    assert gradient(loss, logits).isfinite().all()
    weight = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    loss = adjusted_cross_entropy(logits, target, label_smoothing=0.1, class_weight=weight)
    assert loss.isfinite()
    assert gradient(loss, logits).isfinite().all()


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_focal_gradient_where_the_loss_vanishes(gamma: float) -> None:
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    loss = adjusted_cross_entropy(logits, torch.tensor([0, 0]), focal_gamma=gamma)
    assert loss == 5e3
    assert torch.equal(gradient(loss, logits), torch.tensor([[0.0, 0.0], [-0.5, 0.5]]))


def test_rows_that_count_for_nothing() -> None:
    logits = draw(2, 3).requires_grad_()
    ignored = torch.tensor([-100, -100])
    assert adjusted_cross_entropy(logits, ignored).isnan()
    assert adjusted_cross_entropy(logits, ignored, reduction="sum") == 0
    empty, none = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    assert adjusted_cross_entropy(empty, none).isnan()
    assert adjusted_cross_entropy(empty, none, reduction="sum") == 0
    assert adjusted_cross_entropy(empty, none, reduction="none").shape == (0,)


def test_an_ignore_index_inside_the_classes() -> None:
    logits, target = draw(3, 4), torch.tensor([0, 2, 3])
    torch.testing.assert_close(
        adjusted_cross_entropy(logits, target, ignore_index=2),
        torch_f.cross_entropy(logits, target, ignore_index=2),
    )


# --- transforms -----------------------------------------------------------------------------------


def test_vmap_and_func_grad() -> None:
    logits, target = draw(2, 3, 4), torch.tensor([[0, 1, -100], [3, 3, 0]])
    weight = draw(4, seed=1).abs()

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return adjusted_cross_entropy(
            logits, target, margin=weight, class_weight=weight, focal_gamma=1.0
        )

    expected = torch.stack([loss(*x) for x in zip(logits, target, strict=True)])
    torch.testing.assert_close(torch.vmap(loss)(logits, target), expected)
    leaf = logits.clone().requires_grad_()
    one_by_one = torch.stack([loss(*x) for x in zip(leaf, target, strict=True)])
    torch.testing.assert_close(
        torch.vmap(torch.func.grad(loss))(logits, target), gradient(one_by_one, leaf)
    )


def test_traces_in_one_graph() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return adjusted_cross_entropy(logits, target, label_smoothing=0.1, focal_gamma=2.0)

    logits, target = draw(3, 4).requires_grad_(), torch.tensor([0, -100, 2])
    eager = adjusted_cross_entropy(logits, target, label_smoothing=0.1, focal_gamma=2.0)
    traced = loss(logits, target)
    torch.testing.assert_close(traced, eager)
    torch.testing.assert_close(gradient(traced, logits), gradient(eager, logits))


# --- errors ---------------------------------------------------------------------------------------

X, Y = torch.zeros(3, 4), torch.tensor([0, 1, 2])
BAD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "`adjusted_cross_entropy`: expected `logits` to be a Tensor", {"logits": None}),
    (ValueError, r"`logits` to be \[N, C\]", {"logits": torch.zeros(3, 0)}),
    (TypeError, "`target` to be int64 class indices, got torch.float32", {"target": X}),
    (ValueError, r"`target` to be \[N\] = \[3\], got \[3, 1\]", {"target": Y.unsqueeze(1)}),
    (IndexError, r"`target` in 0\.\.3, got 4", {"target": torch.tensor([0, 4, -100])}),
    (IndexError, r"`target` in 0\.\.3, got -1", {"target": torch.tensor([0, -1, -100])}),
    (TypeError, "`scale` to be a number, got Tensor", {"scale": torch.ones(4)}),
    (ValueError, "`scale` to be finite and > 0", {"scale": 0.0}),
    (ValueError, r"`margin` to be \[C\] = \[4\], got \[3\]", {"margin": torch.ones(3)}),
    (ValueError, r"`bias` to be \[C\]", {"bias": torch.ones(1, 4)}),
    (TypeError, "`bias` to be a Tensor, got list", {"bias": [0.0] * 4}),
    (ValueError, "`class_weight` >= 0", {"class_weight": -torch.ones(4)}),
    (ValueError, r"`label_smoothing` in 0\.\.1, got 1.5", {"label_smoothing": 1.5}),
    (ValueError, "`focal_gamma` to be finite, >= 0", {"focal_gamma": -1.0}),
    (TypeError, "`ignore_index` to be an int", {"ignore_index": 1.0}),
    (ValueError, "`reduction`", {"reduction": "batchmean"}),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD)
def test_errors(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        adjusted_cross_entropy(**{"logits": X, "target": Y, **change})
