"""Fused info_nce against its definition, over random calls; its memory, threads and modes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import normalize

import ltkernels
import strategies as draw_
from closeness import Arguments, assert_close_to_definition
from golden_vectors import load_case
from ltkernels import _C, _ops, functional, reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DATA = ("query", "key", "queue")
INF, NAN = float("inf"), float("nan")


# --- random calls ---------------------------------------------------------------------------------

# Every remainder of the kernels' steps of 8, 4, 2 and 1, and both sides of their blocks of 64.
columns = st.integers(1, 70) | st.sampled_from([64, 127, 128, 129, 300, 1025])
queue_rows = st.integers(0, 70) | st.sampled_from([64, 127, 128, 129, 1000])
row_counts = draw_.rows | st.sampled_from([31, 32, 33, 65])


@st.composite
def calls(draw: st.DrawFn, dtype: torch.dtype) -> dict[str, Any]:
    rows, width, size = draw(row_counts), draw(columns), draw(queue_rows)
    others = [draw(st.just(dtype) | st.sampled_from(DTYPES)) for _ in range(2)]
    temperature = draw(draw_.temperatures(rows, 1).filter(lambda t: t.kind != "class"))
    return {
        "query": draw(draw_.logits(rows, width, dtype)),
        "key": draw(draw_.logits(rows, width, others[0])),
        "queue": draw(draw_.logits(size, width, others[1])),
        "temperature": temperature,
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
    }


def finite(x: Tensor) -> Tensor:
    return torch.where(x.isfinite(), x, 0.0)


def magnitudes(call: Arguments, arithmetic: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    """See closeness.Magnitudes. The rounding of a similarity's terms is in every exponent."""
    query, key, queue = (finite(call[name]) for name in DATA)
    temperature = call.get("temperature", 0.2)
    if isinstance(temperature, Tensor) and temperature.numel() == 1:
        temperature = temperature.reshape(())
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.t()], 1) / temperature
    terms = torch.cat([(query * key).abs().sum(1, keepdim=True), query.abs() @ queue.abs().t()], 1)
    exponent = (1 + (terms / temperature).amax(1, keepdim=True)) * query.shape[1] ** 0.5
    if arithmetic == torch.float64:
        exponent = exponent * (1 + queue.shape[0]) ** 0.5  # the definition's own sums
    p = torch.softmax(logits, dim=1)
    size = (p[:, 1:] @ queue.abs() + p[:, 1:].sum(1, keepdim=True) * key.abs()) / temperature
    # The definition takes p_0 - 1 at its word, which float64 has in steps of its own.
    lost = torch.finfo(torch.float64).eps / torch.finfo(arithmetic).eps
    size = size + lost * key.abs() / temperature
    loss = exponent.squeeze(1) + torch.log(torch.tensor(1.0 + logits.shape[1]))
    return loss, {"query": size * exponent}


def check(call: dict[str, Any], fused: Callable[..., Tensor] = functional.info_nce) -> None:
    assert_close_to_definition(
        fused, reference.info_nce, draw_.built(call), DATA, ["query"], magnitudes
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=settings.default.max_examples * 2)
@given(data=st.data())
def test_info_nce(dtype: torch.dtype, data: st.DataObject) -> None:
    check(data.draw(calls(dtype)))


# --- cases by hand --------------------------------------------------------------------------------


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=draw_.generator(seed), dtype=torch.float64).to(dtype)


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return normalize(draw(*shape, seed=seed), dim=1).to(dtype)


def gradient(loss: Tensor, query: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), query)[0]


