"""What a person sees while a run trains: a live bar on a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LiveProgress", "PlainProgress", "Progress", "SilentProgress", "make_progress"]


class Progress(Protocol):
    """What the loop tells about itself."""

    def start(self, title: str, steps: int, done: int) -> None:
        """A stage of ``steps`` steps begins, ``done`` of them already made by an earlier run."""

    def step(self, images: int, loss: float | None) -> None:
        """One step is made; the loss where it is known without waiting for the device."""

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """An epoch ended with this row of ``metrics.jsonl``."""

    def note(self, text: str) -> None:
        """One line for the reader."""

    def stop(self) -> None:
        """The stage ended."""


def _epoch_line(title: str, row: Mapping[str, Any], epochs: int, left: float) -> str:
    parts = [
        f"{title:<4} epoch {row['epoch']:>{len(str(epochs))}}/{epochs}",
        f"loss {row['loss']:.4f}",
        f"lr {row['lr']:.2g}",
        f"{row['images_per_second']:,.0f} images/s",
    ]
    for split in ("validation", "test"):
        if split in row:
            parts.append(f"{split} {row[split]['overall']:.1f} %")
    if left >= 1:
        parts.append(f"{_clock(left)} left")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class SilentProgress:
    """Says nothing: other processes of a data-parallel run, and callers that want no output."""

    def start(self, title: str, steps: int, done: int) -> None:
        """See :class:`Progress`."""

    def step(self, images: int, loss: float | None) -> None:
        """See :class:`Progress`."""

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """See :class:`Progress`."""

    def note(self, text: str) -> None:
        """See :class:`Progress`."""

    def stop(self) -> None:
        """See :class:`Progress`."""


class PlainProgress(SilentProgress):
    """One line an epoch on standard output."""

    def __init__(self) -> None:
        self._title = ""
        self._steps = self._first = self._done = 0
        self._started = 0.0

    def start(self, title: str, steps: int, done: int) -> None:
        """See :class:`Progress`."""
        self._title, self._steps, self._first, self._done = title, steps, done, done
        self._started = time.perf_counter()

    def step(self, images: int, loss: float | None) -> None:
        """See :class:`Progress`."""
        self._done += 1

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """See :class:`Progress`."""
        self.note(_epoch_line(self._title, row, epochs, self._seconds_left()))

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        print(text, flush=True)

    def _seconds_left(self) -> float:
        made = self._done - self._first
        spent = time.perf_counter() - self._started
        return spent / made * (self._steps - self._done) if made else 0.0


class LiveProgress(PlainProgress):
    """A bar that moves with every step (needs ``rich``); epochs with an evaluation leave a line."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        super().__init__()
        self._bar = Bar(
            TextColumn("[bold]{task.fields[title]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %  epoch {task.fields[epoch]}"),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            transient=True,
        )
        self._epoch = 0
        self._loss: float | None = None
        self._images = 0

    def start(self, title: str, steps: int, done: int) -> None:
        """See :class:`Progress`."""
        super().start(title, steps, done)
        self._images, self._loss = 0, None
        for old in list(self._bar.task_ids):
            self._bar.remove_task(old)
        self._bar.add_task(
            "", total=steps, completed=done, title=title, epoch="1", loss="-", rate="-"
        )
        self._bar.start()

    def step(self, images: int, loss: float | None) -> None:
        """See :class:`Progress`."""
        super().step(images, loss)
        self._images += images
        if loss is not None:
            self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        rate = self._images / (time.perf_counter() - self._started)
        self._bar.update(
            self._bar.task_ids[0],
            completed=self._done,
            rate=f"{rate:,.0f}",
            loss="-" if self._loss is None else f"{self._loss:.3f}",
        )

    def epoch(self, row: Mapping[str, Any], epochs: int) -> None:
        """See :class:`Progress`."""
        if "test" in row or "validation" in row:
            self.note(_epoch_line(self._title, row, epochs, self._seconds_left()))
        self._bar.update(self._bar.task_ids[0], epoch=str(min(row["epoch"] + 1, epochs)))

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        """See :class:`Progress`."""
        self._bar.stop()


def make_progress() -> Progress:
    """The live bar on a terminal that has ``rich``, plain lines everywhere else."""
    if sys.stdout.isatty():
        try:
            return LiveProgress()
        except ModuleNotFoundError:
            return PlainProgress()
    return PlainProgress()
