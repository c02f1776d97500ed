"""The command line: draw, compare, and stop at the first mismatch."""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, product
from random import Random

import torch

from .. import _backend, _ops
from .._info import info
from .cases import CASES, DTYPES, Case, Op, draw_case
from .comparison import Mismatch, check
from .rounding import warm_up
from .snippet import snippet

AGREED, MISMATCH, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
SIMPLIFYING = 20.0  # seconds

Count = Counter[tuple[str, str, str]]


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ltkernels.selftest",
        description="Compare random calls of the fused ops with their definition in float64.",
        epilog="exit status: 0 all agree, 1 a mismatch (its program is printed), 2 wrong usage, "
        "130 interrupted",
    )
    fused = [op.name for op in CASES.values() if op.is_fused]
    parser.add_argument("--seconds", type=_seconds, default=30.0, help="how long (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the calls (default: 0)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: all at hand)")
    parser.add_argument(
        "--ops", metavar="A,B", help=f"(default: all fused ones: {', '.join(fused)})"
    )
    return parser


def _devices(parser: argparse.ArgumentParser, wanted: str | None) -> list[str]:
    cuda = torch.cuda.is_available() and _ops.built_for_cuda
    if wanted is None:
        return ["cpu", "cuda"] if cuda else ["cpu"]
    try:
        device = torch.device(wanted)
    except RuntimeError:
        parser.error(f"--device: expected cpu, cuda or cuda:N, got {wanted!r}")
    if device.type not in ("cpu", "cuda"):
        parser.error(f"--device: ltkernels has kernels for cpu and cuda, got {wanted!r}")
    if device.type == "cuda" and not cuda:
        parser.error(
            f"--device {wanted}: "
            + ("ltkernels was built without CUDA" if torch.cuda.is_available() else "no CUDA here")
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        parser.error(f"--device {wanted}: there are {torch.cuda.device_count()} CUDA devices")
    return [wanted]


def _chosen(parser: argparse.ArgumentParser, wanted: str | None) -> list[Op]:
    fused = {name: op for name, op in CASES.items() if op.is_fused}
    if wanted is None:
        return list(fused.values())
    for name in wanted.split(","):
        if name not in fused:
            parser.error(f"--ops: expected some of {','.join(fused)}, got {name!r}")
    return [fused[name] for name in wanted.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the selftest.

    Args:
        argv: arguments after the program's name; None: those of this process.

    Returns:
        The exit code: 0 all agree, 1 a mismatch, 2 wrong usage, 130 interrupted.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    devices, ops = _devices(parser, arguments.device), _chosen(parser, arguments.ops)
    if _backend.is_reference_forced():
        parser.error("the backend 'reference' is forced, which leaves nothing to compare")
    count: Count = Counter()
    started = time.monotonic()
    try:
        warm_up()
        started = time.monotonic()
        found = _run(ops, devices, arguments.seed, started + arguments.seconds, count)
        if found is not None:
            found = _simplest(found)
    except KeyboardInterrupt:
        print(_summary("interrupted; so far", count, started, arguments.seed), file=sys.stderr)
        return INTERRUPTED
    if found is None:
        print(_summary("all agree:", count, started, arguments.seed))
        return AGREED
    print(snippet(found))
    print(_summary(f"{found.case.op.name} is wrong after", count, started, arguments.seed))
    print(found.message, file=sys.stderr)
    return MISMATCH


def _run(
    ops: list[Op], devices: list[str], seed: int, deadline: float, count: Count
) -> Mismatch | None:
    """Cases of all ops, dtypes and devices in turn, until the deadline or the first mismatch.

    Every op comes at least once, however short the time.
    """
    random = Random(seed)
    for dtype in cycle(DTYPES):
        for op, device in product(ops, devices):
            found = check(draw_case(random, op, dtype, device))
            count[op.name, str(dtype).removeprefix("torch."), device] += 1
            if found is not None:
                return found
        if time.monotonic() > deadline:
            return None
    raise AssertionError("cycle ends only for no dtypes")


def _simplest(found: Mismatch) -> Mismatch:
    """The same fault with fewer arguments, rows and classes, as far as time allows."""
    deadline = time.monotonic() + SIMPLIFYING
    progress = True
    while progress:
        progress = False
        for case in found.case.simpler():
            if time.monotonic() > deadline:
                return found
            smaller = _try(case)
            if smaller is not None and smaller.what == found.what:
                found, progress = smaller, True
                break
    return found


def _try(case: Case) -> Mismatch | None:
    """`check`, for a case that may be no call at all."""
    try:
        return check(case)
    except (TypeError, ValueError, IndexError, RuntimeError):
        return None  # the definition refuses it


def _summary(verdict: str, count: Count, started: float, seed: int) -> str:
    def by(part: int) -> str:
        totals: Counter[str] = Counter()
        for key, cases in count.items():
            totals[key[part]] += cases
        return ", ".join(f"{name} {cases}" for name, cases in totals.items())

    build = "; ".join(" ".join(line.split()) for line in str(info()).splitlines())
    text = (
        f"ltkernels.selftest: {verdict} {sum(count.values())} cases ({by(0)}; {by(1)}; {by(2)}) "
        f"in {time.monotonic() - started:.1f} s, seed {seed}. {build}."
    )
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)
