"""Which implementation a call takes, instruction sets, threads, and repeated runs."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import ltkernels
from ltkernels import _C, _backend, _ops, functional, reference

OPS = ("distillation", "adjusted_cross_entropy", "experts", "scale_gradient")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=random, dtype=torch.float64)).to(dtype)


def every_loss(module: Any, x: Tensor) -> list[Tensor]:
    t, y = draw(*x.shape, seed=1, dtype=x.dtype), torch.arange(x.shape[0]) % x.shape[1]
    return [
        module.kd_loss(x, t, 3.0),
        module.bkd_loss(x, t, y, reduction="none"),
        module.adjusted_cross_entropy(x, y, focal_gamma=1.0, reduction="sum"),
        module.ride_loss([x, t, x], y, reduction="none"),
        module.collaborative_kd_loss([x, t], 2.0),
    ]


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The native ops called so far."""
    calls: list[str] = []
    for op in OPS:
        kernel = getattr(_ops, op)

        def counted(*args: Any, op: str = op, kernel: Any = kernel) -> Any:
            calls.append(op)
            return kernel(*args)

        monkeypatch.setattr(_ops, op, counted)
    return calls


# --- the choice -----------------------------------------------------------------------------------


def test_the_kernel_is_taken(kernel_calls: list[str]) -> None:
    every_loss(functional, draw(4, 5))
    assert kernel_calls == ["distillation"] * 2 + ["adjusted_cross_entropy"] + ["experts"] * 2


def test_the_definition_can_be_forced(kernel_calls: list[str]) -> None:
    x = draw(4, 5)
    with ltkernels.backend("reference"):
        assert ltkernels.info().backend["cpu"] == "reference"
        forced = every_loss(functional, x)
        with ltkernels.backend("auto"):
            assert ltkernels.info().backend["cpu"] == "fused"
            every_loss(functional, x)
            assert len(kernel_calls) == 5
        functional.kd_loss(x, x)
    assert len(kernel_calls) == 5
    for ours, expected in zip(forced, every_loss(reference, x), strict=True):
        assert torch.equal(ours, expected)
    assert ltkernels.info().backend["cpu"] == "fused"


def test_the_choice_ends_with_an_error() -> None:
    def fail() -> None:
        with ltkernels.backend("reference"):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not _backend.is_reference_forced()


def test_unknown_backend() -> None:
    with (
        pytest.raises(ValueError, match="`backend`: expected 'auto' or 'reference', got 'fused'"),
        ltkernels.backend("fused"),
    ):
        pass


@pytest.mark.parametrize("why", ["vmap", "functional jvp", "temperature gradient", "meta"])
def test_what_the_kernels_cannot_do_takes_the_definition(why: str, kernel_calls: list[str]) -> None:
    x, t = draw(4, 5), draw(4, 5, seed=1)
    if why == "vmap":
        torch.func.vmap(lambda x: functional.kd_loss(x, t))(x.expand(2, 4, 5))
    if why == "functional jvp":
        torch.func.jvp(lambda x: functional.kd_loss(x, t), (x,), (t,))
    if why == "temperature gradient":
        functional.kd_loss(x, t, torch.ones(5, requires_grad=True))
    if why == "meta":
        assert functional.kd_loss(x.to("meta"), t.to("meta")).device.type == "meta"
    assert kernel_calls == []


def test_temperature_gradient_not_asked_for_takes_the_kernel(kernel_calls: list[str]) -> None:
    with torch.no_grad():
        functional.kd_loss(draw(4, 5), draw(4, 5), torch.ones(5, requires_grad=True))
    assert kernel_calls == ["distillation"]


