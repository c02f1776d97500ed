"""Two processes with the same global batch compute what one computes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from ltkernels.train import cli
from ltkernels.train.checkpoint import load_checkpoint
from ltkernels.train.distributed import SharedBatchNorm2d, World
from tiny_data import process_environment


def losses(out):
    return [json.loads(x)["loss"] for x in (out / "metrics.jsonl").read_text().splitlines()]


def train_twice(folder, method, settings):
    """The same run in ``one`` process and in ``two``; what the two said."""
    arguments = [method, "--dataset", "digits-lt", "--threads", "1", "--set", "device=cpu"]
    for text in settings:
        arguments += ["--set", text]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "ltkernels.train", *arguments, "--out", "two"],
        cwd=folder,
        env=process_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert cli.main([*arguments, "--out", str(folder / "one")]) == 0
    return done.stdout


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_torchrun_gives_the_numbers_of_one_process(tmp_path):
    # bkd trains cross-entropy first; the last batch, 31 images, does not divide by 2.
    settings = ("epochs=2", "batch_size=50", "lr=0.02", "mixup_alpha=0.5", "model.width=8")
    said = train_twice(tmp_path, "bkd", settings)
    assert said.count("files:") == 1  # one process speaks
    # Sums in another order differ by rounding; every step of training amplifies that a little.
    for part, tolerances in {"teacher": (1e-6, 1e-3), "": (2e-3, 5e-3)}.items():
        one, two = (losses(tmp_path / n / part) for n in ("one", "two"))
        for epoch, tolerance in enumerate(tolerances):
            assert two[epoch] == pytest.approx(one[epoch], rel=tolerance)
    one, two = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two"))
    assert two["processes"] == 2
    assert two["accuracy"]["overall"] == pytest.approx(one["accuracy"]["overall"], abs=2.0)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("method", ["ecl", "ncl"])
def test_torchrun_fills_the_queue_of_one_process(method, tmp_path):
    # More keys than the queue holds: it is written around. An epoch ends in 31 images.
    small = ("model.name=resnet8", "model.width=4", "experts=2", "contrast.queue=128")
    moving = ("contrast.momentum=0.9", "contrast.width=8", "epochs=1", "batch_size=50", "lr=0.02")
    train_twice(tmp_path, method, (*small, *moving))
    one, two = (losses(tmp_path / n) for n in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)
    states = [load_checkpoint(tmp_path / n / "checkpoint.pt")["method"] for n in ("one", "two")]
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
