"""Every case small, at the edges of the kernels, against eager in float64: what sanitizers run.

    compute-sanitizer --tool racecheck python bench/small_cases.py --device cuda

The expected results are computed on the CPU, so that a sanitizer meets little but our kernels. Each
case runs on dense rows and on rows of a wider matrix that start off the vector boundaries. The
order is random but always the same, so that a run which --seconds cuts short has seen some of all.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
from peers import CASES, DTYPES, TOLERANCE, check, oracle, problem
from torch import Tensor

# Rows of a part of a warp, of a warp, of a block in shared memory, and more than fits there; whole
# vectors and tails.
CLASSES = (7, 10, 100, 365, 1000, 1203, 8142, 33000)
ROWS = 5
OFFSET = 1


def on_device(x: Tensor, device: str, unaligned: bool) -> Tensor:
    """A copy, dense or as columns of a matrix with more of them."""
    if not unaligned or x.dim() != 2:
        return x.detach().to(device, copy=True)
    wide = torch.full((x.shape[0], x.shape[1] + 2 + OFFSET), torch.nan, dtype=x.dtype)
    wide[:, OFFSET : OFFSET + x.shape[1]] = x.detach()
    return wide.to(device)[:, OFFSET : OFFSET + x.shape[1]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--device", default="cpu", help="where ours runs")
    add("--dtypes", nargs="+", choices=tuple(DTYPES), default=["fp32", "bf16"], help="of logits")
    add("--classes", nargs="+", type=int, default=CLASSES, help="columns")
    add("--seconds", type=float, default=math.inf, help="start no case after this")
    options = parser.parse_args(arguments)

    started = time.monotonic()
    wrong = count = 0
    wanted = list(product(options.classes, options.dtypes, CASES.values()))
    random.Random(0).shuffle(wanted)
    for done, (classes, dtype, case) in enumerate(wanted):
        if time.monotonic() - started > options.seconds:
            print(f"{2 * (len(wanted) - done)} cases left out: time")
            break
        drawn = problem(case, ROWS, classes, DTYPES[dtype])
        expected = oracle(case, drawn).to(options.device)
        for unaligned in (False, True):
            ours = drawn.map(case, partial(on_device, device=options.device, unaligned=unaligned))
            rows = "unaligned" if unaligned else "dense"
            title = f"{case.name} {ROWS}x{classes} {dtype}, {rows} rows"
            count += 1
            try:
                check(title, case.ours, ours, expected, TOLERANCE[dtype])
            except AssertionError as error:
                wrong += 1
                print(error)
    print(f"{count - wrong} of {count} cases right on {options.device}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