def test_cuda_without_kernels_warns_once_an_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ops, "built_for_cuda", False)
    monkeypatch.setattr(_backend, "_warned", set())
    on_cuda: Any = SimpleNamespace(device=torch.device("cuda"), is_cpu=False, is_cuda=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for op in ("kd_loss", "kd_loss", "bkd_loss", "kd_loss"):
            assert not _backend.use_fused(op, on_cuda)
    assert [str(w.message) for w in seen] == [
        f"`{op}` runs its plain PyTorch definition: ltkernels was built without CUDA kernels"
        for op in ("kd_loss", "bkd_loss")
    ]
    monkeypatch.setattr(_ops, "built_for_cuda", True)
    assert _backend.use_fused("kd_loss", on_cuda)


# --- other processes ------------------------------------------------------------------------------

ROOT = Path(ltkernels.__file__).parents[1]
COMPARE = """
import sys, torch, ltkernels
from ltkernels import functional, reference
expected_isa = sys.argv[1]
assert ltkernels.info().cpu_instruction_set == expected_isa, ltkernels.info()
torch.manual_seed(0)
INF = float("inf")
for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
    for n, c in ((3, 1), (3, 7), (2, 33), (3, 1030)):
        x, t = (3 * torch.randn(n, c, dtype=torch.float64) for _ in range(2))
        if c > 7:
            x[0, :5] = t[0, :5] = -INF
        x, t, y = x.to(dtype), t.to(dtype), torch.arange(n) * 7 % c
        weight = torch.rand(c)
        for call in (
            lambda m, x: m.kd_loss(x, t, 1.7),
            lambda m, x: m.kd_loss(x, t, weight + 0.5),
            lambda m, x: m.bkd_loss(x, t, y, weight, 2.0),
            lambda m, x: m.bkd_loss(x, t, y, None, 4.0, target_b=y.flip(0), lam=0.3),
            lambda m, x: m.adjusted_cross_entropy(x, y, bias=weight, label_smoothing=0.0),
            lambda m, x: m.adjusted_cross_entropy(x, y, scale=3.0, margin=weight, focal_gamma=2.0),
            lambda m, x: m.ride_loss([x, t, t], y, margin=weight, class_weight=weight),
            lambda m, x: m.ride_loss([x, t], y, temperature=weight + 0.5, collaborative=True),
            lambda m, x: m.ride_loss([x, t, t], y, margin=50 * weight, temperature=2.0),
            lambda m, x: m.diversity_loss([x, t, 0.5 * t, t], 3.0, pairwise=True, t2=1.0),
            lambda m, x: m.collaborative_kd_loss([x, t], 4.0, direction="teacher_first"),
        ):
            results = []
            for module in (functional, reference):
                leaf = x.clone().requires_grad_()
                loss = call(module, leaf)
                loss.backward()
                results.append((loss.detach(), leaf.grad))
            (ours, gradient), (loss, expected) = results
            tight = 1e-12 if dtype == torch.float64 else 3e-6
            torch.testing.assert_close(ours, loss, rtol=tight, atol=tight)
            stored = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(dtype, tight)
            torch.testing.assert_close(gradient, expected, rtol=stored, atol=tight)
print("agrees")
"""


def python(code: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("isa", _C.cpu_instruction_sets.split())
def test_every_instruction_set(isa: str) -> None:
    run = python(COMPARE, isa, LTKERNELS_CPU_ISA=isa)
    if "environment variable LTKERNELS_CPU_ISA" in run.stderr:
        pytest.skip(f"this processor does not run {isa}")
    assert run.stdout.strip() == "agrees", run.stderr[-2000:]


def test_unknown_instruction_set() -> None:
    run = python("import ltkernels", LTKERNELS_CPU_ISA="sse9")
    assert run.returncode != 0
    assert "LTKERNELS_CPU_ISA: expected one of" in run.stderr


def test_environment_variable_forces_the_definition() -> None:
    code = """
import torch, ltkernels
ltkernels._ops.distillation = None  # calling it would fail
x = torch.zeros(2, 3)
print(ltkernels.info().backend["cpu"], float(ltkernels.functional.kd_loss(x, x)))
"""
    run = python(code, LTKERNELS_BACKEND="reference")
    assert run.stdout.split() == ["reference", "0.0"], run.stderr
    run = python("import ltkernels", LTKERNELS_BACKEND="fast")
    assert "LTKERNELS_BACKEND: expected 'auto' or 'reference', got 'fast'" in run.stderr


# --- runs and threads -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_same_bits_every_run_and_for_any_number_of_threads(dtype: torch.dtype) -> None:
    def results() -> list[Tensor]:
        x = draw(67, 1500, dtype=dtype).requires_grad_()
        losses = every_loss(functional, x)
        total = sum(loss.sum() for loss in losses)
        return [*(loss.detach() for loss in losses), *torch.autograd.grad(3 * total, x)]

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


def test_calls_from_several_python_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def one(seed: int) -> Tensor:
        # Widths of which each needs more scratch memory than the last, and less.
        x = draw(5, [10, 5000, 70, 2000][seed % 4], seed=seed).requires_grad_()
        return torch.autograd.grad(sum(loss.sum() for loss in every_loss(functional, x)), x)[0]

    alone = [one(seed) for seed in range(32)]
    with ThreadPoolExecutor(4) as pool:
        for ours, expected in zip(pool.map(one, range(32)), alone, strict=True):
            assert torch.equal(ours, expected)
