"""Train what is missing: each run in a process of its own, some at a time."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltkernels.train.checkpoint import write_atomic
from ltkernels.train.config import to_toml
from ltkernels.train.run import load_result

from .plan import Job

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["Outcome", "run_all"]

LOG = "train.log"
_POLL = 0.05  # seconds


@dataclass
class Outcome:
    """What became of the runs that were missing.

    Args:
        failed: folder -> why, in one line.
        interrupted: whether Ctrl-C stopped them.
    """

    failed: dict[Path, str] = field(default_factory=dict)
    interrupted: bool = False


def run_all(
    jobs: Sequence[Job],
    *,
    at_a_time: int = 1,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Train the runs that are not finished; what was interrupted goes on.

    A run starts when those it needs are finished; where one failed, those that need it are not
    started and the others go on. The first Ctrl-C (or SIGTERM, or SIGHUP) is passed on to the
    running ones, which save and exit; the second one, which aborts, too.

    Args:
        jobs: each after those it needs.
        at_a_time: processes at a time.
        arguments: more arguments of ``python -m ltkernels.train``.
        environment: of the processes; None: that of this one.
        say: told about every run that ends.
    """
    outcome, clock = Outcome(), _Clock(jobs, at_a_time)
    waiting = [job for job in jobs if load_result(job.folder) is None]
    missing = {job.folder for job in waiting}
    names = {job.folder: job.name for job in jobs}
    running: dict[Path, subprocess.Popen[bytes]] = {}

    def fail(folder: Path, why: str) -> None:
        outcome.failed[folder] = why
        clock.drop(folder)
        say(f"{names[folder]} failed: {why}")

    with _Signals() as signals:
        try:
            while waiting or running:
                signals.pass_on(running.values())
                if signals.count:
                    waiting.clear()
                for job in list(waiting):
                    broken = [need for need in job.needs if need in outcome.failed]
                    if broken:
                        waiting.remove(job)
                        fail(job.folder, f"not started, as it needs {names[broken[0]]}")
                    elif len(running) < at_a_time and missing.isdisjoint(job.needs):
                        waiting.remove(job)
                        clock.start(job.folder)
                        running[job.folder] = _start(job, arguments, environment)
                for folder in [f for f, process in running.items() if process.poll() is not None]:
                    code, result = running.pop(folder).returncode, load_result(folder)
                    if code == 0 and result is not None:
                        missing.remove(folder)
                        clock.stop(folder)
                        overall, seconds = result["accuracy"]["overall"], result["seconds"]
                        say(f"{names[folder]}: {overall:.1f} %, {seconds:.0f} s; {clock}")
                    elif not signals.count:
                        fail(folder, _reason(folder, code))
                time.sleep(_POLL if running else 0)
        finally:  # only an error of this very program leaves any
            for process in running.values():
                process.send_signal(signal.SIGINT)
        outcome.interrupted = signals.count > 0
    return outcome


def _start(
    job: Job, arguments: Sequence[str], environment: Mapping[str, str] | None
) -> subprocess.Popen[bytes]:
    """The training of a run whose configuration stands in its folder."""
    job.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(job.folder / "config.toml", to_toml(job.config))
    with (job.folder / LOG).open("ab") as log:
        # In a session of its own: a terminal's Ctrl-C would reach it twice, which means abort.
        return subprocess.Popen(
            _command(job, arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )


def _command(job: Job, arguments: Sequence[str]) -> list[str]:
    command = [sys.executable, "-m", "ltkernels.train", "--resume", "--out", str(job.folder)]
    return [*command, *arguments]


def _reason(folder: Path, code: int) -> str:
    """The last line of a run's log, which is why it failed."""
    log = folder / LOG
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    if code < 0:
        return f"ended by {signal.Signals(-code).name} (see {log})"
    last = said[-1].removeprefix("error: ") if said else "no message"
    return f"{last} (see {log})"


class _Signals:
    """While entered, signals that end a program are counted, and passed on to the trainings."""

    def __init__(self) -> None:
        self.count = self._passed = 0
        self._previous: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            text = "\nthe running trainings save; press Ctrl-C again to abort them\n"
            os.write(sys.stderr.fileno(), text.encode())

    def pass_on(self, processes: Iterable[subprocess.Popen[bytes]]) -> None:
        """As many signals as came since."""
        for process in list(processes):
            if self._passed < self.count:
                process.send_signal(signal.SIGINT)
        self._passed = self.count

    def __enter__(self) -> _Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class _Clock:
    """How much is left: runs, and the time they will take by those that this session trained.

    What an earlier one left says how long training took, not how long a process did, and perhaps
    on another machine; a run that goes on from a checkpoint is a part of one.
    """

    def __init__(self, jobs: Sequence[Job], at_a_time: int) -> None:
        self._jobs, self._at_a_time = jobs, at_a_time
        self._kind = {job.folder: _kind(job) for job in jobs}
        self._seconds: dict[str, list[float]] = {}
        self._began: dict[Path, float] = {}
        self._continued: set[Path] = set()
        self._done = {job.folder for job in jobs if load_result(job.folder) is not None}

    def start(self, folder: Path) -> None:
        self._began[folder] = time.perf_counter()
        if (folder / "checkpoint.pt").exists():
            self._continued.add(folder)

    def stop(self, folder: Path) -> None:
        spent = time.perf_counter() - self._began.pop(folder)
        if folder not in self._continued:
            self._seconds.setdefault(self._kind[folder], []).append(spent)
        self._done.add(folder)

    def drop(self, folder: Path) -> None:
        self._done.add(folder)

    def __str__(self) -> str:
        left = [job.folder for job in self._jobs if job.folder not in self._done]
        if not left:
            return f"all {len(self._jobs)} runs are finished"
        count = f"{len(left)} of {len(self._jobs)} runs left"
        every = [s for seconds in self._seconds.values() for s in seconds]
        if not every:
            return count
        now, seconds = time.perf_counter(), 0.0
        for folder in left:
            expected = statistics.mean(self._seconds.get(self._kind[folder], every))
            seconds += max(0.0, expected - (now - self._began.get(folder, now)))
        share = seconds / min(self._at_a_time, len(left))
        return f"{count}, about {_duration(share)}"


def _kind(job: Job) -> str:
    """Runs of one kind take about as long: those that differ in the seed alone."""
    return job.name.replace(f"-{job.config.seed}", "")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
