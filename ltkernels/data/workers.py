"""Processes that fill batches in shared memory, ahead of their use.

The processes are forked when the first batch is asked for: they know every batch by then, so that
nothing is sent to them but that a place in the ring is free again, and nothing comes back but that
a part is done. The ring is anonymous memory, which ``/dev/shm`` (64 MB in a container) does not
bound, and nothing of it is left when the processes end, however they end.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType

import numpy as np

from .images import Array

__all__ = ["Workers", "fill_batches"]

_SIGNALS = {signal.SIGINT, signal.SIGTERM}


class Workers:
    """Forked processes with a connection each; leaving the context ends them.

    Args:
        count: processes.
        work: what each does with its number and its connection. A ``ValueError`` that it raises is
            raised again by :meth:`receive`. It must not use torch, whose threads are not forked.
    """

    def __init__(self, count: int, work: Callable[[int, Connection], None]) -> None:
        context = multiprocessing.get_context("fork")
        pairs = [context.Pipe() for _ in range(count)]
        self.connections = [own for own, _ in pairs]
        self._processes: list[BaseProcess] = []
        # A Ctrl-C between the fork and the new handlers would run this process's handler there.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            for number in range(count):
                process = context.Process(target=_run, args=(number, pairs, work), daemon=True)
                process.start()
                self._processes.append(process)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for _, theirs in pairs:
                theirs.close()

    def receive(self, number: int) -> bytes:
        """The next message of a process.

        Raises:
            ValueError: the one that it raised.
            ChildProcessError: it ended, or failed.
        """
        try:
            kind, _, text = self.connections[number].recv_bytes().partition(b" ")
        except (EOFError, ConnectionError) as error:
            process = self._processes[number]
            process.join(5)
            raise ChildProcessError(
                f"loader process {number} ended with exit code {process.exitcode}"
                + ("; the system may be out of memory" if process.exitcode == -9 else "")
            ) from error
        if kind == b"bad":
            raise ValueError(text.decode())
        if kind == b"failed":
            raise ChildProcessError(f"loader process {number} failed: {text.decode()}")
        return text

    def send(self, number: int, message: bytes) -> None:
        """Say something to a process; one that has ended is found out by :meth:`receive`."""
        try:
            self.connections[number].send_bytes(message)
        except ConnectionError:
            return

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        for connection in self.connections:
            connection.close()


def _run(
    number: int,
    pairs: Sequence[tuple[Connection, Connection]],
    work: Callable[[int, Connection], None],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    # Ends that stay open here would hide from the others that the parent is gone.
    for other, (parents, childs) in enumerate(pairs):
        parents.close()
        if other != number:
            childs.close()
    connection = pairs[number][1]
    try:
        try:
            work(number, connection)
        except (EOFError, ConnectionError):
            raise
        except ValueError as error:
            connection.send_bytes(b"bad " + str(error).encode())
        except Exception:
            connection.send_bytes(b"failed " + traceback.format_exc().strip().encode())
    except (EOFError, ConnectionError):
        os._exit(1)  # the parent is gone, and with it everybody who would read a message


def fill_batches(
    fill: Callable[[Array, int, int], None],
    sizes: Sequence[int],
    shape: tuple[int, ...],
    *,
    workers: int,
    ahead: int = 4,
) -> Generator[Array, None, None]:
    """Fill batches of bytes in processes, `ahead` of them at a time.

    Every process does its share of every batch, so that the first one is there soon.

    Args:
        fill: writes one row: called with the row (uint8, of `shape`), the number of the batch and
            that of the row in it.
        sizes: rows of each batch.
        shape: of a row.
        workers: number of processes, >= 1.
        ahead: batches that may be filled and not yet used, >= 1.

    Yields:
        uint8 ``[n, *shape]``, valid until the next one is asked for.

    Raises:
        ValueError: the one that `fill` raised.
        ChildProcessError: a process ended, or failed.
    """
    if not sizes:
        return
    ahead = min(ahead, len(sizes))
    ring_shape = (ahead, max(sizes), *shape)
    # As long as an array looks at it the memory stays; nobody has to close it.
    memory = mmap.mmap(-1, max(1, int(np.prod(ring_shape))))
    ring = np.frombuffer(memory, np.uint8, count=int(np.prod(ring_shape))).reshape(ring_shape)

    def work(worker: int, connection: Connection) -> None:
        for number, size in enumerate(sizes):
            if number >= ahead:
                connection.recv_bytes()
            for row in range(worker, size, workers):
                fill(ring[number % ahead, row], number, row)
            connection.send_bytes(b"done")

    with Workers(workers, work) as group:
        for number, size in enumerate(sizes):
            for worker in range(workers):
                group.receive(worker)
            yield ring[number % ahead, :size]
            if number + ahead < len(sizes):
                for worker in range(workers):
                    group.send(worker, b"free")
