"""Fused knowledge_balance_weight against its definition, over random calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import strategies as draw_
from golden_vectors import cases, load_case
from ltkernels import _ops, functional, reference
from ltkernels.functional import knowledge_balance_weight

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INF, NAN = float("inf"), float("nan")
ULPS = 8


def sizes(logits: Tensor, target: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The cross-entropy of a head, and what a unit in the last place of its steps adds to it."""
    kept = logits != -INF
    count = kept.sum(dim=1)
    finite = torch.where(kept & logits.isfinite(), logits, 0.0)
    mean = finite.sum(dim=1, keepdim=True) / count.unsqueeze(1)
    squares = torch.where(kept, finite - mean, 0.0).square().sum(dim=1)
    sigma = (squares / (count - 1).clamp(min=1)).sqrt().clamp(min=eps)
    log_prob = torch.log_softmax(logits / sigma.unsqueeze(1), dim=1)
    loss = -log_prob.gather(1, target.unsqueeze(1)).squeeze(1)
    # The definition divides before it subtracts the maximum.
    largest = finite.abs().amax(dim=1) / sigma
    return loss, 1 + loss + largest + (1 + count).log()


def check(ref: Tensor, cls: Tensor, target: Tensor, **options: Any) -> None:
    arithmetic = torch.float64 if torch.float64 in (ref.dtype, cls.dtype) else torch.float32
    before = ref.clone(), cls.clone()
    ours = knowledge_balance_weight(ref, cls, target, **options)
    assert all(
        torch.equal(x.nan_to_num(7e4), y.nan_to_num(7e4))
        for x, y in zip(before, (ref, cls), strict=True)
    )
    plain = reference.knowledge_balance_weight(ref, cls, target, **options)
    exact = reference.knowledge_balance_weight(ref.double(), cls.double(), target, **options)
    assert ours.dtype == plain.dtype == arithmetic
    assert ours.shape == target.shape
    assert not ours.requires_grad
    assert torch.equal(ours.isnan(), plain.isnan()), (ours, plain)
    assert torch.equal(ours.isinf(), plain.isinf()), (ours, plain)
    eps = options.get("eps", 1e-6)
    of_ref, ref_size = sizes(ref.double(), target, eps)
    _, cls_size = sizes(cls.double(), target, eps)
    divisor = of_ref.clamp(min=eps)
    relative = torch.where(of_ref.isinf(), 1.0, ref_size / divisor)
    rounding = ULPS * torch.finfo(arithmetic).eps * (cls_size / divisor + exact * relative)
    error, allowed = (ours - exact).abs(), 2 * (plain - exact).abs() + rounding
    bad = exact.isfinite() & ~(error <= allowed)
    assert not bad.any(), (ours[bad], exact[bad], plain[bad], allowed[bad])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=settings.default.max_examples * 2)
@given(data=st.data())
def test_knowledge_balance_weight(dtype: torch.dtype, data: st.DataObject) -> None:
    rows, classes = data.draw(draw_.rows), data.draw(draw_.classes)
    other = data.draw(st.just(dtype) | st.sampled_from(DTYPES))
    ref = data.draw(draw_.logits(rows, classes, dtype)).build()
    cls = data.draw(draw_.logits(rows, classes, other)).build()
    target = draw_.class_indices(rows, classes, data.draw(draw_.seeds))
    eps = data.draw(st.sampled_from([{}, {"eps": 0.1}, {"eps": 3}]))
    check(ref, cls, target, **eps)


