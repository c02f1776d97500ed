"""Whole runs on image files of 1,000 classes: training, resuming, workers, processes, packs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from image_tree import write_tree
from interrupted_training import InterruptAt
from ltkernels.data.packing import PackOptions, pack
from ltkernels.nn import build_model
from ltkernels.train import Interrupted, cli, load_config, load_method, resolve, train
from ltkernels.train.progress import SilentProgress
from ltkernels.train.run import hold_out, load_dataset
from tiny_data import process_environment

SETTINGS = {
    "dataset": "imagenet-lt",
    "epochs": 1,
    "batch_size": 256,
    "lr": 0.05,
    "threads": 1,
    "device": "cpu",
    "workers": 0,
    "data.image_size": 16,
    "model.name": "resnet8",
    "model.width": 4,
    "model.stem_stride": 2,
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    write_tree(root, size=(20, 18))
    return root


@pytest.fixture(scope="module")
def small_tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    write_tree(root, size=(20, 18), classes=60)
    return root


@pytest.fixture(autouse=True, scope="module")
def no_plots():
    """Drawing takes longer than training here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltkernels.train.run.can_plot", lambda: False)
        yield


def run(out, tree, *, resume=False, progress=None, **keys):
    config = resolve({**SETTINGS, "data.root": str(tree), **keys})
    return train(config, out, resume=resume, progress=progress or SilentProgress())


def rows(out):
    clocks = ("seconds", "images_per_second")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in clocks} for x in lines]


def same_weights(one, two):
    a, b = (load_file(out / "model.safetensors") for out in (one, two))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def finished(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "ce"
    return out, run(out, tree)


def test_the_command_line_trains_on_a_thousand_classes(tree, finished, tmp_path):
    out = tmp_path / "ce"
    settings = [f"{k}={v}" for k, v in SETTINGS.items() if k not in ("dataset", "workers")]
    words = [w for text in (f"data.root={tree}", *settings) for w in ("--set", text)]
    arguments = ["ce", "--dataset", "imagenet-lt", *words, "--set", "workers=2", "--out", str(out)]
    assert cli.main(arguments) == 0
    assert load_config(out).workers == 2
    result = json.loads((out / "result.json").read_text())
    assert (result["classes"], result["test_images"]) == (1000, 1000)
    assert result["split_hash"] == finished[1]["split_hash"]
    # The official validation images are validated on; two workers give what none gives.
    assert set(rows(out)[0]) >= {"validation", "test"}
    assert rows(out) == rows(finished[0])
    assert same_weights(out, finished[0])


@pytest.mark.parametrize("steps", [2, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(tree, finished, tmp_path, monkeypatch, steps):
    with pytest.raises(Interrupted):
        run(tmp_path / "run", tree, workers=2, progress=InterruptAt(steps, monkeypatch))
    run(tmp_path / "run", tree, workers=1, resume=True)
    assert rows(tmp_path / "run") == rows(finished[0])
    assert same_weights(tmp_path / "run", finished[0])


def test_a_packed_folder_trains_the_same(tree, finished, tmp_path):
    pack("imagenet-lt", tree, tmp_path / "pack", PackOptions())
    run(tmp_path / "run", tmp_path / "pack")
    assert rows(tmp_path / "run") == rows(finished[0])


def test_lfme_compares_on_the_official_validation_images(small_tree, tmp_path):
    # Counts are 6 ... 1 here.
    keys = {"subsets.thresholds": (1, 3), "lfme.expert_epochs": 1.0, "schedule.kind": "cosine"}
    result = run(tmp_path, small_tree, method="lfme", **keys)
    assert result["validation"] == "holdout"
    config = load_config(tmp_path)
    dataset = load_dataset(config)
    trained, validation = hold_out(dataset, config)
    assert validation is dataset.validation
    assert trained is dataset
    assert result["train_images"] == len(dataset.train_labels)


def test_holding_out_takes_from_training_all_the_same(tree):
    config = resolve({**SETTINGS, "data.root": str(tree), "data.holdout": 0.2})
    dataset = load_dataset(config)
    smaller, (inputs, _) = hold_out(dataset, config)
    assert len(inputs) + len(smaller.train_labels) == len(dataset.train_labels)
    assert set(inputs.names) < set(dataset.train_inputs.names)


def test_selection_by_validation_needs_no_holdout_where_there_are_official_images():
    assert resolve({**SETTINGS, "selection": "best_val"}).data.holdout == 0
    with pytest.raises(ValueError, match=r"`data\.holdout`"):
        resolve({**SETTINGS, "dataset": "inat2018", "selection": "best_val"})


def test_a_run_starts_from_weights_and_is_read_without_them(small_tree, tmp_path):
    torch.manual_seed(3)
    state = build_model("resnet10", 60, width=8).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    keys = {"model.name": "resnet10", "model.width": 8, "model.stem_stride": None}
    keys |= {"model.weights": str(tmp_path / "weights.pth"), "lr": 1e-12, "weight_decay": 0.0}
    run(tmp_path / "run", small_tree, **keys)
    trained = load_file(tmp_path / "run" / "model.safetensors")
    torch.testing.assert_close(trained["conv1.weight"], state["conv1.weight"])
    assert not torch.allclose(trained["fc.weight"], state["fc.weight"])
    (tmp_path / "weights.pth").unlink()
    config = load_config(tmp_path / "run")
    load_method(tmp_path / "run", load_dataset(config), torch.device("cpu"))


@pytest.mark.parametrize("method", ["ecl", "ride"])
def test_the_recipes_of_experts_run(method, small_tree, tmp_path):
    keys = {"experts": 2, "contrast.queue": 64, "contrast.width": 8, "batch_size": 64}
    result = run(tmp_path, small_tree, method=method, **keys)
    assert result["method"] == method


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_load_their_parts_and_train_as_one(small_tree, tmp_path):
    # The last batch does not divide by 2.
    keys = {**SETTINGS, "batch_size": 50, "data.root": small_tree, "workers": 1}
    run(tmp_path / "one", small_tree, batch_size=50)
    words = [w for k, v in keys.items() if k != "dataset" for w in ("--set", f"{k}={v}")]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["ltkernels.train", "ce", "--dataset", "imagenet-lt", *words, "--out", "two"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", *command],
        cwd=tmp_path,
        env=process_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "two"
    assert json.loads((out / "result.json").read_text())["processes"] == 2
    # Sums in another order differ by rounding; every step of training amplifies that a little.
    one = tmp_path / "one"
    assert rows(out)[0]["loss"] == pytest.approx(rows(one)[0]["loss"], rel=1e-4)
    a, b = (load_file(folder / "model.safetensors") for folder in (one, out))
    torch.testing.assert_close(a["conv1.weight"], b["conv1.weight"], rtol=1e-2, atol=1e-3)
