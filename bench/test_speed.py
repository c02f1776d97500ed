"""Forward and backward of each op beside what users write: pytest bench/ --benchmark-only.

A group an op and shape. Nothing is asserted about time, only that all sides give one result.
The ratios to quote come from table.py, whose sides run in rotation.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peers import CASES, TOLERANCE, check, oracle, problem, sides, step

SHAPES = ((128, 100), (256, 1000), (512, 8142))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = ["eager", "ours"]
    if metafunc.config.getoption("compile"):
        names.insert(1, "compile")
    metafunc.parametrize("side", names)


@pytest.mark.benchmark(max_time=0.3, min_rounds=5)  # the suite in a minute
@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("op", CASES)
def test_forward_backward(benchmark: Any, op: str, shape: tuple[int, int], side: str) -> None:
    case = CASES[op]
    torch._dynamo.reset()
    loss_of = sides(case, compiled=side == "compile")[side]
    drawn = problem(case, *shape, torch.float32)
    check(side, loss_of, drawn, oracle(case, drawn), TOLERANCE["fp32"])

    benchmark.group = f"{op} {shape[0]}x{shape[1]}"
    benchmark.extra_info["floor_bytes"] = case.floor(*shape, torch.float32.itemsize)
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark(step, loss_of, drawn)
