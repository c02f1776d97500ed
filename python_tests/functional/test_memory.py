"""Memory of a call, logits of more than 2^31 elements, and float16's range."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from ltkernels import _ops, functional, reference

N, C = 512, 4096
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "kd": lambda x, t, y: functional.kd_loss(x, t, 2.0),
    "kd class": lambda x, t, y: functional.kd_loss(x, t, torch.full((x.shape[1],), 2.0)),
    "kd subset": lambda x, t, y: functional.kd_loss(
        x, t[:, : C // 2], classes=torch.arange(C // 2) * 2
    ),
    "kd subsets": lambda x, t, y: functional.kd_loss(
        x,
        [t[:, :1000], t[:, 1000:]],
        classes=[torch.arange(1000), torch.arange(1000, x.shape[1]).flip(0)],
    ),
    "bkd": lambda x, t, y: functional.bkd_loss(x, t, y, torch.ones(x.shape[1])),
    "adjusted": lambda x, t, y: functional.adjusted_cross_entropy(
        x, y, bias=torch.ones(x.shape[1]), label_smoothing=0.1, focal_gamma=1.0
    ),
}


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x, t = (torch.randn(N, C, generator=random).to(dtype) for _ in range(2))
    return x, t, torch.randint(C, (N,), generator=random)


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory in use at one time above what was in use before, by torch's allocator."""
    call()  # what is kept for the next call does not count
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = call()
    del kept
    events = seen.profiler.kineto_results.events()
    sizes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    assert sizes
    in_use = peak = 0
    for _, size in sorted(sizes):
        in_use += size
        peak = max(peak, in_use)
    return peak


