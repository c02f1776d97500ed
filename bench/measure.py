"""Interleaved timing, memory bandwidth, memory use and kernel launches, on the CPU and on CUDA."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import ltkernels

Call = Callable[[int], Any]  # gets the number of the call, to rotate its inputs
Clock = Callable[[], float]

MIB = 2**20

# The profiler's log goes to stderr, a few lines a use.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of samples."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        if len(values) < 2:
            return cls(values[0], values[0], values[0], len(values))
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


# --- time ----------------------------------------------------------------------------------------


def interleave(
    calls: Mapping[str, Call],
    *,
    rounds: int,
    device: torch.device,
    inner: int = 1,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds a call of each side, one sample a round.

    Every round runs all sides, so that a neighbour's load hits them alike, and starts with another
    one, so that none always finds the caches another left. The calls of all sides are numbered
    through: inputs that rotate by the number are not those the side before has just read.

    Args:
        inner: calls a sample. On CUDA they queue up between two events, as in training: the
            sample is the slower of launching and computing.
    """
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        at = 0
        for i in range(rounds):
            first = i % len(names)
            for name in names[first:] + names[:first]:
                call = calls[name]
                seconds = (
                    _cuda_sample(call, at, inner)
                    if device.type == "cuda"
                    else _cpu_sample(call, at, inner, clock)
                )
                samples[name].append(seconds)
                at += inner
    finally:
        if collecting:
            gc.enable()
    return samples


def _cpu_sample(call: Call, first: int, count: int, clock: Clock) -> float:
    start = clock()
    for i in range(first, first + count):
        call(i)
    return (clock() - start) / count


