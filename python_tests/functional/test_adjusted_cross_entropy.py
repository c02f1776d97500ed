"""Fused adjusted_cross_entropy against its definition, over random calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ltkernels
import strategies as draw_
from closeness import Arguments, assert_close_to_definition
from ltkernels import functional, reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INF = float("inf")


# --- random calls ---------------------------------------------------------------------------------


def log_prior(classes: int, seed: int, without: bool) -> Tensor:
    """log n_c of a long-tailed set; a class without images has -inf."""
    counts = 1000 * draw_.vector(classes, seed, 0.0, 1.0).pow(4).clamp(min=1e-3)
    if without and classes > 1:
        counts[draw_.class_indices(1, classes, seed)] = 0
    return counts.log()


def targets(rows: int, classes: int, seed: int, ignore_index: int | None) -> Tensor:
    y = draw_.class_indices(rows, classes, seed)
    if ignore_index is not None and rows > 0:
        y[torch.rand(rows, generator=draw_.generator(seed)) < 0.4] = ignore_index
    return y


@st.composite
def calls(draw: st.DrawFn, dtype: torch.dtype) -> dict[str, Any]:
    rows, classes, seed = draw(draw_.rows), draw(draw_.classes), draw(draw_.seeds)
    made, sometimes = draw_.made, st.integers(0, 2).map(lambda i: i == 2)
    call: dict[str, Any] = {
        "logits": draw(draw_.logits(rows, classes, dtype)),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }
    ignore_index = draw(st.none() | st.sampled_from([-100, -1, 0, 255, 10_000]))
    call["target"] = made(targets, rows, classes, seed, ignore_index)
    if ignore_index is not None:
        call["ignore_index"] = ignore_index
    if draw(sometimes):
        call["scale"] = draw(st.sampled_from([30.0, 0.1, 64]))
    if draw(sometimes):
        call["margin"] = made(draw_.vector, classes, seed + 1, -0.1, 0.5)
    if draw(sometimes):
        call["bias"] = made(log_prior, classes, seed + 2, draw(st.booleans()))
    if draw(sometimes):
        zeros = draw(st.booleans())
        call["class_weight"] = made(draw_.vector, classes, seed + 3, 0.01, 2.0, zeros)
    if draw(sometimes):
        call["label_smoothing"] = draw(st.sampled_from([0.1, 1.0, 0.5, 1]))
    if draw(sometimes):
        call["focal_gamma"] = draw(st.sampled_from([0.5, 1.0, 2, 5.0]))
    return call


# --- the size of each element before cancellation -------------------------------------------------


def finite(x: Tensor) -> Tensor:
    return torch.where(x.isfinite(), x, 0.0)


def magnitudes(call: Arguments, arithmetic: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """See closeness.Magnitudes."""
    logits, ignored = call["logits"], call["target"] == call.get("ignore_index", -100)
    rows, classes = logits.shape
    target = torch.where(ignored, 0, call["target"])
    scale, smoothing = call.get("scale", 1.0), call.get("label_smoothing", 0.0)
    gamma = call.get("focal_gamma", 0.0)
    zero, one = torch.zeros(classes).double(), torch.ones(classes).double()
    margin, weight = call.get("margin", zero), call.get("class_weight", one)
    bias = call.get("bias", zero)

    y = torch.nn.functional.one_hot(target, classes).double()
    z = scale * (logits - margin * y) + bias
    # Sizes of the terms z is added up from: their rounding is in every exponent.
    terms = scale * (finite(logits).abs() + margin.abs()) + finite(bias).abs()
    plain = scale == 1.0 and not margin.any() and not bias.any()
    log_prob = torch.log_softmax(z, dim=1)
    surprise = finite(log_prob).abs()
    exponent = 1 + surprise
    if arithmetic == torch.float64:
        exponent = exponent + classes**0.5  # the definition's own sums
    if not plain or arithmetic == torch.float64:
        exponent = exponent + terms.amax(dim=1, keepdim=True)

    counts = (~ignored).double().unsqueeze(1)
    hard = counts * (1 - smoothing) * weight[target].unsqueeze(1)
    soft = counts * smoothing / classes
    mass = hard + soft * weight.sum()
    share = hard * y + soft * weight  # of each class in the loss
    log_classes = torch.log(torch.tensor(1.0 + classes))
    loss = (share * (exponent + log_classes)).sum(dim=1)
    slope_error = torch.zeros(rows, 1)
    slope = torch.ones(rows, 1)
    if gamma > 0:
        value = -torch.where(share > 0, share * log_prob, 0.0).sum(dim=1, keepdim=True)
        unsure = 8 * torch.finfo(arithmetic).eps * loss.unsqueeze(1)
        values = torch.stack([(value - unsure).clamp(min=0), value, value + unsure])
        around = focal_slope(values, gamma)
        slope = around[1]
        slope_error = around.amax(dim=0) - around.amin(dim=0)
        loss = loss * around.amax(dim=0).squeeze(1) * (1 + gamma)
    size = mass * finite(log_prob.exp()) + share
    gradient = scale * size * (slope * exponent + slope_error / torch.finfo(arithmetic).eps)
    return loss, {"logits": gradient}


def focal_slope(loss: Tensor, gamma: float) -> Tensor:
    """The derivative of l (1 - exp(-l))^gamma."""
    miss = -torch.expm1(-loss)
    inner = miss.clamp(min=1e-300)
    growth = gamma * loss * torch.exp(-loss) * inner ** (gamma - 1)
    return miss**gamma + torch.where((miss > 0) & loss.isfinite(), growth, 0.0)


def check(
    call: dict[str, Any], fused: Callable[..., Tensor] = functional.adjusted_cross_entropy
) -> None:
    assert_close_to_definition(
        fused,
        reference.adjusted_cross_entropy,
        draw_.built(call),
        ["logits"],
        ["logits"],
        magnitudes,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=settings.default.max_examples * 2)
@given(data=st.data())
def test_adjusted_cross_entropy(dtype: torch.dtype, data: st.DataObject) -> None:
    check(data.draw(calls(dtype)))


# --- cases by hand --------------------------------------------------------------------------------

NAN = float("nan")
C = 2500  # three chunks of the kernels


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(rows, columns, generator=draw_.generator(seed), dtype=torch.float64)


def case(logits: Tensor, target: Tensor, **arguments: Any) -> None:
    """Check one call, in every dtype."""
    for dtype in DTYPES:
        call = {"logits": logits.to(dtype), "target": target, "reduction": "none"}
        check({**call, **arguments})


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "all smooth": {"label_smoothing": 1.0},
    "focal": {"focal_gamma": 2.0},
    "scale": {"scale": 3.0},
    "weights": {"class_weight": torch.linspace(0, 2, C)},
    "weights and smoothing": {"class_weight": torch.linspace(0, 2, C), "label_smoothing": 0.3},
}
each_option = pytest.mark.parametrize("option", OPTIONS)


@each_option
@pytest.mark.parametrize("level", [-300.0, 0.0, 300.0, -2e4])
def test_first_finite_logit_in_a_later_chunk(option: str, level: float) -> None:
    x = normal(3, C) + level
    x[0, :1100] = -INF
    x[1, :-1] = -INF
    case(x, torch.tensor([2000, 2499, 0]), **OPTIONS[option])
    case(x, torch.tensor([0, 0, 1]), **OPTIONS[option])


@each_option
def test_maximum_grows_from_chunk_to_chunk(option: str) -> None:
    ramp = torch.linspace(-1e4, 1e4, C, dtype=torch.float64)
    x = normal(2, C) + torch.stack([ramp, -ramp])
    case(x, torch.tensor([2499, 2499]), **OPTIONS[option])


@each_option
def test_an_impossible_class(option: str) -> None:
    """-inf at the target makes the row +inf; elsewhere it is a class that does not take part."""
    x = normal(4, C)
    x[1, 5] = -INF
    x[2, 1500] = -INF
    case(x, torch.tensor([0, 5, 6, 2400]), **OPTIONS[option])
    bias = torch.zeros(C)
    bias[[5, 1500]] = -INF
    case(normal(4, C), torch.tensor([0, 5, 1500, 2400]), bias=bias, **OPTIONS[option])


@pytest.mark.parametrize("value", [-INF, NAN, INF])
def test_a_bad_row_poisons_itself_only(value: float) -> None:
    x = normal(3, 20)
    x[1, slice(None) if value == -INF else 7] = value
    x.requires_grad_()
    loss = functional.adjusted_cross_entropy(x, torch.tensor([0, 1, 2]), reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert gradient.isnan().all(dim=1).tolist() == [False, True, False]
    assert gradient.isnan().any(dim=1).tolist() == [False, True, False]


def test_an_ignored_row_is_never_looked_at() -> None:
    x = normal(3, 20)
    x[1] = NAN
    for reduction in ("mean", "sum", "none"):
        case(x, torch.tensor([3, -7, 4]), ignore_index=-7, reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("rows", [0, 3])
def test_no_row_counts(reduction: str, rows: int) -> None:
    x = torch.randn(rows, 5, requires_grad=True)
    target = torch.full((rows,), -100)
    loss = functional.adjusted_cross_entropy(x, target, reduction=reduction)
    assert loss.shape == ((rows,) if reduction == "none" else ())
    assert loss.isnan() if reduction == "mean" else not loss.any()
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert gradient.shape == (rows, 5)
    assert not gradient.any()


def test_weights_of_zero() -> None:
    case(normal(3, 5), torch.tensor([0, 1, 1]), class_weight=torch.tensor([1.0, 0, 1, 1, 1]))
    zeros = torch.zeros(5)
    for reduction in ("mean", "sum"):
        case(normal(3, 5), torch.tensor([0, 1, 1]), class_weight=zeros, reduction=reduction)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5])
def test_focal_loss_of_certain_and_of_hopeless_rows(gamma: float) -> None:
    x = torch.tensor([[0.0, -40], [0, -200], [0, 40], [0, 3000], [0, -INF], [-INF, 0], [0, -12]])
    case(x.double(), torch.zeros(7, dtype=torch.int64), focal_gamma=gamma)


def test_one_class_has_neither_loss_nor_gradient() -> None:
    for dtype in DTYPES:
        x = torch.tensor([[3.0], [-1e4]], dtype=dtype, requires_grad=True)
        one = torch.ones(1)
        loss = functional.adjusted_cross_entropy(
            x, torch.tensor([0, 0]), margin=one, bias=one, class_weight=one, label_smoothing=0.1
        )
        assert loss.abs() < 1e-3 * (dtype != torch.float64) + 1e-9
        assert torch.autograd.grad(loss, x)[0].abs().max() < 1e-6


def test_equals_cross_entropy_of_torch() -> None:
    x, weight = normal(50, 33), torch.rand(33, dtype=torch.float64)
    target = draw_.class_indices(50, 33, 1)
    target[::7] = -100
    for smoothing in (0.0, 0.2):
        options = {"reduction": "mean", "label_smoothing": smoothing}
        ours = functional.adjusted_cross_entropy(x, target, class_weight=weight, **options)
        theirs = torch.nn.functional.cross_entropy(x, target, weight, **options)
        torch.testing.assert_close(ours, theirs)


# --- the comparison can fail ----------------------------------------------------------------------


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_an_error_in_one_element_is_found(
    monkeypatch: pytest.MonkeyPatch, output: int, dtype: torch.dtype
) -> None:
    kernel = ltkernels._ops.adjusted_cross_entropy
    relative = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 2e-2}[dtype]
    if output == 0:
        relative = 1e-12 if dtype == torch.float64 else 3e-5

    def perturbed(*args: Any) -> tuple[Tensor, ...]:
        outputs = tuple(x.clone() for x in kernel(*args))
        if outputs[output].numel() > 0:
            flat = outputs[output].view(-1)
            flat[flat.abs().argmax()] *= 1 + relative
        return outputs

    call = {"logits": normal(3, 11).to(dtype), "target": torch.tensor([1, 2, 3])}
    call["reduction"] = "none"
    check(call)
    monkeypatch.setattr(ltkernels._ops, "adjusted_cross_entropy", perturbed)
    with pytest.raises(AssertionError):
        check(call)
