"""Two processes with the same global batch compute what one computes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from ltkernels.methods import METHODS
from ltkernels.train import cli
from ltkernels.train.checkpoint import load_checkpoint
from ltkernels.train.distributed import SharedBatchNorm2d, World
from tiny_data import process_environment

NARROW = "model.width=8"


def losses(out):
    return [json.loads(x)["loss"] for x in (out / "metrics.jsonl").read_text().splitlines()]


needs_processes = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without distributed"
)


def train_with_one_and_two(tmp_path, method, *settings):
    """The same run by one process and by two; their folders and what the two printed."""
    arguments = [method, "--dataset", "digits-lt", "--threads", "1", "--set", "device=cpu"]
    for text in ("lr=0.02", *settings):
        arguments += ["--set", text]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "ltkernels.train", *arguments, "--out", "two"],
        cwd=tmp_path,
        env=process_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("files:") == 1  # one process speaks
    assert cli.main([*arguments, "--out", str(tmp_path / "one")]) == 0
    return tmp_path / "one", tmp_path / "two"


def result_of(out):
    return json.loads((out / "result.json").read_text())


@needs_processes
def test_torchrun_gives_the_numbers_of_one_process(tmp_path):
    # bkd trains cross-entropy first; the last batch, 31 images, does not divide by 2.
    one, two = train_with_one_and_two(
        tmp_path, "bkd", NARROW, "batch_size=50", "epochs=2", "mixup_alpha=0.5"
    )
    # Sums in another order differ by rounding; every step of training amplifies that a little.
    for part, tolerances in {"teacher": (1e-6, 1e-3), "": (2e-3, 5e-3)}.items():
        for epoch, tolerance in enumerate(tolerances):
            expected = losses(one / part)[epoch]
            assert losses(two / part)[epoch] == pytest.approx(expected, rel=tolerance)
    assert result_of(two)["processes"] == 2
    accuracy = result_of(one)["accuracy"]["overall"]
    assert result_of(two)["accuracy"]["overall"] == pytest.approx(accuracy, abs=2.0)


@needs_processes
def test_ride_gives_the_numbers_of_one_process_in_both_stages(tmp_path):
    # With class weights, whose weighted mean no process could take alone. Two steps a stage: the
    # second one's loss tells whether the first one's gradient was right.
    settings = [NARROW, "epochs=1", "batch_size=216", "experts=2", "loss.deferred=0"]
    settings += ["routing.epochs=1", "routing.batch_size=216", "routing.z=4"]
    one, two = train_with_one_and_two(tmp_path, "ride", *settings)
    for expected, found, tolerance in zip(losses(one), losses(two), (1e-5, 1e-3), strict=True):
        assert found == pytest.approx(expected, rel=tolerance)
    assert result_of(two)["routing"]["shares"]["overall"] == pytest.approx(
        result_of(one)["routing"]["shares"]["overall"], abs=0.02
    )


TESTED_APART = ("bkd", "ride", "ecl", "ncl", "subset_expert")  # the last one within lfme


@needs_processes
@pytest.mark.parametrize("method", [name for name in METHODS if name not in TESTED_APART])
def test_torchrun_gives_the_first_losses_of_one_process(method, tmp_path):
    # Two steps an epoch, and an epoch of whatever a method trains first or in other stages.
    settings = [NARROW, "epochs=1", "batch_size=216", "experts=2", "data.holdout=0.2"]
    settings += ["data.holdout_min=1", "cbe.epochs=1"]
    if method == "crt":
        start = str(tmp_path / "start")
        given = [word for text in settings for word in ("--set", text)]
        assert cli.main(["ce", "--dataset", "digits-lt", *given, "--out", start]) == 0
        settings += [f"start={start}"]
    one, two = train_with_one_and_two(tmp_path, method, *settings)
    folders = [path.parent.relative_to(one) for path in one.rglob("metrics.jsonl")]
    assert folders
    for folder in folders:
        assert losses(two / folder) == pytest.approx(losses(one / folder), rel=2e-3)


@needs_processes
@pytest.mark.parametrize("method", ["ecl", "ncl"])
def test_torchrun_fills_the_queue_of_one_process(method, tmp_path):
    # More keys than the queue holds: it is written around. An epoch ends in 31 images.
    small = ("model.name=resnet8", "model.width=4", "experts=2", "contrast.queue=128")
    moving = ("contrast.momentum=0.9", "contrast.width=8", "epochs=1", "batch_size=50")
    runs = train_with_one_and_two(tmp_path, method, *small, *moving)
    one, two = map(losses, runs)
    assert two == pytest.approx(one, rel=1e-4)
    states = [load_checkpoint(run / "checkpoint.pt")["method"] for run in runs]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        if name.startswith("contrast."):
            torch.testing.assert_close(states[1][name], value, rtol=2e-2, atol=2e-3)
    assert int(states[0]["contrast.position"]) > 0


def test_one_process_changes_nothing():
    world = World()
    x = torch.randn(5, 2)
    assert world.part(x) is x
    assert world.gather((x, [x]), 5) == (x, [x])
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    world.share_batch_norm(network)
    assert type(network[1]) is nn.BatchNorm2d


def test_parts_are_contiguous_and_complete():
    x = torch.arange(11)
    parts = [World(rank, 3).part(x) for rank in range(3)]
    assert torch.equal(torch.cat(parts), x)
    assert {len(p) for p in parts} == {3, 4}


def test_shared_batch_norm_keeps_names_values_and_mode():
    network = nn.Sequential(nn.Sequential(nn.BatchNorm2d(3)), nn.BatchNorm2d(2)).eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    parameter = network[1].weight
    World(0, 2).share_batch_norm(network)
    assert type(network[0][0]) is SharedBatchNorm2d
    assert network[1].weight is parameter
    assert not network[0][0].training
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