def _cuda_sample(call: Call, first: int, count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for i in range(first, first + count):
        call(i)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / count


class Bandwidth:
    """Memory bandwidth, measured in bursts all along a run, by the same threads.

    CPU: triad, a[i] = b[i] + s c[i], two reads and a write. torch stores as usual, so that the
    processor also reads what is written over, which is not counted. CUDA: copy, a read and a write.
    """

    def __init__(self, device: torch.device, clock: Clock = time.perf_counter) -> None:
        self.device, self.clock = device, clock
        self.bytes_per_second: list[float] = []
        # Larger than any cache, and a small share of the memory.
        size = 256 * MIB
        if device.type == "cuda":
            size = max(size, 8 * torch.cuda.get_device_properties(device).L2_cache_size)
        a, b, c = (torch.ones(size // 4, device=device) for _ in range(3))
        if device.type == "cuda":
            self.name, self._bytes, self._call = "copy", 2 * size, lambda _: c.copy_(a)
        else:
            threads = torch.get_num_threads()
            self.name = f"triad a[i] = b[i] + s c[i], {threads} thread(s), ordinary stores"
            self._bytes = 3 * size
            self._call = lambda _: torch.add(b, c, alpha=0.5, out=a)

    def burst(self, rounds: int = 5) -> None:
        samples = interleave(
            {"stream": self._call}, rounds=rounds, device=self.device, clock=self.clock
        )
        self.bytes_per_second += [self._bytes / seconds for seconds in samples["stream"]]

    def quartiles(self) -> Quartiles:
        return Quartiles.of(self.bytes_per_second)


# --- memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes torch allocated above the inputs.

    Attributes:
        saved: alive between forward and backward.
        peak: at most alive at once in forward and backward; the gradient counts.
    """

    saved: int
    peak: int


def memory(forward: Callable[[], Tensor], leaves: Sequence[Tensor], device: torch.device) -> Memory:
    """Memory use of one step whose gradients collect in `leaves`, after a warm-up."""
    return (_cuda_memory if device.type == "cuda" else _cpu_memory)(forward, leaves)


def _cuda_memory(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Memory:
    _reset(leaves)
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = forward()
    saved = torch.cuda.memory_allocated() - before
    if leaves:
        loss.backward()
    peak = torch.cuda.max_memory_allocated() - before
    _reset(leaves)
    return Memory(saved, peak)


def _cpu_memory(forward: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Memory:
    _reset(leaves)
    with _Allocations() as first:
        loss = forward()
    del loss
    with _Allocations() as both:
        loss = forward()
        if leaves:
            loss.backward()
    del loss
    _reset(leaves)
    return Memory(sum(first.changes), both.peak())


def _reset(leaves: Sequence[Tensor]) -> None:
    for x in leaves:
        x.grad = None


class _Allocations:
    """The allocations and releases inside a `with` block, in bytes, as the profiler saw them."""

    def __init__(self) -> None:
        self.changes: list[int] = []
        self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def __enter__(self) -> _Allocations:
        gc.collect()
        self._profile.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._profile.__exit__(*error)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(path))
            trace = json.loads(path.read_text())["traceEvents"]
        events = sorted(
            (event for event in trace if event.get("name") == "[memory]"),
            key=lambda event: event["ts"],
        )
        self.changes = [event["args"]["Bytes"] for event in events]

    def peak(self) -> int:
        now = highest = 0
        for change in self.changes:
            now += change
            highest = max(highest, now)
        return highest


# --- kernel launches -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Launches:
    """What one call of a side puts on the GPU.

    Attributes:
        count: kernels, copies and fills.
        seconds: their time on the device, without gaps.
        names: how often each, a call.
    """

    count: float
    seconds: float
    names: dict[str, float]


def launches(call: Call, calls: int = 8) -> Launches | None:
    """Read off the profiler over several calls, after a warm-up; None where it sees no kernels."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as run:
        for i in range(calls):
            call(i)
        torch.cuda.synchronize()
    events = [
        event
        for event in run.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    if not events:
        return None
    microseconds = sum(event.time_range.elapsed_us() for event in events)
    names = Counter(event.name for event in events)
    return Launches(
        len(events) / calls,
        microseconds / 1e6 / calls,
        {name: count / calls for name, count in names.most_common()},
    )


# --- the machine ---------------------------------------------------------------------------------


def cpu_model() -> str:
    """The processor's name, and what runs of it."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def environment(device: torch.device) -> dict[str, Any]:
    """What a table of times must say about where it was taken; no host name."""
    info = ltkernels.info()
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "device": device.type,
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "instruction_set": info.cpu_instruction_set,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "ltkernels": info.version,
        "threads": torch.get_num_threads(),
        "load": load(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cuda_architectures": list(info.cuda_architectures),
        }
    return facts


def describe(facts: dict[str, Any]) -> str:
    """The `environment` as one line."""
    machine = f"{facts['cpu']}, {facts['cores']} cores ({facts['instruction_set']})"
    if "gpu" in facts:
        capability, cuda = facts["compute_capability"], facts["cuda"]
        machine = f"{facts['gpu']} (sm {capability}), CUDA {cuda}; {machine}"
    return (
        f"{machine}; {facts['threads']} thread(s); torch {facts['torch']}, Python "
        f"{facts['python']}, ltkernels {facts['ltkernels']}; {facts['date']}"
    )


def load() -> float:
    """Processes that ran or waited, a mean over the last minute."""
    return round(os.getloadavg()[0], 2)


@dataclass(frozen=True)
class Usage:
    """Seconds passed, of this process on its cores, and of everything that ran on the machine."""

    wall: float = 0.0
    own: float = 0.0
    busy: float | None = 0.0

    @classmethod
    def until_now(cls) -> Usage:
        return cls(time.perf_counter(), time.process_time(), _busy_seconds())

    def __add__(self, other: Usage) -> Usage:
        busy = None if self.busy is None or other.busy is None else self.busy + other.busy
        return Usage(self.wall + other.wall, self.own + other.own, busy)

    def __sub__(self, other: Usage) -> Usage:
        busy = None if self.busy is None or other.busy is None else self.busy - other.busy
        return Usage(self.wall - other.wall, self.own - other.own, busy)

    def to_dict(self) -> dict[str, float | None]:
        """Cores that this process and the others took, on average."""
        wall = self.wall or 1.0
        others = None if self.busy is None else round(max(0.0, self.busy - self.own) / wall, 2)
        return {"own_cores": round(self.own / wall, 2), "other_cores": others}

    def describe(self, before: float, after: float) -> list[str]:
        """Lines for a header, a warning first where other processes shared the machine."""
        cores = self.to_dict()
        lines = [f"load average {before:g} before, {after:g} after"]
        if cores["other_cores"] is not None:
            lines[0] += (
                f"; while timing, this process took {cores['own_cores']:g} cores and others "
                f"{cores['other_cores']:g}"
            )
            if cores["other_cores"] > 0.2:
                lines.insert(
                    0,
                    "**HIGH LOAD: other processes shared the machine. Times are too long; ratios "
                    "of sides that ran in rotation suffer less.**",
                )
        return lines


def _busy_seconds() -> float | None:
    """Core seconds since boot in which anything ran, or the hypervisor kept the core."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


# --- arguments and results -----------------------------------------------------------------------


def parse_shape(text: str) -> tuple[int, int]:
    """ "128x100" -> (128, 100), for argparse."""
    rows, x, classes = text.partition("x")
    if not (x and rows.isdigit() and classes.isdigit() and int(rows) and int(classes)):
        raise argparse.ArgumentTypeError(f"expected rows x classes like 128x100, got {text!r}")
    return int(rows), int(classes)


def write_report(stem: Path, document: Any, text: str) -> None:
    """STEM.json and STEM.md, each replaced at once: a killed run leaves what it had."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".json", json.dumps(document, indent=1) + "\n"), (".md", text)):
        draft = stem.with_name(stem.name + suffix + ".part")
        draft.write_text(content, "utf-8")
        draft.replace(stem.with_name(stem.name + suffix))
