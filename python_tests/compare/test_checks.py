"""What is found wrong before anything is trained."""

from __future__ import annotations

import numpy as np
import pytest

from ltkernels.compare.__main__ import main
from ltkernels.compare.checks import check_before_training
from ltkernels.compare.plan import make_plan, method_grid
from ltkernels.data import load
from ltkernels.train import ConfigError
from tiny_text import tiny_text_dataset

DIGITS = {"dataset": "digits-lt"}


@pytest.fixture(scope="module")
def digits():
    return load("digits-lt")


@pytest.fixture
def write(tmp_path, digits):
    """Logits of the data set's test images, but for what is changed."""

    def make(**changed):
        labels = digits.test_labels.numpy()
        arrays = {"logits": np.eye(10, dtype=np.float32)[labels], "labels": labels, **changed}
        np.savez(tmp_path / "a.npz", **arrays)
        return tmp_path / "a.npz"

    return make


@pytest.fixture
def trains_nothing(monkeypatch):
    def run_all(*arguments, **options):
        raise AssertionError("it trains")

    monkeypatch.setattr("ltkernels.compare.__main__.run_all", run_all)


def wrong_files(digits):
    labels, counts = digits.test_labels.numpy(), digits.class_counts.numpy()
    return {
        "labels": ({"labels": labels[::-1]}, "of other test images than the data set digits-lt"),
        "fewer": ({"logits": np.zeros((3, 10), np.float32)}, "logits of 3 test images"),
        "counts": ({"class_counts": counts + 1}, "of other training images a class"),
        "split": ({"split": "0123"}, "trained on another split of the data"),
        "name": ({"logit": labels}, "unknown array 'logit'"),
    }


@pytest.mark.parametrize("kind", ["labels", "fewer", "counts", "split", "name", "broken", "empty"])
def test_a_file_that_does_not_fit_costs_no_training(
    kind, write, digits, tmp_path, trains_nothing, capsys
):
    if kind in ("broken", "empty"):
        path, message = tmp_path / "a.npz", "a.npz: "
        path.write_bytes(b"PK\x03\x04 no more" if kind == "broken" else b"")
    else:
        changed, message = wrong_files(digits)[kind]
        path = write(**changed)
    out = ["--dataset", "digits-lt", "--out", str(tmp_path / "out")]
    assert main(["--methods", "ce", "--logits", f"m={path}", *out]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --logits m: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_file_that_fits_and_a_run_to_come_are_no_error(write, tmp_path):
    plan = make_plan(method_grid(["ce"]), 1, DIGITS, tmp_path / "out")
    plan.jobs[0].folder.mkdir(parents=True)
    files = {"m": [write()], "copy": [plan.jobs[0].folder]}
    posthoc = ["logit_adjustment", "tau_norm"]
    for name in ("m", "copy", "ce + logit adjustment", "copy + tau-normalisation"):
        check_before_training(plan, files, posthoc=posthoc, baseline=name)
    keep = {"posthoc": posthoc, "baseline": "m + logit adjustment"}
    check_before_training(plan, files, **keep, files_keep_prior=True)
    with pytest.raises(ConfigError, match=r"there will be no 'm \+ logit adjustment'"):
        check_before_training(plan, files, **keep)


def test_a_baseline_that_there_will_not_be_is_named_before_training(
    tmp_path, trains_nothing, capsys
):
    arguments = ["--dataset", "digits-lt", "--methods", "ce,balanced_softmax"]
    baseline = "balanced_softmax + logit adjustment"
    assert main([*arguments, "--baseline", baseline, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: --baseline: there will be no '{baseline}' (there are ce, ce + logit adjustment, "
        "ce + tau-normalisation, balanced_softmax, balanced_softmax + tau-normalisation)"
    ]


def test_a_method_for_images_is_named_before_texts_are_trained(
    tmp_path, monkeypatch, trains_nothing, capsys
):
    monkeypatch.setattr("ltkernels.compare.checks.load_dataset", lambda _: tiny_text_dataset())
    arguments = ["--dataset", "wordnet-lt", "--methods", "ce,ride", "--seeds", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "error: ride: `method`: ride needs images" in capsys.readouterr().err
