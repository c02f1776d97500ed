"""The command line as a user meets it: exit codes, one clear line, Ctrl-C and its way back."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ltkernels.train import Interrupted, TrainingError, cli
from ltkernels.train.interrupt import Interruption
from tiny_data import process_environment

DIGITS = ["--dataset", "digits-lt", "--threads", "1"]
SLOW = ["--set", "epochs=4", "--set", "batch_size=8"]  # a second: time enough for a Ctrl-C


def start(arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "ltkernels.train", *map(str, arguments)],
        cwd=cwd,
        env=process_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(out):
    clocks = ("seconds", "images_per_second")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in clocks} for x in lines]


def test_ctrl_c_saves_exits_130_and_resumes_to_the_same_numbers(tmp_path):
    process = start(["ce", *DIGITS, *SLOW, "--out", "stopped"], tmp_path)
    assert process.stdout is not None
    while "epoch 1/4" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "finishing this step" in error
    out = tmp_path / "stopped"
    assert not (out / "result.json").exists()
    assert 1 <= len(rows(out)) < 4

    command = shlex.split(error.strip().splitlines()[-1])
    assert command[:3] == ["python", "-m", "ltkernels.train"]
    resumed = start(command[3:], tmp_path)
    output, error = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, error
    assert "few (" in output

    assert cli.main(["ce", *DIGITS, *SLOW, "--out", str(tmp_path / "whole")]) == 0
    assert rows(out) == rows(tmp_path / "whole")
    a, b = (load_file(x / "model.safetensors") for x in (out, tmp_path / "whole"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_second_signal_aborts_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_demonstration_trains_both_and_the_teacher_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [*DIGITS, "--set", "epochs=2"]
    assert cli.main(arguments) == 0
    table = capsys.readouterr().out
    for name in ("ce ", "ce + logit adjustment", "bkd ", "many (", "ECE", "MACs", "parameters"):
        assert name in table
    assert "runs/quick/ce" in table
    assert "runs/quick/bkd" in table
    quick = tmp_path / "runs" / "quick"
    assert {p.name for p in quick.iterdir()} == {"ce", "bkd"}
    result = json.loads((quick / "bkd" / "result.json").read_text())
    assert result["teacher"]["run"] == str(quick / "ce")
    assert not (quick / "bkd" / "teacher").exists()

    assert cli.main(arguments) == 0  # again: beside the first, nothing is lost
    assert (tmp_path / "runs" / "quick-2" / "bkd" / "result.json").exists()
    assert cli.main([*arguments, "--out", "runs/quick"]) == 2
    assert cli.main([*arguments, "--out", "runs/quick", "--resume"]) == 0


def test_config_of_a_run_runs_it_again(tmp_path, capsys):
    first, again = tmp_path / "a", tmp_path / "b"
    keys = ["--set", "epochs=1", "--set", "model.width=4", "--seed", "3"]
    assert cli.main(["focal", *DIGITS, *keys, "--out", str(first)]) == 0
    assert cli.main(["--config", str(first / "config.toml"), "--out", str(again)]) == 0
    assert rows(first) == rows(again)
    assert json.loads((again / "result.json").read_text())["seed"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bdk"], "error: unknown method 'bdk'; did you mean bkd?"),
        (["ce", "--set", "epoch=3"], "error: unknown key `epoch`; did you mean `epochs`?"),
        (["ce", "--set", "epochs=x"], "error: `epochs`: expected an integer, got 'x'"),
        (["ce", "--recipe", "best"], "error: glyph-lt has no recipe 'best'"),
        (["ce", "--dataset", "glyphs"], "error: unknown data set 'glyphs'; did you mean glyph-lt?"),
        (["ce", "--resume"], "error: --resume needs --out"),
        (["ce", "--seed", "1", "--set", "seed=2"], "error: `seed` is given twice: 1 and 2"),
        (["--config", "missing.toml"], "error: cannot read the configuration missing.toml"),
    ],
)
def test_wrong_usage_is_exit_2_and_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_that_failed_before_it_began_is_in_nobodys_way(tmp_path):
    out = ["--out", str(tmp_path / "run")]
    assert cli.main(["ce", "--dataset", "cifar10-lt", "--set", "data.root=nowhere", *out]) == 1
    assert cli.main(["ce", *DIGITS, "--set", "epochs=1", *out]) == 0


def test_unknown_flag_is_exit_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--epochs", "3"])
    assert stop.value.code == 2
    assert "--epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ce", "--dataset", "cifar10-lt", "--set", "data.root=nowhere"], "error: `load`: cifar10"),
        (
            ["ce", *DIGITS, "--device", "nothing"],
            "error: unknown device 'nothing': expected auto, cpu",
        ),
    ],
)
def test_failure_is_exit_1_and_one_line(arguments, message, tmp_path, capsys):
    assert cli.main([*arguments, "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TrainingError, 1),
        (OSError, 1),
        (torch.OutOfMemoryError, 1),
        (Interrupted, 130),
        (KeyboardInterrupt, 130),
    ],
)
def test_exit_codes(error, code, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **keywords):
        raise error("why")

    monkeypatch.setattr(cli, "train", fail)
    arguments = ["--out", str(tmp_path / "run"), "--set", "lr=0.05", *DIGITS]
    assert cli.main(arguments) == code
    if code == 130:  # a demonstration's folder does not hold its settings: they are repeated
        command = shlex.split(capsys.readouterr().err.strip().splitlines()[-1])
        assert command[3:6] == ["--resume", "--out", str(tmp_path / "run")]
        assert {"lr=0.05", "digits-lt"} <= set(command)


def test_keys_the_method_does_not_read_are_named(tmp_path, capsys):
    keys = ["--set", "epochs=1", "--set", "temperature=4", "--set", "experts=4"]
    assert cli.main(["ce", *DIGITS, *keys, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err == "note: ce does not read `experts`, `temperature`\n"


@pytest.mark.parametrize(
    ("dataset", "keys", "notes"),
    [
        (
            "digits-lt",
            ["text.min_count=2", "model.embeddings=x", "data.crop=0.5", "data.holdout=0.1"],
            ["digits-lt does not read `data.crop`, `model.embeddings`, `text.min_count`"],
        ),
        (
            "agnews-lt",
            ["text.min_count=2", "data.image_size=32", "model.width=8", "experts=2"],
            [
                "ce does not read `experts`",
                "agnews-lt does not read `data.image_size`, `model.width`",
            ],
        ),
        ("imagenet-lt", ["data.image_size=32", "data.jitter=0.1", "data.crop=0.5"], []),
        ("imagenet-lt", ["text.max_words=9"], ["imagenet-lt does not read `text.max_words`"]),
        ("digits-lt", ["data.rotation=9"], []),
        (
            "digits-lt",
            ["data.rotation=9", "data.augment=false"],
            ["`data.rotation` turns no image with `data.augment` = false"],
        ),
    ],
)
def test_keys_the_data_set_does_not_read_are_named(
    dataset, keys, notes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(cli, "_train_one", lambda *arguments: None)
    settings = [word for key in keys for word in ("--set", key)]
    out = ["--out", str(tmp_path / "run")]
    assert cli.main(["ce", "--dataset", dataset, *settings, *out]) == 0
    assert capsys.readouterr().err == "".join(f"note: {note}\n" for note in notes)


def test_list_of_commands():
    out = subprocess.run(
        [sys.executable, "-m", "ltkernels"],
        env=process_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "python -m ltkernels.train" in out
    assert "backend" in out
