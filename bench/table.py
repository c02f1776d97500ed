"""The speed table: each op, forward and backward, as eager PyTorch, torch.compile and ours.

    python bench/table.py --out bench/results/cpu
    python bench/table.py --ops kd,bkd --shapes 512x8142 --dtypes fp32 --threads 2
    python bench/table.py --device cuda --out bench/results/gpu

All sides of a row run in one rotation, many short rounds, after their results were compared; times
are medians with quartiles. The fraction of bandwidth is the op's byte floor (each input matrix read
once, the gradient written once) over its time, against the bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import (
    Bandwidth,
    Launches,
    Memory,
    Quartiles,
    Usage,
    describe,
    environment,
    interleave,
    launches,
    load,
    memory,
    parse_shape,
    write_report,
)
from peers import (
    CASES,
    DTYPES,
    TOLERANCE,
    Case,
    Errors,
    Loss,
    Problem,
    check,
    oracle,
    problem,
    sides,
    step,
)
from torch import Tensor

CPU_SHAPES = "128x100,256x1000,512x8142,256x32000"
# Where the run may be cut short, the sizes the goals name come first.
CUDA_SHAPES = "4096x8142,128x100,512x8142,4096x32000,256x1000,32768x1000,256x32000,1024x128256"
MAX_POOL = 1024  # problems that CUDA calls rotate through
UNSTEADY = 1.5  # upper over lower quartile from which a ratio is no more than a hint


# --- one row -------------------------------------------------------------------------------------


@dataclass
class Side:
    """Measurements of one implementation."""

    seconds: Quartiles
    errors: Errors
    memory: Memory
    launches: Launches | None


@dataclass
class Row:
    """One op, shape and dtype; sides that failed are named with their reason."""

    op: str
    rows: int
    classes: int
    dtype: str
    floor_bytes: int
    sides: dict[str, Side] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.op} {self.rows}x{self.classes} {self.dtype}"

    def speedup(self, other: str) -> float | None:
        """How many times faster ours is."""
        if other not in self.sides or "ours" not in self.sides:
            return None
        return self.sides[other].seconds.median / self.sides["ours"].seconds.median

    def bandwidth(self, side: str) -> float:
        """Bytes of the floor a second."""
        return self.floor_bytes / self.sides[side].seconds.median


@dataclass(frozen=True)
class Settings:
    device: torch.device
    compiled: bool
    repeats: int | None
    budget: float
    clock: Callable[[], float]


def measure_row(row: Row, case: Case, settings: Settings) -> Usage:
    """Check, time and weigh every side of one row."""
    torch._dynamo.reset()
    dtype = DTYPES[row.dtype]
    pool = _pool(case, row, dtype, settings.device)
    expected = oracle(case, pool[0])
    errors: dict[str, Errors] = {}
    calls: dict[str, Loss] = {}
    for name, loss_of in sides(case, settings.device, compiled=settings.compiled).items():
        try:
            errors[name] = check(name, loss_of, pool[0], expected, TOLERANCE[row.dtype])
        except Exception as error:  # one side must not take the row with it
            row.failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        else:
            calls[name] = loss_of
    del expected
    if not calls:
        return Usage()

    runs = {name: _rotating(loss_of, pool) for name, loss_of in calls.items()}
    rounds, inner = _sampling(runs, settings)
    before = Usage.until_now()
    samples = interleave(
        runs, rounds=rounds, inner=inner, device=settings.device, clock=settings.clock
    )
    spent = Usage.until_now() - before
    for drawn in pool:
        drawn.reset()
    for name, loss_of in calls.items():
        row.sides[name] = Side(
            Quartiles.of(samples[name]),
            errors[name],
            memory(partial(loss_of, *pool[0].args), pool[0].leaves, settings.device),
            launches(runs[name]) if settings.device.type == "cuda" else None,
        )
    return spent


def _pool(case: Case, row: Row, dtype: torch.dtype, device: torch.device) -> list[Problem]:
    """One problem on the CPU; on CUDA as many as overflow the L2 cache twice."""
    first = problem(case, row.rows, row.classes, dtype, device)
    if device.type != "cuda":
        return [first]
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    count = min(MAX_POOL, 1 + math.ceil(2 * cache / first.nbytes))
    rest = (problem(case, row.rows, row.classes, dtype, device, seed) for seed in range(1, count))
    return [first, *rest]


def _rotating(loss_of: Loss, pool: Sequence[Problem]) -> Callable[[int], Tensor]:
    return lambda i: step(loss_of, pool[i % len(pool)])


def _sampling(runs: dict[str, Callable[[int], Tensor]], settings: Settings) -> tuple[int, int]:
    """Rounds and calls a sample: as many rounds as the budget allows."""
    interleave(runs, rounds=2, device=settings.device)
    trial = interleave(runs, rounds=3, device=settings.device)
    best = [min(samples) for samples in trial.values()]
    # Launches on CUDA are timed in groups long against the first one's latency.
    inner = max(1, min(64, int(2e-3 / min(best)))) if settings.device.type == "cuda" else 1
    rounds = settings.repeats or int(settings.budget / (inner * sum(best)))
    return (rounds if settings.repeats else max(9, min(500, rounds))), inner


def _bytes_needed(case: Case, rows: int, classes: int) -> int:
    """About what the float64 run of eager takes, the largest part of a row."""
    return max(9 * 8 * rows * classes, 3 * case.floor(rows, classes, 8))


def _bytes_free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --- the report ----------------------------------------------------------------------------------


@dataclass
class Report:
    """All rows, and what a reader must know about the run."""

    environment: dict[str, Any]
    settings: dict[str, Any]
    bandwidth_of: str
    bandwidth: Quartiles
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    load_after: float | None = None
    usage: Usage = field(default_factory=Usage)

    def to_dict(self) -> dict[str, Any]:
        document = asdict(self) | {"usage": self.usage.to_dict()}
        for row, plain in zip(self.rows, document["rows"], strict=True):
            plain["speedup"] = {name: row.speedup(name) for name in row.sides if name != "ours"}
            plain["bandwidth_fraction"] = {
                name: row.bandwidth(name) / self.bandwidth.median for name in row.sides
            }
        return document

    def to_markdown(self) -> str:
        parts = [self._header()]
        for dtype in dict.fromkeys(row.dtype for row in self.rows):
            rows = [row for row in self.rows if row.dtype == dtype]
            rows.sort(key=lambda row: (list(CASES).index(row.op), row.rows * row.classes))
            parts.append(f"### {dtype}\n\n{self._table(rows)}")
        failures = [
            f"- {row.title}, {name}: {reason}"
            for row in self.rows
            for name, reason in row.failed.items()
        ]
        if failures:
            parts.append("Failed:\n" + "\n".join(failures))
        if self.left_out:
            parts.append("Left out:\n" + "\n".join(f"- {line}" for line in self.left_out))
        return "\n\n".join(parts) + "\n"

    def _header(self) -> str:
        facts, run = self.environment, self.settings
        bandwidth = self.bandwidth
        lines = [
            f"- {describe(facts)}",
            f"- forward + backward, {run['clock']} time, median (quartiles) of one interleaved run",
            f"- ratios of medians; ~ where the quartiles of a side lie {UNSTEADY:g}x apart: a hint",
            f"- {self.bandwidth_of}: {bandwidth.median / 1e9:.1f} GB/s ("
            f"{bandwidth.low / 1e9:.1f}-{bandwidth.high / 1e9:.1f}); % of it: byte floor / time",
            "- saved: kept between forward and backward; peak: above the inputs, gradient counted",
        ]
        if self.load_after is not None:
            lines[:0] = [f"- {x}" for x in self.usage.describe(facts["load"], self.load_after)]
        return "\n".join(lines)

    def _table(self, rows: list[Row]) -> str:
        known = ("eager", "compile", "liger", "ours")
        names = [name for name in known if any(name in row.sides for row in rows)]
        others = [name for name in names if name != "ours"]
        each = " / ".join(names)
        on_cuda = self.environment["device"] == "cuda"
        titles = ["op", "N x C", "floor MB", *(f"{name} ms" for name in names)]
        titles += [f"vs {name}" for name in others]
        titles += [f"% bandwidth {each}", f"saved MB {each}", f"peak MB {each}"]
        if on_cuda:
            titles += [f"launches {each}", f"kernel us {each}", "% bandwidth in our kernels"]
        lines = [_line(titles), _line(["---"] * len(titles))]
        for row in rows:
            cells = [row.op, f"{row.rows}x{row.classes}", f"{row.floor_bytes / 1e6:.3g}"]
            cells += [_of(row, name, _milliseconds) for name in names]
            cells += [_times(row, name) for name in others]
            fractions = [
                f"{100 * row.bandwidth(name) / self.bandwidth.median:.0f}"
                if name in row.sides
                else "-"
                for name in names
            ]
            cells.append(" / ".join(fractions))
            cells.append(" / ".join(_of(row, name, _saved) for name in names))
            cells.append(" / ".join(_of(row, name, _peak) for name in names))
            if on_cuda:
                cells.append(" / ".join(_of(row, name, _launch_count) for name in names))
                cells.append(" / ".join(_of(row, name, _kernel_time) for name in names))
                cells.append(self._in_kernels(row))
            lines.append(_line(cells))
        return "\n".join(lines)

    def _in_kernels(self, row: Row) -> str:
        ours = row.sides.get("ours")
        if ours is None or ours.launches is None or not ours.launches.seconds:
            return "-"
        fraction = row.floor_bytes / ours.launches.seconds / self.bandwidth.median
        return f"{100 * fraction:.0f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _of(row: Row, name: str, text: Callable[[Side], str]) -> str:
    return text(row.sides[name]) if name in row.sides else "-"


def _milliseconds(side: Side) -> str:
    t = side.seconds
    return f"{1e3 * t.median:.3g} ({1e3 * t.low:.3g}-{1e3 * t.high:.3g})"


def _times(row: Row, name: str) -> str:
    ratio = row.speedup(name)
    if ratio is None:
        return "-"
    unsteady = any(
        row.sides[side].seconds.high > UNSTEADY * row.sides[side].seconds.low
        for side in (name, "ours")
    )
    return f"{'~' if unsteady else ''}{ratio:.2f}x"


def _saved(side: Side) -> str:
    return f"{side.memory.saved / 1e6:.2f}"


def _peak(side: Side) -> str:
    return f"{side.memory.peak / 1e6:.2f}"


def _launch_count(side: Side) -> str:
    return "-" if side.launches is None else f"{side.launches.count:g}"


def _kernel_time(side: Side) -> str:
    return "-" if side.launches is None else f"{1e6 * side.launches.seconds:.1f}"


# --- the run -------------------------------------------------------------------------------------


def _names(choices: Sequence[str]) -> Callable[[str], list[str]]:
    def parse_names(text: str) -> list[str]:
        names = list(choices) if text == "all" else text.split(",")
        for name in names:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(choices)}")
        return names

    return parse_names


def _shapes(text: str) -> list[tuple[int, int]]:
    return [parse_shape(part) for part in text.split(",")]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--ops", type=_names(tuple(CASES)), default="all", help=f"of {', '.join(CASES)}")
    add("--shapes", type=_shapes, help=f"rows x classes; else {CPU_SHAPES}, on CUDA larger ones")
    add("--dtypes", type=_names(tuple(DTYPES)), default="fp32,bf16", help="of " + ", ".join(DTYPES))
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the tensors lie")
    add("--threads", type=int, default=1, help="of torch")
    add("--repeats", type=int, help="rounds a row; else as many as --budget allows")
    add("--budget", type=float, default=4.0, metavar="S", help="seconds of timing a row")
    add("--clock", choices=("wall", "cpu"), default="wall", help="cpu: time the thread really ran")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--time-limit", type=float, metavar="S", help="start no row after this")
    add("--compile-limit", type=float, metavar="S", help="no torch.compile after this")
    add("--without", type=_names(tuple(CASES)), default=[], help="ops to leave out")
    add("--out", type=Path, metavar="STEM", help="also write STEM.json and STEM.md, row by row")
    options = parser.parse_args(arguments)
    if options.clock == "cpu" and (options.device != "cpu" or options.threads != 1):
        parser.error("--clock cpu needs --device cpu and --threads 1: waiting threads spin")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    if options.shapes is None:
        options.shapes = _shapes(CUDA_SHAPES if options.device == "cuda" else CPU_SHAPES)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.perf_counter()
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device, 0 if options.device == "cuda" else None)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    settings = Settings(device, not options.no_compile, options.repeats, options.budget, clock)
    facts = environment(device)
    stream = Bandwidth(device, clock)
    stream.burst(2)
    stream.bytes_per_second.clear()  # the first ones met cold pages
    stream.burst()
    chosen = vars(options) | {"shapes": [f"{n}x{c}" for n, c in options.shapes]}
    del chosen["out"]
    report = Report(facts, chosen, stream.name, stream.quartiles())
    print(report.to_markdown(), file=sys.stderr)

    usage = Usage()
    wanted = [
        Row(op, n, c, dtype, CASES[op].floor(n, c, DTYPES[dtype].itemsize))
        for n, c in options.shapes
        for dtype in options.dtypes
        for op in options.ops
        if op not in options.without
    ]
    for row in wanted:
        if options.time_limit and time.perf_counter() - started > options.time_limit:
            report.left_out.append(f"{row.title}: time limit")
            continue
        needed = _bytes_needed(CASES[row.op], row.rows, row.classes)
        if needed > 0.8 * _bytes_free(device):
            report.left_out.append(f"{row.title}: needs about {needed / 1e9:.0f} GB")
            continue
        if options.compile_limit and time.perf_counter() - started > options.compile_limit:
            settings = replace(settings, compiled=False)
        usage += measure_row(row, CASES[row.op], settings)
        gc.collect()
        stream.burst()
        report.rows.append(row)
        report.bandwidth = stream.quartiles()
        report.load_after, report.usage = load(), usage
        _progress(row)
        if options.out:
            write_report(options.out, report.to_dict(), report.to_markdown())

    print(report.to_markdown())
    return 1 if any("ours" in row.failed for row in report.rows) else 0


def _progress(row: Row) -> None:
    times = [f"{name} {_milliseconds(side)} ms" for name, side in row.sides.items()]
    times += [f"{name} failed: {reason}" for name, reason in row.failed.items()]
    print(f"{row.title}: {', '.join(times)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