def test_the_peak_is_measured() -> None:
    def two_then_one() -> Tensor:
        x = torch.empty(10_000) + torch.empty(10_000)
        return x * 1

    # Three at a time: both terms and their sum.
    assert 120_000 <= peak_bytes(two_then_one) < 121_000


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_peak_of_a_call(name: str, dtype: torch.dtype) -> None:
    """The gradient is the only large tensor, and backward of a mean does not need another."""
    x, t, y = inputs(dtype)
    size = x.nelement() * x.element_size()
    leaf = x.clone().requires_grad_()
    assert peak_bytes(lambda: LOSSES[name](leaf, t, y)) <= 1.05 * size

    def step() -> Tensor:
        return torch.autograd.grad(LOSSES[name](leaf, t, y), leaf)[0]

    scaled = dtype == torch.float16  # the stored gradient must be multiplied
    assert peak_bytes(step) <= (2.05 if scaled else 1.05) * size
    with torch.no_grad():
        assert peak_bytes(lambda: LOSSES[name](leaf, t, y)) < 100_000


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_saved_for_backward(name: str, dtype: torch.dtype) -> None:
    """At most one tensor of the student's size and a number a row."""
    x, t, y = inputs(dtype)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = LOSSES[name](x.requires_grad_(), t, y)
    total = sum(s.nelement() * s.element_size() for s in saved)
    assert total <= x.nelement() * x.element_size() + 8 * N
    assert not any(s.data_ptr() == x.data_ptr() for s in saved if s.numel() > 0)
    loss.backward()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "width", "size", "transposed"),
    [(256, 64, 1024, False), (64, 128, 8192, True), (33, 1024, 512, False), (8, 32, 65_536, False)],
)
def test_peak_of_info_nce(
    rows: int, width: int, size: int, transposed: bool, dtype: torch.dtype
) -> None:
    """Forward and backward, with the scratch of two threads, which torch does not count."""
    random = torch.Generator().manual_seed(0)
    query, key, queue = (
        torch.randn(n, width, generator=random).div(width**0.5).to(dtype)
        for n in (rows, rows, size)
    )
    query.requires_grad_()
    if transposed:
        queue = queue.t().contiguous().t()
    inputs = sum(x.nelement() * x.element_size() for x in (query, key, queue))
    similarities = rows * size * 4

    def step(module: Any) -> Tensor:
        loss = module.info_nce(query, key, queue)
        return torch.autograd.grad(3 * loss, query)[0]

    accumulator = 8 if dtype == torch.float64 else 4
    scratch = 2 * accumulator * 64 * ((width + 63) // 64 * 64 + 32)
    peak = peak_bytes(lambda: step(functional))
    assert peak + scratch <= 1.5 * inputs
    assert peak_bytes(lambda: step(reference)) >= similarities
    with torch.no_grad():
        forward = peak_bytes(lambda: functional.info_nce(query, key, queue))
    assert forward <= peak


# --- float16 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kd", "kd class", "bkd", "adjusted"])
@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_gradients_below_float16_survive_the_scaler(name: str, scale: float) -> None:
    """1/N p is far below 2^-24 here; the upstream of a GradScaler brings it back in range."""
    rows, columns = 4096, 1000
    random = torch.Generator().manual_seed(0)
    x, t = ((3 * torch.randn(rows, columns, generator=random)).half() for _ in range(2))
    y = torch.randint(columns, (rows,), generator=random)

    def gradient(module: Any, x: Tensor, t: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        loss = {
            "kd": lambda: module.kd_loss(x, t, 2.0),
            "kd class": lambda: module.kd_loss(x, t, torch.full((columns,), 2.0)),
            "bkd": lambda: module.bkd_loss(x, t, y),
            "adjusted": lambda: module.adjusted_cross_entropy(x, y),
        }[name]()
        return torch.autograd.grad(loss * scale, x)[0]

    exact = gradient(reference, x.double(), t.double())
    plain = gradient(reference, x, t)
    ours = gradient(functional, x, t)
    smallest = 2.0**-24
    below = (exact.abs() / scale < smallest / 2).double().mean()
    assert below > 0.1  # the point of this test
    error = (ours.double() - exact).abs()
    # Two roundings of 2^-11, half a subnormal, and float32's p - q.
    terms = torch.softmax(x.float() / 2, 1) + torch.softmax(t.float() / 2, 1)
    arithmetic = 2.0**-20 * (terms + torch.softmax(x.float(), 1)) * 2 * scale / rows
    assert (error <= 1.1 * 2.0**-10 * exact.abs() + 0.51 * smallest + arithmetic).all()
    lost, lost_by_plain = ((g == 0).float().mean() for g in (ours, plain))
    assert lost <= lost_by_plain + 1e-3
    if scale > 1:
        assert lost < 0.05


# --- more than 2^31 elements ----------------------------------------------------------------------


def free_gib() -> float:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


ROWS, WIDE = 66_000, 32_768
assert ROWS * WIDE > 2**31


def wide_rows(count: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDE, generator=random).bfloat16()


@pytest.mark.parametrize("op", ["bkd_loss", "adjusted_cross_entropy"])
def test_input_offsets_beyond_32_bits(op: str) -> None:
    """Rows far apart in memory that is mostly never touched."""
    rows = wide_rows(3, 0)
    apart = torch.empty(2**31 + 2**20, dtype=torch.bfloat16).as_strided((3, WIDE), (2**30 + 7, 1))
    apart.copy_(rows)
    results = []
    for x in (rows, apart):
        teacher = {"teacher": x.flip(0)} if op == "bkd_loss" else {}
        x = x.detach().requires_grad_()
        loss = getattr(functional, op)(x, target=torch.arange(3), **teacher)
        results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


large = pytest.mark.skipif(free_gib() < 6, reason="needs 6 GiB of free memory")


@large
@pytest.mark.slow
@pytest.mark.parametrize("op", ["bkd_loss", "adjusted_cross_entropy"])
def test_more_than_two_to_the_31_elements(op: str) -> None:
    """The last rows of a large call are those of a small one."""
    row, teacher = wide_rows(1, 0), wide_rows(1, 1)
    target = torch.arange(ROWS) % WIDE

    def last_rows(rows: int, target: Tensor) -> Tensor:
        x = row.expand(rows, WIDE).requires_grad_()
        arguments = {"teacher": teacher.expand(rows, WIDE)} if op == "bkd_loss" else {}
        loss = getattr(functional, op)(x, target=target, reduction="sum", **arguments)
        return torch.autograd.grad(loss, x)[0][-8:].clone()

    assert torch.equal(last_rows(ROWS, target), last_rows(8, target[-8:]))


@large
@pytest.mark.slow
def test_backward_of_more_than_two_to_the_31_elements() -> None:
    gradient = torch.empty(ROWS, WIDE, dtype=torch.bfloat16)  # memory that is never touched
    last = wide_rows(8, 0)
    gradient[-8:] = last
    upstream = torch.linspace(-1, 1, ROWS)
    scaled = _ops.scale_gradient(gradient, upstream, torch.zeros(0))
    expected = _ops.scale_gradient(last, upstream[-8:].clone(), torch.zeros(0))
    assert torch.equal(scaled[-8:], expected)
