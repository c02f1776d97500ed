"""Loader processes: what they fill, and that they are gone whatever happens."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest

from ltkernels.data.workers import fill_batches
from tiny_data import process_environment

SIZES = [5, 5, 5, 5, 5, 5, 2]


def number(row, batch, place):
    row[:] = 10 * batch + place


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("ahead", [1, 2, 100])
def test_every_row_is_filled_once_in_its_place(workers, ahead):
    batches = [b.copy() for b in fill_batches(number, SIZES, (3,), workers=workers, ahead=ahead)]
    assert [b.shape for b in batches] == [(n, 3) for n in SIZES]
    for index, batch in enumerate(batches):
        assert np.array_equal(batch[:, 0], 10 * index + np.arange(len(batch)))
    assert not multiprocessing.active_children()


def test_no_batch_needs_no_process():
    assert list(fill_batches(number, [], (3,), workers=2)) == []


def test_processes_stay_ahead_by_a_bound(tmp_path):
    def fill(row, batch, place):
        (tmp_path / f"{batch}").touch()

    with closing(fill_batches(fill, [1] * 20, (1,), workers=1, ahead=3)) as batches:
        next(batches)
        while len(list(tmp_path.iterdir())) < 3:
            time.sleep(0.01)
        time.sleep(0.2)
        assert len(list(tmp_path.iterdir())) == 3
    assert not multiprocessing.active_children()


def test_an_error_comes_to_the_caller_and_ends_the_processes():
    def fill(row, batch, place):
        if (batch, place) == (2, 3):
            raise ValueError("cannot read köln.jpg")

    with pytest.raises(ValueError, match=r"cannot read köln\.jpg"):
        list(fill_batches(fill, SIZES, (1,), workers=2))
    assert not multiprocessing.active_children()


def test_an_unforeseen_error_shows_where_it_was_raised():
    def fill(row, batch, place):
        raise KeyError("surprise")

    with pytest.raises(ChildProcessError, match=r"(?s)loader process 0 failed.*in fill.*surprise"):
        list(fill_batches(fill, SIZES, (1,), workers=2))


@pytest.mark.parametrize(("how", "message"), [(3, "exit code 3"), (-9, "out of memory")])
def test_a_process_that_dies_is_told(how, message):
    def fill(row, batch, place):
        if batch == 1:
            os._exit(how) if how > 0 else os.kill(os.getpid(), -how)

    with pytest.raises(ChildProcessError, match=message):
        list(fill_batches(fill, SIZES, (1,), workers=2))
    assert not multiprocessing.active_children()


def test_leaving_early_ends_the_processes():
    with closing(fill_batches(number, SIZES, (3,), workers=2)) as batches:
        next(batches)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


SCRIPT = """
import multiprocessing, time
from contextlib import closing
from ltkernels.data.workers import fill_batches

def fill(row, batch, place):
    time.sleep(0.01)

with closing(fill_batches(fill, [10] * 10000, (1,), workers=2)) as batches:
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    for batch in batches:
        pass
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_their_parent(number):
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=process_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    children = [int(word) for word in parent.stdout.readline().split()]
    assert len(children) == 2
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # as a terminal does: the children get it, too
    else:
        parent.kill()
    _, errors = parent.communicate(timeout=60)
    assert "Process " not in errors, "children say nothing"
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    end = time.monotonic() + 20
    while any(map(alive, children)):
        assert time.monotonic() < end, "a process outlives its parent"
        time.sleep(0.05)


def alive(pid):
    """Whether a process runs; one that waits to be collected does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
