"""The command as a user meets it, with real trainings of a data set that every process can load."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time

import pytest

from ltkernels.compare.__main__ import _left_out, main
from ltkernels.train import load_result
from tiny_data import process_environment

DIGITS = ["--dataset", "digits-lt", "--threads", "1", "--set", "epochs=1", "--resamples", "1000"]


@pytest.fixture(autouse=True)
def _children_import_this_package(monkeypatch):
    for name, value in process_environment().items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_it_trains_what_is_missing_and_reports(tmp_path, capsys):
    out = tmp_path / "out"
    common = [*DIGITS, "--out", str(out), "--posthoc", "logit_adjustment,tau_norm"]
    assert main([*common, "--methods", "kd", "--seeds", "1"]) == 0
    text = capsys.readouterr().out
    assert "2 runs in" in text
    assert "all 2 runs are finished" in text
    assert load_result(out / "kd-0")["teacher"]["run"] == str(out.resolve() / "ce-0")
    report = json.loads((out / "report.json").read_text())
    assert report["baseline"] == "ce"
    rows = ["ce", "ce + logit adjustment", "ce + tau-normalisation"]
    assert [entry["name"] for entry in report["entries"]][:3] == rows
    assert list(report["differences"])[:3] == [*rows[1:], "kd"]
    assert report["runs"]["kd"]["0"]["seconds_before"].keys() == {"teacher"}
    assert "test images only" in (out / "report.md").read_text()

    # Again, with logits of one run under another name: nothing is trained, they are the same.
    saved = f"copy={out / 'kd-0'}"
    made = (out / "ce-0" / "result.json").stat().st_mtime_ns
    again = ["--methods", "kd", "--seeds", "1", "--logits", saved, "--baseline", "kd"]
    assert main([*common, *again]) == 0
    assert "0 to train" in capsys.readouterr().out
    assert (out / "ce-0" / "result.json").stat().st_mtime_ns == made
    report = json.loads((out / "report.json").read_text())
    copy = report["differences"]["copy"]["overall"]
    assert (copy["points"], copy["low"], copy["high"], copy["p"]) == (0, 0, 0, 1)

    # A report of less says what it leaves out.
    assert main([*common, "--methods", "ce", "--seeds", "1", "--report-only"]) == 0
    note = "in this folder, but not in this report: kd-0"
    assert note in json.loads((out / "report.json").read_text())["remarks"]


@pytest.mark.slow
def test_a_failed_run_is_named_and_the_others_are_reported(tmp_path, capsys):
    grid = tmp_path / "grid.toml"
    grid.write_text(
        '[bad]\nmethod = "ce"\nlr = 1e30\n[child]\nmethod = "kd"\nteacher = "bad"\n[ce]\n'
    )
    arguments = [*DIGITS, "--grid", str(grid), "--seeds", "1", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--posthoc", ""]) == 1
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if " failed: " in line]
    assert len(lines) == 2
    assert lines[0].startswith("bad-0 failed: ")
    assert "the loss is nan" in lines[0]
    assert lines[1] == "child-0 failed: not started, as it needs bad-0"
    text = (tmp_path / "out" / "report.md").read_text()
    assert "- bad, seed 0: " in text
    assert "| ce | " in text


@pytest.mark.slow
def test_ctrl_c_saves_and_the_printed_command_goes_on(tmp_path):
    arguments = [
        *("--dataset", "digits-lt", "--threads", "1", "--methods", "ce", "--seeds", "1"),
        *("--set", "epochs=8", "--set", "batch_size=8", "--out", "out", "--posthoc", ""),
    ]

    def start(words):
        return subprocess.Popen(
            [sys.executable, "-m", "ltkernels.compare", *words],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    process = start(arguments)
    rows = tmp_path / "out" / "ce-0" / "metrics.jsonl"
    while not rows.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert load_result(rows.parent) is None
    command = shlex.split(error.strip().splitlines()[-1])
    assert command == ["python", "-m", "ltkernels.compare", *arguments]
    again = start(command[3:])
    output, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    assert load_result(rows.parent) is not None
    assert str(tmp_path / "out") not in output  # paths as they were given


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "rido"], "unknown method 'rido'"),
        (["--methods", "ce", "--grid", "ride"], "expected one of the two"),
        (["--methods", ""], "--methods: expected names, got none"),
        (["--methods", "", "--logits", "x=none.npz"], "--methods: expected names, got none"),
        (["--only", ","], "--only: expected names, got none"),
        (["--grid", ""], "there is no grid ''"),
        (["--methods", "ce", "--only", "ce"], "--only chooses from a grid"),
        (["--methods", "ce", "--baseline", "kd"], "unknown baseline 'kd' (there are ce)"),
        (["--methods", "ce", "--set", "seed=1"], "--set seed: this differs from run to run"),
        (["--methods", "ce", "--set", "threads=1"], "give it as --threads"),
        (["--methods", "ce", "--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["--methods", "ce", "--posthoc", "x"], "unknown post-hoc row 'x'"),
        (["--methods", "ce", "--dataset", "none"], "unknown data set 'none'"),
        (["--logits", "x=none.npz"], "there is no run and no file none.npz"),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*/*"))


def test_only_one_comparison_works_in_a_folder(tmp_path, capsys):
    import fcntl

    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["--methods", "ce", "--out", str(tmp_path / "out")]) == 2
    assert "another comparison is at work in" in capsys.readouterr().err


def test_report_only_trains_nothing(tmp_path, capsys):
    arguments = [*DIGITS, "--methods", "ce", "--out", str(tmp_path / "out"), "--report-only"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "missing: ce, seed 0: not trained yet" in error
    assert "nothing to compare" in error


def test_what_the_folder_holds_beside_the_report_is_one_line(tmp_path):
    assert _left_out(tmp_path, []) == []
    for name in ("kd-1", "kd-0", "ce-0", "begun-0"):
        (tmp_path / name).mkdir()
        if name != "begun-0":
            (tmp_path / name / "result.json").write_text("{}")
    (tmp_path / "link-0").symlink_to("ce-0")
    note = "in this folder, but not in this report: kd-0, kd-1"
    assert _left_out(tmp_path, [tmp_path / "ce-0"]) == [note]
