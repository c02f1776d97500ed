"""`python -m ltkernels.selftest`: what it draws, that it finds faults, and what it prints."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

import ltkernels
from ltkernels.selftest import CASES, Case, main
from ltkernels.selftest.cases import DTYPES, draw_case
from ltkernels.selftest.comparison import check
from ltkernels.selftest.rounding import RandomRounding

FUSED = [op for op in CASES.values() if op.is_fused]


def cases(count: int, seed: int = 0) -> list[Case]:
    random = Random(seed)
    return [
        draw_case(random, op, dtype, "cpu")
        for _ in range(count)
        for op in FUSED
        for dtype in DTYPES
    ]


# --- runs -----------------------------------------------------------------------------------------


def test_agreement_ends_with_0_and_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "1", "--seed", "3", "--device", "cpu"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("all agree", "seed 3", "float32", "cpu", ltkernels.__version__, *CASES):
        assert part in text


def test_only_the_ops_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "0.2", "--ops", "bkd_loss", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "bkd_loss" in text
    assert "adjusted_cross_entropy" not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ops", "no_loss"],
        ["--ops", ""],
        ["--seconds", "0"],
        ["--seconds", "nan"],
        ["--seed", "x"],
        ["--device", "meta"],
        ["--device", "nothing"],
        ["--device", "cuda:99"],
        ["more"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_forced_reference_leaves_nothing_to_compare() -> None:
    with ltkernels.backend("reference"), pytest.raises(SystemExit) as error:
        main(["--seconds", "0.1"])
    assert error.value.code == 2


def test_ctrl_c_is_130_and_says_how_far_it_came() -> None:
    command = [sys.executable, "-u", "-c", STARTED, "--seconds", "60", "--device", "cpu"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
        assert process.wait(30) == 130
    assert "interrupted; so far" in errors
    assert "Traceback" not in errors


STARTED = """
import sys
from ltkernels.selftest import main
print("started")
sys.exit(main(sys.argv[1:]))
"""


# --- what is drawn --------------------------------------------------------------------------------


def test_a_seed_draws_the_same_calls() -> None:
    assert repr(cases(3, seed=5)) == repr(cases(3, seed=5))
    assert repr(cases(3, seed=5)) != repr(cases(3, seed=6))


@pytest.mark.parametrize("op", FUSED, ids=lambda op: op.name)
def test_calls_are_of_all_kinds(op: Any) -> None:
    random = Random(0)
    text = [repr(draw_case(random, op, torch.float32, "cpu").arguments) for _ in range(300)]
    reductions = ("'none'", "'sum'", "'mean'") if "'reduction'" in text[0] else ()
    for part in (
        *("transposed", "columns", "strided=True", "expanded", "unaligned", "holes='row'"),
        *reductions,
        *("10000.0", "(0, ", "(1, ", "(3000, ", ", 1, torch", "32000"),
    ):
        assert any(part in each for each in text), part


# --- faults ---------------------------------------------------------------------------------------

# The fault is planted in the program too: the text in front of it.
FAULTS = {
    "gradient": "outputs[1].flatten()[-1:].mul_(1.02)",
    "a NaN": "outputs[1].flatten()[:1].fill_(float('nan'))",
    "a row's loss": "outputs[0].mul_(1.001)",
    "infinite": "outputs[0].fill_(float('inf'))",
    "written": "args[0].data.mul_(0.5) if args[0].shape[0] else None",
    "repeat": "outputs[0].add_(torch.rand(()))",
    "raised": "[][1]",
}
PLANT = """
import torch
from ltkernels import _ops
kernel = _ops.{kernel}
def faulty(*args):
    outputs = [x.contiguous() for x in kernel(*args)]
    {fault}
    return tuple(outputs)