def normal(rows: int, columns: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(rows, columns, generator=draw_.generator(seed), dtype=torch.float64)


UNBIASED = [
    case_id
    for case_id in cases("derived", "ECL eqs. 5-6")
    if "unbiased=True" in load_case("derived", case_id).params["std"]
]


@pytest.mark.parametrize("case_id", UNBIASED)
def test_golden_vectors(case_id: str) -> None:
    case = load_case("derived", case_id)
    for ref, cls, expected in zip(
        case["ref_logits"], case["cls_logits"], case["weight"], strict=True
    ):
        heads = (ref, cls) if "rhs" in case_id else (cls, ref)
        weight = knowledge_balance_weight(*heads, case["target"])
        torch.testing.assert_close(weight, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deviation_beside_a_large_mean(dtype: torch.dtype) -> None:
    """E[x^2] - E[x]^2 would have no digit left."""
    for level in (300.0, -2e4):
        ref = (normal(5, 3000) + level).to(dtype)
        check(ref, normal(5, 3000, 1).to(dtype), torch.arange(5) * 7)
    shifted = knowledge_balance_weight(
        normal(5, 3000).float() + 3000, normal(5, 3000, 1).float(), torch.arange(5)
    )
    exact = knowledge_balance_weight(normal(5, 3000), normal(5, 3000, 1), torch.arange(5))
    torch.testing.assert_close(shifted.double(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("classes", [1, 2, 3, 20, 2500])
@pytest.mark.parametrize("value", [-INF, INF, NAN])
def test_what_is_not_finite(classes: int, value: float) -> None:
    """At the target and beside it, in either head."""
    target = torch.zeros(4, dtype=torch.int64)
    for dtype in DTYPES:
        ref, cls = normal(4, classes).to(dtype), normal(4, classes, 1).to(dtype)
        ref[0, 0] = cls[1, 0] = ref[2, -1] = cls[3, -1] = value
        check(ref, cls, target)


def test_a_bad_row_poisons_itself_only() -> None:
    ref, cls = normal(4, 20), normal(4, 20, 1)
    ref[1], cls[2, 3] = -INF, NAN
    weight = knowledge_balance_weight(ref, cls, torch.arange(4))
    assert weight.isnan().tolist() == [False, True, True, False]


def test_equal_logits_have_the_least_deviation() -> None:
    ref, cls = torch.full((3, 50), 4.0), normal(3, 50).float()
    check(ref, cls, torch.arange(3))
    check(cls, ref, torch.arange(3), eps=0.5)


def test_heads_may_require_gradients() -> None:
    ref, cls = normal(3, 5).requires_grad_(), normal(3, 5, 1).requires_grad_()
    weight = knowledge_balance_weight(ref, cls, torch.arange(3))
    assert not weight.requires_grad
    with torch.no_grad():
        assert torch.equal(weight, knowledge_balance_weight(ref, cls, torch.arange(3)))


def test_no_rows() -> None:
    empty = torch.zeros(0, 5)
    weight = knowledge_balance_weight(empty, empty, torch.zeros(0, dtype=torch.int64))
    assert weight.shape == (0,)


def test_arithmetic_is_float32_under_autocast_and_compiled() -> None:
    ref, cls, target = normal(4, 70).bfloat16(), normal(4, 70, 1).bfloat16(), torch.arange(4)
    expected = knowledge_balance_weight(ref, cls, target)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(knowledge_balance_weight(ref, cls, target), expected)
    torch.compiler.reset()
    compiled = torch.compile(knowledge_balance_weight, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ref, cls, target), expected)


def test_vmap_takes_the_definition() -> None:
    ref, cls, target = normal(6, 5).view(2, 3, 5), normal(6, 5, 1).view(2, 3, 5), torch.arange(3)
    batched = torch.func.vmap(lambda a, b: knowledge_balance_weight(a, b, target))(ref, cls)
    each = [reference.knowledge_balance_weight(a, b, target) for a, b in zip(ref, cls, strict=True)]
    torch.testing.assert_close(batched, torch.stack(each))


def test_same_bits_for_any_number_of_threads() -> None:
    ref, cls, target = normal(67, 1500).float(), normal(67, 1500, 1).float(), torch.arange(67)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(knowledge_balance_weight(ref, cls, target))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, results[0]) for x in results)


def test_the_kernel_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ops, "knowledge_balance_weight", lambda *_: torch.tensor(5.0))
    call = (normal(3, 5), normal(3, 5, 1), torch.arange(3))
    assert functional.knowledge_balance_weight(*call) == 5


def test_an_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    call = (normal(3, 11).float(), normal(3, 11, 1).float(), torch.arange(3))
    check(*call)
    kernel = _ops.knowledge_balance_weight
    monkeypatch.setattr(_ops, "knowledge_balance_weight", lambda *args: kernel(*args) * (1 + 1e-4))
    with pytest.raises(AssertionError):
        check(*call)
