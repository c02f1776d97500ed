"""The definition of info_nce against the official vectors, autograd and cross-entropy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as torch_f

from golden_vectors import load_case
from ltkernels import functional, reference
from ltkernels.reference import info_nce

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.sum(), inputs)


def test_official_moco() -> None:
    case = load_case("ecl_base_ncl", "moco_B4_d16_K64_n2_T0.2_f64")
    query = case.leaf("q")
    terms = [
        info_nce(torch_f.normalize(q, dim=1), torch_f.normalize(k, dim=1), queue.t(), 0.2)
        for q, k, queue in zip(query, case["k"], case["queue"], strict=True)
    ]
    loss = torch.stack(terms).sum()
    torch.testing.assert_close(loss, case["loss_con"], **EXACT)
    torch.testing.assert_close(gradients(loss, query)[0], case["grad_q"], **EXACT)


@pytest.mark.parametrize("temperature", [torch.tensor(0.5), torch.tensor([[0.3], [0.5], [2.0]])])
def test_derivatives(temperature: Tensor) -> None:
    def loss(query: Tensor, temperature: Tensor) -> Tensor:
        return info_nce(query, key, queue, temperature, "none")

    key, queue = draw(3, 4, seed=1), draw(6, 4, seed=2)
    inputs = (draw(3, 4).requires_grad_(), temperature.double().requires_grad_())
    assert gradcheck(loss, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(loss, inputs)


few_examples = settings(max_examples=40, deadline=None)
sizes = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(0, 9), st.integers(0, 10_000))


@few_examples
@given(sizes, st.floats(0.05, 10), st.sampled_from(["mean", "sum", "none"]))
def test_it_is_cross_entropy_of_similarities(
    size: tuple[int, int, int, int], temperature: float, reduction: Any
) -> None:
    n, d, q, seed = size
    query, key, queue = draw(n, d, seed=seed), draw(n, d, seed=seed + 1), draw(q, d, seed=seed + 2)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.t()], dim=1)
    expected = torch_f.cross_entropy(
        logits / temperature, torch.zeros(n, dtype=torch.int64), reduction=reduction
    )
    loss = info_nce(query, key, queue, temperature, reduction)
    torch.testing.assert_close(loss, expected)
    assert (loss >= 0).all()
    order = torch.randperm(q, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(info_nce(query, key, queue[order], temperature, reduction), loss)


def test_key_and_queue_are_constants() -> None:
    inputs = [draw(3, 4, seed=seed).requires_grad_() for seed in range(3)]
    grads = torch.autograd.grad(info_nce(*inputs), inputs, allow_unused=True)
    assert grads[0] is not None
    assert grads[1] is None
    assert grads[2] is None


def test_edges() -> None:
    query, key = draw(3, 4).requires_grad_(), draw(3, 4, seed=1)
    empty = info_nce(query, key, key[:0])
    assert empty == 0
    assert (gradients(empty, query)[0] == 0).all()
    nothing = torch.zeros(0, 4, requires_grad=True)
    assert info_nce(nothing, nothing, key).isnan()
    assert info_nce(nothing, nothing, key, reduction="sum") == 0
    assert info_nce(nothing, nothing, key, reduction="none").shape == (0,)
    huge = (1e5 * draw(3, 4, dtype=torch.float32)).requires_grad_()
    loss = info_nce(huge, key.float(), draw(7, 4, seed=2).float(), 0.05)
    assert loss.isfinite()
    assert gradients(loss, huge)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    query = draw(3, 4, dtype=dtype).requires_grad_()
    loss = info_nce(query, draw(3, 4, seed=1, dtype=dtype), draw(5, 4, dtype=torch.float32))
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradients(loss, query)[0].dtype == dtype


def test_arithmetic_is_float32_under_autocast() -> None:
    query, key, queue = (draw(3, 4, seed=seed, dtype=torch.float32) for seed in range(3))
    expected = info_nce(query, key, queue)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(info_nce(query, key, queue), expected, rtol=0, atol=0)


def test_vmap_and_func_grad() -> None:
    query, key, queue = draw(2, 3, 4), draw(2, 3, 4, seed=1), draw(2, 5, 4, seed=2)
    grads = torch.vmap(torch.func.grad(info_nce))(query, key, queue)
    leaf = query.clone().requires_grad_()
    one_by_one = torch.stack([info_nce(*x) for x in zip(leaf, key, queue, strict=True)])
    torch.testing.assert_close(torch.vmap(info_nce)(query, key, queue), one_by_one)
    torch.testing.assert_close(grads, gradients(one_by_one, leaf)[0])


def test_traces_in_one_graph() -> None:
    query, key, queue = draw(3, 4).requires_grad_(), draw(3, 4, seed=1), draw(5, 4, seed=2)
    traced = torch.compile(info_nce, fullgraph=True, backend="aot_eager")(query, key, queue)
    eager = info_nce(query, key, queue)
    torch.testing.assert_close(traced, eager)
    torch.testing.assert_close(gradients(traced, query)[0], gradients(eager, query)[0])


def test_functional_is_the_same_op() -> None:
    call = (draw(3, 4), draw(3, 4, seed=1), draw(5, 4, seed=2), 0.3, "none")
    torch.testing.assert_close(functional.info_nce(*call), info_nce(*call))  # type: ignore[arg-type]
    assert functional.info_nce.__doc__ == reference.info_nce.__doc__


Q, U = torch.zeros(3, 4), torch.zeros(5, 4)
BAD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, r"`info_nce`: expected `query` to be \[N, D\]", {"query": Q[0]}),
    (ValueError, r"`key` to be \[N, D\] = \[3, 4\], got \[2, 4\]", {"key": Q[:2]}),
    (ValueError, r"`queue` to be \[Q, D\] = \[5, 4\], got \[5, 3\]", {"queue": U[:, :3]}),
    (TypeError, "`queue` to be float16", {"queue": U.long()}),
    (ValueError, "`key` to be on cpu", {"key": Q.to("meta")}),
    (ValueError, "`temperature` to be finite and > 0", {"temperature": 0.0}),
    (ValueError, r"`temperature` to be a number or \[N, 1\]", {"temperature": torch.ones(6)}),
    (ValueError, r"`temperature` .* got \[2, 1\]", {"temperature": torch.ones(2, 1)}),
    (ValueError, "`temperature` > 0", {"temperature": torch.zeros(3, 1)}),
    (ValueError, "`reduction`", {"reduction": "batchmean"}),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD)
def test_errors(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        info_nce(**{"query": Q, "key": Q, "queue": U, **change})
