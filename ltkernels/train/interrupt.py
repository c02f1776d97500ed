"""The first Ctrl-C asks the loop to stop at a step; the second one aborts."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType, TracebackType

__all__ = ["Interrupted", "Interruption"]


class Interrupted(Exception):
    """Training was asked to stop; its checkpoint is saved."""


class Interruption:
    """While entered, SIGINT and SIGTERM set :attr:`requested`; a second raises KeyboardInterrupt.

    Outside the main thread, where Python sets no handlers, nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print(
            "\nfinishing this step and saving; press Ctrl-C again to abort",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()
