"""What is shown while a run trains."""

from __future__ import annotations

import io
import sys

import pytest

from ltkernels.train import progress

ROW = {
    "epoch": 2,
    "loss": 1.25,
    "lr": 0.1,
    "images_per_second": 1234.5,
    "test": {"overall": 61.25},
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def drive(shown):
    shown.start("bkd", steps=40, done=10)
    for _ in range(10):
        shown.step(128, 2.0)
    shown.epoch(ROW, 4)
    shown.note("a [note]")
    shown.stop()


def test_plain_line_says_where_the_run_is(capsys):
    shown = progress.make_progress()
    assert type(shown) is progress.PlainProgress
    drive(shown)
    line, note = capsys.readouterr().out.splitlines()
    for part in ("bkd", "epoch 2/4", "loss 1.2500", "lr 0.1", "1,234 images/s", "test 61.2 %"):
        assert part in line
    assert note == "a [note]"


def test_time_left_extrapolates_the_steps_made_now(capsys, monkeypatch):
    clock = iter([100.0, 190.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    shown = progress.PlainProgress()
    shown.start("ce", steps=40, done=10)
    for _ in range(10):
        shown.step(1, None)
    shown.epoch(ROW, 4)
    assert "3:00 left" in capsys.readouterr().out  # 90 s for 10 steps, 20 to go


def test_terminal_gets_a_live_bar(monkeypatch):
    pytest.importorskip("rich")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    shown = progress.make_progress()
    assert type(shown) is progress.LiveProgress
    drive(shown)
    text = terminal.getvalue()
    assert "epoch 2/4" in text
    assert "a [note]" in text
    assert "images/s" in text


def test_terminal_without_rich_gets_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert type(progress.make_progress()) is progress.PlainProgress
