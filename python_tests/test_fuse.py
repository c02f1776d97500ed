"""``python -m ltkernels.fuse``: files of any origin, runs of the trainer, take-one-out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ltkernels.fuse import __main__ as cli
from ltkernels.fuse import evaluate, join, logits_of_run, read_logits, write_logits
from ltkernels.fusion import STRATEGIES, JointCalibration, balanced_weight
from ltkernels.train import resolve, train
from ltkernels.train.progress import SilentProgress
from tiny_data import TINY
from tiny_methods import DATA

COUNTS = np.array([150, 120, 50, 30, 8, 4])
CLASSES = {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}


def draw(rows, seed):
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 6
    arrays = {}
    for name, own in CLASSES.items():
        z = generator.normal(size=(rows, 3))
        for column, c in enumerate(own):
            z[:, column] += 3 * (labels == c)
        z[:, 2] += 2 * ~np.isin(labels, own)
        arrays[name] = z
    whole = generator.normal(size=(rows, 6)) + 2 * np.eye(6)[labels]
    return labels, arrays, whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("logits")
    labels, experts, whole = draw(120, 0)
    val_labels, val_experts, val_whole = draw(90, 1)
    arrays = {"labels": labels, "val_labels": val_labels, "class_counts": COUNTS}
    for name, own in CLASSES.items():
        arrays[f"logits_{name}"] = experts[name]
        arrays[f"val_logits_{name}"] = val_experts[name]
        arrays[f"classes_{name}"] = np.array(own)
    np.savez(out / "experts.npz", **arrays)
    np.save(out / "whole.npy", whole)
    np.save(out / "whole.val.npy", val_whole)
    np.save(out / "labels.npy", labels)
    np.save(out / "val_labels.npy", val_labels)
    np.save(out / "counts.npy", COUNTS)
    one = {
        "logits": torch.from_numpy(whole).float(),
        "val_logits": torch.from_numpy(val_whole).float(),
    }
    save_file(one, out / "whole.safetensors")
    return out


def fuse(*arguments):
    return cli.main([str(a) for a in arguments])


def rows_of(path):
    return {row["name"]: row for row in json.loads(path.read_text())}


def test_files_of_all_kinds_are_joined(folder, tmp_path, capsys):
    names = ("experts.npz", "whole.npy", "whole.safetensors")
    sources = [folder / name for name in names]
    assert fuse(*sources, "--take-one-out", "--json", tmp_path / "rows.json") == 0
    printed = capsys.readouterr().out
    rows = rows_of(tmp_path / "rows.json")
    assert set(STRATEGIES) | {"oracle", str(folder / "whole.npy")} <= set(rows)
    for strategy in STRATEGIES:
        for source in sources:
            assert f"{strategy} without {source}" in rows
    for name, row in rows.items():
        assert name in printed
        assert all(0 <= value <= 100 for value in row["accuracy"].values())
    fused = rows["joint_calibration"]["accuracy"]["overall"]
    assert fused > rows[str(folder / "whole.npy")]["accuracy"]["overall"]
    assert "120 test images, 90 validation images, 5 experts, 6 classes" in printed


def test_the_numbers_are_those_of_the_library(folder):
    ensemble = join([read_logits(folder / "experts.npz")])
    (row, _) = evaluate(ensemble, ["joint_calibration"])
    fusion = JointCalibration(list(CLASSES.values()))
    labels = ensemble.validation_labels
    fusion.fit(
        [m.validation for m in ensemble.members], labels, sample_weight=balanced_weight(labels)
    )
    with torch.no_grad():
        predicted = fusion([m.test for m in ensemble.members]).argmax(1)
    right = (predicted == ensemble.labels).double().mean()
    assert row.accuracy["overall"] == pytest.approx(100 * float(right))
    groups = [row.accuracy[g] for g in ("many", "medium", "few")]
    assert sum(groups) / 3 == pytest.approx(row.accuracy["overall"])


def test_labels_and_counts_may_be_files_of_their_own(folder, capsys):
    own = ["--labels", folder / "labels.npy", "--val-labels", folder / "val_labels.npy"]
    whole = folder / "whole.npy"
    assert fuse(whole, *own) == 0
    assert "-" in capsys.readouterr().out
    assert fuse(whole, *own, "--class-counts", folder / "counts.npy", "--rule", "sharma") == 0
    assert "groups by rule sharma" in capsys.readouterr().out


def test_without_validation_images_what_needs_no_fit(tmp_path, capsys):
    labels, _, whole = draw(60, 0)
    np.savez(tmp_path / "one.npz", logits=whole, labels=labels)
    assert fuse(tmp_path / "one.npz", "--method", "kl_min,soft_vote") == 0
    assert fuse(tmp_path / "one.npz") == 1
    assert "expert_selection is fitted on validation images, and" in capsys.readouterr().err


def test_a_shift_of_the_reject_logits(folder, tmp_path):
    plain = read_logits(folder / "experts.npz")
    rows = []
    for shift in (0, 5):
        out = tmp_path / f"{shift}.json"
        options = ["--method", "soft_vote", "--reject-shift", shift, "--json", out]
        assert fuse(folder / "experts.npz", *options) == 0
        rows.append(rows_of(out)["soft_vote"])
    assert rows[0]["ece"] != rows[1]["ece"]
    assert plain.members[0].rejects


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"scores": np.zeros((2, 3))}, "unknown array 'scores'"),
        ({"labels": np.zeros(2, int)}, "the array 'logits' is missing"),
        ({"logits": np.zeros((2, 3), int)}, "expected 'logits' to be floating"),
        ({"logits": np.zeros((2, 3)), "classes": np.arange(5)}, "3 columns for 5 classes"),
        ({"logits": np.zeros((2, 3)), "val_logits": np.zeros((2, 4))}, "'val_logits' has 4"),
        ({"logits": np.zeros((2, 3)), "labels": np.zeros(2)}, "'labels' to be integers"),
        ({"logits": np.zeros((2, 3))}, "no test labels"),
        ({"logits": np.zeros((2, 3)), "labels": np.zeros(4, int)}, "of 2 images, labels of 4"),
    ],
)
def test_wrong_files_are_named(arrays, message, tmp_path, capsys):
    np.savez(tmp_path / "wrong.npz", **arrays)
    assert fuse(tmp_path / "wrong.npz", "--method", "soft_vote") == 1
    assert message in capsys.readouterr().err


def test_wrong_usage(folder, tmp_path, capsys):
    assert fuse(tmp_path / "nothing") == 2
    assert "there is no run and no file" in capsys.readouterr().err
    assert fuse(folder / "experts.npz", "--method", "vote") == 2
    assert "unknown strategy 'vote'" in capsys.readouterr().err
    both = [folder / "experts.npz", folder / "whole.npy"]
    assert fuse(*both, "--write-logits", tmp_path / "x.npz") == 2
    (tmp_path / "other.txt").write_text("1")
    assert fuse(tmp_path / "other.txt") == 1
    assert "expected a run's folder or a file" in capsys.readouterr().err


def test_sources_that_do_not_fit_each_other(folder, tmp_path, capsys):
    labels, _, whole = draw(120, 0)
    np.savez(tmp_path / "other.npz", logits=whole, labels=labels[::-1])
    assert fuse(folder / "experts.npz", tmp_path / "other.npz") == 1
    assert "have different test labels" in capsys.readouterr().err


# --- runs -----------------------------------------------------------------------------------------

KEYS = {"epochs": 1, "data.holdout": 0.2, "data.holdout_min": 2, "subsets.thresholds": [15, 40]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    results = {}
    for method in ("cbe", "balanced_softmax"):
        keys = {**KEYS, "method": method}
        if method == "cbe":
            keys |= {"cbe.epochs": 1, "cbe.open_ratio": [4]}
        results[method] = train(
            resolve(TINY, keys), out / method, dataset=DATA, progress=SilentProgress()
        )
    return out, results


def test_a_run_says_what_it_reported(runs, tmp_path):
    out, results = runs
    experts = logits_of_run(out / "cbe", dataset=DATA)
    assert [len(m.classes) for m in experts.members] == [
        e["classes"] for e in results["cbe"]["fusion"]["experts"]
    ]
    rows = {row.name: row for row in evaluate(join([experts]), STRATEGIES)}
    reported = results["cbe"]["fusion"]
    for name in STRATEGIES:
        assert rows[name].accuracy == pytest.approx(reported["strategies"][name]["accuracy"])
    assert rows["oracle"].accuracy == pytest.approx(reported["oracle"])
    whole = logits_of_run(out / "balanced_softmax", dataset=DATA)
    rows = {row.name: row for row in evaluate(join([experts, whole]), ["joint_calibration"])}
    alone = rows[str(out / "balanced_softmax")].accuracy
    assert alone == pytest.approx(results["balanced_softmax"]["accuracy"])
    write_logits(tmp_path / "saved.npz", experts)
    again = read_logits(tmp_path / "saved.npz")
    for a, b in zip(experts.members, again.members, strict=True):
        assert torch.equal(a.test, b.test)
        assert torch.equal(a.validation, b.validation)
        assert torch.equal(a.classes, b.classes)


def test_runs_on_other_images_are_refused(runs, tmp_path):
    out, _ = runs
    keys = {**KEYS, "method": "ce", "data.seed": 1}
    train(resolve(TINY, keys), tmp_path / "ce", dataset=DATA, progress=SilentProgress())
    sources = [logits_of_run(run, dataset=DATA) for run in (out / "cbe", tmp_path / "ce")]
    with pytest.raises(ValueError, match="different"):
        join(sources)
