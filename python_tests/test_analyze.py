"""Bias and variance over draws: the numbers, what is resumed, what is refused."""

from __future__ import annotations

import json

import pytest

from ltkernels.analyze import __main__ as cli
from ltkernels.analyze import analyze_bias_variance
from ltkernels.train import ConfigError

SHORT = [
    "--dataset",
    "digits-lt",
    "--models",
    "2",
    *("--set", "epochs=1"),
    *("--set", "model.width=2"),
    *("--set", "model.name=resnet8"),
]


def analyze(out, *more):
    return cli.main(["bias-variance", "--methods", "ce", "--out", str(out), *SHORT, *more])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("bias")
    assert analyze(out) == 0
    return out


def test_error_is_bias_and_both_parts_of_the_variance(report):
    (row,) = json.loads((report / "bias_variance.json").read_text())
    assert row["models"] == 2
    for group in ("overall", "many", "medium", "few"):
        if row["error"][group] is None:
            continue
        parts = row["variance_unbiased"][group] + row["variance_biased"][group]
        assert row["variance"][group] == pytest.approx(parts)
        # Two models: on a biased image the one that differs may be right or wrong again.
        low = row["bias"][group] + row["variance_unbiased"][group] - row["variance_biased"][group]
        high = row["bias"][group] + row["variance_unbiased"][group]
        assert low - 1e-9 <= row["error"][group] <= high + 1e-9


def test_models_are_trained_on_draws_of_their_own(report):
    hashes = [
        json.loads((report / "ce" / f"draw-{i}" / "result.json").read_text())["split_hash"]
        for i in range(2)
    ]
    assert hashes[0] != hashes[1]


def test_finished_models_are_not_trained_again(report, capsys):
    before = [(report / "ce" / f"draw-{i}" / "result.json").stat().st_mtime_ns for i in range(2)]
    assert analyze(report) == 0
    after = [(report / "ce" / f"draw-{i}" / "result.json").stat().st_mtime_ns for i in range(2)]
    assert before == after
    assert "done" not in capsys.readouterr().out


def test_what_a_training_says_is_passed_on(tmp_path, capsys):
    assert analyze(tmp_path, "--set", "lr=-1") == 1
    assert "error: ce, draw 0: `lr`: expected a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"), [(["--models", "1"], "--models"), (["--methods", "x"], "'x'")]
)
def test_wrong_usage(more, named, tmp_path, capsys):
    assert analyze(tmp_path, *more) == 2
    assert named in capsys.readouterr().err


def test_one_model_has_no_variance(report):
    with pytest.raises(ConfigError, match="at least 2 models"):
        analyze_bias_variance([report / "ce" / "draw-0"])