def test_official_moco() -> None:
    case = load_case("ecl_base_ncl", "moco_B4_d16_K64_n2_T0.2_f64")
    query = case.leaf("q")
    terms = [
        functional.info_nce(normalize(q, dim=1), normalize(k, dim=1), queue.t(), 0.2)
        for q, k, queue in zip(query, case["k"], case["queue"], strict=True)
    ]
    loss = torch.stack(terms).sum()
    torch.testing.assert_close(loss, case["loss_con"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient(loss, query), case["grad_q"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [3, 40])
def test_a_long_queue_in_several_parts(rows: int, dtype: torch.dtype) -> None:
    query, key = unit(rows, 20, dtype=dtype), unit(rows, 20, seed=1, dtype=dtype)
    queue = unit(20_000, 20, seed=2, dtype=dtype)
    queue[[5, 9_000, 19_999]] = (3 * query[:1] + 2 * query[1:2]).to(dtype)
    tensors = {"query": query, "key": key, "queue": queue}
    for temperature in (0.05, 1.0):
        check({**tensors, "temperature": temperature, "reduction": "none"})


def test_the_maximum_grows_from_block_to_block() -> None:
    ramp = torch.linspace(-1e3, 1e3, 500, dtype=torch.float64).unsqueeze(1)
    queue = ramp * unit(1, 30, seed=3) + 0.01 * draw(500, 30, seed=4)
    for query in (draw(5, 30), -draw(5, 30)):
        for dtype in DTYPES:
            tensors = {"query": query.to(dtype), "key": draw(5, 30, seed=1).to(dtype)}
            check({**tensors, "queue": queue.to(dtype), "reduction": "none"})


def test_a_queue_kept_as_columns_is_not_copied() -> None:
    """MoCo's buffer is [D, Q]."""
    query, key, kept = unit(9, 70), unit(9, 70, seed=1), unit(300, 70, seed=2).t().contiguous()
    expected = functional.info_nce(query, key, kept.t().contiguous())
    assert torch.equal(functional.info_nce(query, key, kept.t()), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_empty_queue_is_no_contrast(dtype: torch.dtype) -> None:
    query = draw(3, 4, dtype=dtype).requires_grad_()
    loss = functional.info_nce(query, draw(3, 4, seed=1, dtype=dtype), query[:0])
    assert loss == 0
    assert not gradient(loss, query).any()


def test_no_rows() -> None:
    query = torch.zeros(0, 4, requires_grad=True)
    assert functional.info_nce(query, query, draw(5, 4).float()).isnan()
    assert functional.info_nce(query, query, query, reduction="sum") == 0
    loss = functional.info_nce(query, query, draw(5, 4).float(), reduction="none")
    assert loss.shape == (0,)
    assert gradient(loss, query).shape == (0, 4)


@pytest.mark.parametrize("value", [-INF, NAN, INF])
@pytest.mark.parametrize("which", DATA)
def test_what_is_not_finite_is_where_the_definition_has_it(which: str, value: float) -> None:
    for size in (0, 3, 100):
        tensors = {"query": draw(3, 5), "key": draw(3, 5, seed=1), "queue": draw(size, 5, seed=2)}
        if tensors[which].shape[0] > 1:
            tensors[which][1, 2] = value
        results = []
        for module in (functional, reference):
            query = tensors["query"].clone().requires_grad_()
            call = {**tensors, "query": query, "reduction": "none"}
            loss = module.info_nce(**call)
            results.append((loss.detach(), gradient(loss, query)))
        (ours, of_ours), (expected, of_expected) = results
        torch.testing.assert_close(ours, expected, equal_nan=True)
        assert torch.equal(of_ours.isnan().any(1), of_expected.isnan().any(1))
        kept = ~of_expected.isnan().any(1)
        torch.testing.assert_close(of_ours[kept], of_expected[kept])


def test_a_small_loss_keeps_its_digits() -> None:
    """1 - p_0 of 1e-12: the definition in float32 rounds it to 0."""
    query = torch.tensor([[5.0, 0.0]], requires_grad=True)
    key, queue = torch.tensor([[5.0, 0.0]]), torch.tensor([[-0.5, 1.0]])
    loss = functional.info_nce(query, key, queue, 1.0)
    exact = reference.info_nce(query.double(), key.double(), queue.double(), 1.0)
    torch.testing.assert_close(loss.double(), exact, rtol=3e-5, atol=0)
    torch.testing.assert_close(gradient(loss, query), gradient(exact, query), rtol=3e-5, atol=0)


def test_half_gradients_below_float16_survive_the_scaler() -> None:
    query, key = unit(3000, 64, dtype=torch.float16), unit(3000, 64, seed=1, dtype=torch.float16)
    queue = unit(100, 64, seed=2, dtype=torch.float16)
    gradients = []
    for module, dtype in ((functional, torch.float16), (reference, torch.float64)):
        leaf = query.to(dtype).requires_grad_()
        loss = module.info_nce(leaf, key.to(dtype), queue.to(dtype), 2e3)
        gradients.append(torch.autograd.grad(loss * 2.0**14, leaf)[0].double())
    ours, exact = gradients
    assert (exact.abs() / 2**14 < 2.0**-25).double().mean() > 0.1  # the point of this test
    torch.testing.assert_close(ours, exact, rtol=2e-3, atol=2.0**-24)


def test_half_gradients_beside_an_infinite_one_are_scaled() -> None:
    query, key = torch.ones(1, 3).half().requires_grad_(), torch.tensor([[-INF, 1e5, 1.0]])
    loss = functional.info_nce(query, key, torch.ones(2, 3))
    (grad,) = torch.autograd.grad(loss * 0.1, query)  # -5e5 before the upstream
    assert grad[0, 0] == INF
    torch.testing.assert_close(grad[0, 1].double(), torch.tensor(-5e4).double(), rtol=1e-3, atol=0)


def test_mixed_dtypes() -> None:
    """A half query against a float queue: neither is copied, the gradient is half."""
    query, key = unit(5, 33, dtype=torch.float16), unit(5, 33, seed=1, dtype=torch.bfloat16)
    for dtype in DTYPES:
        check({"query": query, "key": key, "queue": unit(70, 33, seed=2, dtype=dtype)})


# --- memory ---------------------------------------------------------------------------------------


def test_only_the_gradient_is_saved() -> None:
    query, key, queue = unit(9, 20).requires_grad_(), unit(9, 20, seed=1), unit(50, 20, seed=2)
    saved: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        functional.info_nce(query, key, queue)
    assert sorted(x.numel() for x in saved) == [0, 1, query.numel()]


def test_offsets_beyond_32_bits() -> None:
    """Rows of the queue far apart in memory that is never touched."""
    query, key, queue = (unit(3, 8, seed=seed, dtype=torch.bfloat16) for seed in range(3))
    apart = torch.empty(2**31 + 2**20, dtype=torch.bfloat16).as_strided((3, 8), (2**30 + 7, 1))
    apart.copy_(queue)
    assert torch.equal(
        functional.info_nce(query, key, apart), functional.info_nce(query, key, queue)
    )


# --- threads, instruction sets, choice ------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_every_run_and_for_any_number_of_threads(dtype: torch.dtype) -> None:
    query, key = unit(130, 40, dtype=dtype).requires_grad_(), unit(130, 40, seed=1, dtype=dtype)
    queue = unit(9000, 40, seed=2, dtype=dtype)

    def results() -> tuple[Tensor, Tensor]:
        loss = functional.info_nce(query, key, queue, reduction="none")
        return loss.detach(), gradient(loss, query)

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = results()
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            for ours, expected in zip(results(), first, strict=True):
                assert torch.equal(ours, expected)
    finally:
        torch.set_num_threads(threads)


COMPARE = """
import sys, torch, ltkernels
from ltkernels import functional, reference
assert ltkernels.info().cpu_instruction_set == sys.argv[1], ltkernels.info()
torch.manual_seed(0)
for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    for n, d, q in ((3, 1, 2), (5, 7, 70), (40, 67, 131)):
        query, key, queue = (torch.randn(m, d).to(dtype) / d**0.5 for m in (n, n, q))
        results = []
        for module in (functional, reference):
            leaf = query.clone().requires_grad_()
            loss = module.info_nce(leaf, key, queue)
            weight = module.knowledge_balance_weight(query, key, torch.arange(n) % d)
            results.append((loss.detach(), *torch.autograd.grad(loss, leaf), weight))
        (ours, gradient, weight), (loss, expected, wanted) = results
        tight = 1e-12 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(ours, loss, rtol=tight, atol=tight)
        torch.testing.assert_close(weight, wanted, rtol=tight, atol=tight)
        stored = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(dtype, tight)
        torch.testing.assert_close(gradient, expected, rtol=stored, atol=tight)
print("agrees")
"""


@pytest.mark.parametrize("isa", _C.cpu_instruction_sets.split())
def test_every_instruction_set(isa: str) -> None:
    path = os.pathsep.join(
        [str(Path(ltkernels.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    run = subprocess.run(
        [sys.executable, "-c", COMPARE, isa],
        env={**os.environ, "PYTHONPATH": path, "LTKERNELS_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    if "environment variable LTKERNELS_CPU_ISA" in run.stderr:
        pytest.skip(f"this processor does not run {isa}")
    assert run.stdout.strip() == "agrees", run.stderr[-2000:]


@pytest.mark.parametrize(
    ("why", "calls"),
    [("plain", 1), ("key and queue", 1), ("temperature", 0), ("no_grad", 1), ("vmap", 0)],
)
def test_which_implementation_is_taken(
    why: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, seen = _ops.info_nce, []
    monkeypatch.setattr(_ops, "info_nce", lambda *args: (seen.append(args), kernel(*args))[1])
    query, key, queue = draw(4, 5).requires_grad_(), draw(4, 5, seed=1), draw(6, 5, seed=2)
    temperature = torch.tensor(0.5, requires_grad=why in ("temperature", "no_grad"))
    if why == "key and queue":
        key.requires_grad_()
        queue.requires_grad_()
    if why == "vmap":
        torch.func.vmap(lambda x: functional.info_nce(x, key, queue))(query.expand(2, 4, 5))
    elif why == "no_grad":
        with torch.no_grad():
            functional.info_nce(query, key, queue, temperature)
        assert seen[0][-1] is False
    else:
        loss = functional.info_nce(query, key, queue, temperature)
        wrt = [x for x in (query, key, queue, temperature) if x.requires_grad]
        grads = torch.autograd.grad(loss, wrt, allow_unused=True)
        given = [g is not None for g in grads]
        assert given == [x is query or x is temperature for x in wrt]
    assert len(seen) == calls


# --- the comparison can fail ----------------------------------------------------------------------


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_an_error_in_one_element_is_found(
    monkeypatch: pytest.MonkeyPatch, output: int, dtype: torch.dtype
) -> None:
    kernel = ltkernels._ops.info_nce
    relative = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 3e-2}[dtype]
    if output == 0:
        relative = 1e-11 if dtype == torch.float64 else 1e-4

    def perturbed(*args: Any) -> tuple[Tensor, ...]:
        outputs = tuple(x.clone() for x in kernel(*args))
        flat = outputs[output].view(-1)
        if flat.numel() > 0:
            flat[flat.abs().argmax()] *= 1 + relative
        return outputs

    tensors = {name: unit(6, 5, seed=i, dtype=dtype) for i, name in enumerate(DATA)}
    call: dict[str, Any] = {**tensors, "temperature": 0.5, "reduction": "none"}
    check(call)
    monkeypatch.setattr(ltkernels._ops, "info_nce", perturbed)
    with pytest.raises(AssertionError):
        check(call)
