"""The runs of a plan: order, failures, Ctrl-C. The trainings are small programs without torch."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

import pytest

from ltkernels.compare import runner
from ltkernels.compare.plan import Job
from ltkernels.compare.runner import run_all
from ltkernels.train import resolve

RESULT = {"accuracy": {"overall": 50.0}, "seconds": 1.0}
TRAIN = """
import json, pathlib, signal, sys, time
folder, needs, what = pathlib.Path(sys.argv[1]), sys.argv[3:], sys.argv[2]
assert all((pathlib.Path(need) / "result.json").exists() for need in needs), "needs are missing"
assert (folder / "config.toml").exists()
if what == "fails":
    sys.exit("error: the loss is not finite")
if what == "killed":
    signal.raise_signal(signal.SIGKILL)
if what == "long":
    pressed = []
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    (folder / "began").touch()
    while not pressed:
        time.sleep(0.01)
    (folder / "saved").write_text(str(len(pressed)))
    sys.exit(130)
(folder / "result.json").write_text(RESULT)
"""
TRAIN = f"RESULT = {json.dumps(RESULT)!r}{TRAIN}"


@pytest.fixture
def jobs_of(tmp_path, monkeypatch):
    """``(name, what it does, names it needs)`` -> a job."""

    def make(*described):
        what = {tmp_path / name: does for name, does, _ in described}
        monkeypatch.setattr(
            runner,
            "_command",
            lambda job, arguments: [
                *(sys.executable, "-c", TRAIN, str(job.folder), what[job.folder]),
                *map(str, job.needs),
            ],
        )
        config = resolve({"dataset": "digits-lt"})
        return [
            Job(name, tmp_path / name, config, tuple(tmp_path / need for need in needs))
            for name, _, needs in described
        ]

    return make


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_runs_wait_for_those_they_need(jobs_of, at_a_time):
    jobs = jobs_of(("a", "", []), ("b", "", ["a"]), ("c", "", ["a", "b"]), ("d", "", []))
    said = []
    outcome = run_all(jobs, at_a_time=at_a_time, say=said.append)
    assert (outcome.failed, outcome.interrupted) == ({}, False)
    assert len(said) == 4
    assert said[0].startswith(("a: 50.0 %, 1 s; 3 of 4 runs left, about", "d: 50.0 %"))
    assert said[-1].endswith("all 4 runs are finished")
    # A second time there is nothing to do.
    assert run_all(jobs, say=said.append).failed == {}
    assert len(said) == 4


def test_a_failed_run_is_one_line_and_the_others_go_on(jobs_of, tmp_path):
    jobs = jobs_of(
        ("a", "fails", []), ("b", "", ["a"]), ("c", "", ["b"]), ("d", "", []), ("e", "killed", [])
    )
    said = []
    outcome = run_all(jobs, at_a_time=2, say=said.append)
    why = {folder.name: text for folder, text in outcome.failed.items()}
    assert why == {
        "a": f"the loss is not finite (see {tmp_path}/a/train.log)",
        "b": "not started, as it needs a",
        "c": "not started, as it needs b",
        "e": f"ended by SIGKILL (see {tmp_path}/e/train.log)",
    }
    assert (tmp_path / "d" / "result.json").exists()
    assert len(said) == 5
    assert all("\n" not in line for line in said)


def test_ctrl_c_is_passed_on_once_and_nothing_more_starts(jobs_of, tmp_path, capfd):
    jobs = jobs_of(("a", "long", []), ("b", "long", []), ("c", "", []))

    def press():
        while not all((tmp_path / name / "began").exists() for name in "ab"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=press)
    thread.start()
    outcome = run_all(jobs, at_a_time=2, say=lambda text: pytest.fail(text))
    thread.join()
    assert outcome.interrupted
    assert outcome.failed == {}
    assert [(tmp_path / name / "saved").read_text() for name in "ab"] == ["1", "1"]
    assert not (tmp_path / "c").exists()
    assert signal.getsignal(signal.SIGINT) is before
    assert "press Ctrl-C again to abort" in capfd.readouterr().err


def test_a_run_is_started_by_its_configuration(tmp_path):
    config = resolve({"dataset": "digits-lt", "epochs": 3})
    command = runner._command(Job("x", tmp_path, config, ()), ["--threads", "1"])
    assert command[1:3] == ["-m", "ltkernels.train"]
    assert command[3:] == ["--resume", "--out", str(tmp_path), "--threads", "1"]


def test_durations_and_what_is_left_are_by_kind(tmp_path, monkeypatch):
    assert [runner._duration(s) for s in (7.2, 600, 6000)] == ["7 s", "10 min", "1 h 40 min"]
    now = 0.0
    monkeypatch.setattr(runner.time, "perf_counter", lambda: now)
    jobs = []
    for seed in (0, 1, 2):
        for name in ("ce", "ride"):
            config = resolve({"dataset": "digits-lt", "seed": seed, "method": name})
            jobs.append(Job(f"{name}-{seed}", tmp_path / f"{name}-{seed}", config, ()))
            jobs[-1].folder.mkdir()
    # What an earlier session finished is done, but says nothing of the time that is left.
    for job in jobs[:2]:
        (job.folder / "result.json").write_text(json.dumps(RESULT))
    clocks = [runner._Clock(jobs, at_a_time) for at_a_time in (1, 2)]
    assert str(clocks[0]) == "4 of 6 runs left"
    for job, seconds in zip(jobs[2:4], (10.0, 100.0), strict=True):
        for clock in clocks:
            clock.start(job.folder)
        now += seconds
        for clock in clocks:
            clock.stop(job.folder)
    assert str(clocks[0]) == "2 of 6 runs left, about 2 min"
    assert str(clocks[1]) == "2 of 6 runs left, about 55 s"


def test_a_run_that_goes_on_says_nothing_of_whole_ones(jobs_of, tmp_path):
    jobs = jobs_of(("a", "", []), ("b", "", []))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "checkpoint.pt").touch()
    said = []
    run_all(jobs, say=said.append)
    assert said[0] == "a: 50.0 %, 1 s; 1 of 2 runs left"