_ops.{kernel} = faulty
"""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("op", ["kd_loss", "adjusted_cross_entropy"])
def test_a_fault_is_1_and_its_program_reproduces_it(
    op: str, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = CASES[op].kernel
    plant = PLANT.format(kernel=kernel, fault=FAULTS[fault])
    monkeypatch.setattr("ltkernels.selftest.cli.SIMPLIFYING", 0.5)
    original = getattr(ltkernels._ops, kernel)
    monkeypatch.setattr(ltkernels._ops, kernel, original)  # put back at the end
    exec(plant, {})
    assert main(["--seconds", "5", "--ops", op, "--device", "cpu"]) == 1
    program, _, summary = capsys.readouterr().out.rpartition("\nltkernels.selftest: ")
    assert f"{op} is wrong" in summary
    with pytest.raises((AssertionError, IndexError)):
        run(program)
    setattr(ltkernels._ops, kernel, original)
    assert run(program).endswith("agrees\n")


def run(program: str) -> str:
    """What the text prints, as a program of its own would."""
    printed: list[str] = []

    def write(*values: object) -> None:
        printed.append(" ".join(map(str, values)) + "\n")

    exec(compile(program, "snippet.py", "exec", dont_inherit=True), {"print": write})
    return "".join(printed)


def test_the_program_runs_on_its_own(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant = PLANT.format(kernel="distillation", fault=FAULTS["gradient"])
    monkeypatch.setattr("ltkernels.selftest.cli.SIMPLIFYING", 0.5)
    monkeypatch.setattr(ltkernels._ops, "distillation", ltkernels._ops.distillation)
    exec(plant, {})
    assert main(["--seconds", "5", "--ops", "kd_loss", "--device", "cpu"]) == 1
    program, _, _ = capsys.readouterr().out.rpartition("\nltkernels.selftest: ")
    snippet = tmp_path / "snippet.py"
    for text, code in (
        (program, 0),
        (program.replace("import ltkernels\n", plant_after(plant)), 1),
    ):
        snippet.write_text(text)
        done = subprocess.run([sys.executable, str(snippet)], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert ("agrees" in done.stdout) == (code == 0)
        assert ("AssertionError: error" in done.stderr) == (code == 1)


def plant_after(plant: str) -> str:
    return f"import ltkernels\n{plant}"


def test_a_fault_is_simplified(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the fault does not need is gone: options, layouts, rows, classes."""
    from ltkernels.selftest.cli import _simplest

    monkeypatch.setattr(ltkernels._ops, "distillation", ltkernels._ops.distillation)
    exec(PLANT.format(kernel="distillation", fault=FAULTS["a row's loss"]), {})
    random = Random(1)
    found = None
    while found is None:
        found = check(draw_case(random, CASES["bkd_loss"], torch.float32, "cpu"))
    simplest = _simplest(found).case.arguments
    assert set(simplest) <= {"student", "teacher", "target", "reduction"}
    assert simplest["student"].args[0] == 1
    assert set(simplest["student"].options) == {"seed"}


# --- the size of rounding -------------------------------------------------------------------------


def spread(function: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)
    exact = function(x)
    errors = []
    for _ in range(50):
        with RandomRounding(dtype, generator):
            errors.append(function(x) - exact)
    return float(torch.stack(errors).square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spread_is_relative_to_the_size_before_cancellation(dtype: torch.dtype) -> None:
    x = torch.tensor([3.0], dtype=torch.float64)
    unit = torch.finfo(dtype).eps * (64 if dtype == torch.float64 else 1)
    assert spread(lambda x: x.clone(), x, dtype) == 0
    assert 0.3 * unit < spread(lambda x: x.exp() / x.exp(), x, dtype) < 2 * unit
    assert 5 * unit < spread(lambda x: x.exp() - x.exp(), x, dtype) < 40 * unit


def test_certain_rows_have_a_spread() -> None:
    """p - 1 in float32 has an error of eps, however small it is."""
    x = torch.tensor([[0.0, -40.0]], dtype=torch.float64)
    size = spread(lambda x: torch.log_softmax(x, dim=1)[:, :1], x, torch.float32)
    assert size > 0.3 * torch.finfo(torch.float32).eps
