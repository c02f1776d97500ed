"""Classifier re-training: new heads on what another run learnt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ltkernels.methods import METHODS
from ltkernels.train import ConfigError, load_config, load_method, resolve, train
from ltkernels.train.progress import SilentProgress
from tiny_data import TINY
from tiny_methods import DATA

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["ce", "ride", "ecl"])
def first(request, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "run"
    routing = {"routing.epochs": 1} if request.param == "ride" else {}
    config = resolve(TINY, {"method": request.param, "epochs": 1, "experts": 2, **routing})
    train(config, out, dataset=DATA, progress=SilentProgress())
    return out


def retrain(start, out):
    config = resolve(TINY, {"method": "crt", "epochs": 1, "lr": 0.1, "start": str(start)})
    return train(config, out, dataset=DATA, progress=SilentProgress())


def test_only_the_heads_are_new(first, tmp_path):
    result = retrain(first, tmp_path / "crt")
    before, after = load_method(first, DATA, CPU), load_method(tmp_path / "crt", DATA, CPU)
    old = getattr(before, "network", before.model).state_dict()
    new = after.model.state_dict()
    assert old.keys() == new.keys()
    changed = {name for name in new if not torch.equal(old[name], new[name])}
    assert changed
    heads = ("linear.", "linears.", "networks.0.linear.", "networks.1.linear.")
    assert all(name.startswith(heads) for name in changed)
    assert result["start"]["run"] == str(first)


def test_its_network_is_that_of_the_first_run(first, tmp_path):
    retrain(first, tmp_path / "crt")
    source, own = load_config(first), load_config(tmp_path / "crt")
    # RIDE's experts always share a stem, whatever the key says.
    assert own.model == replace(source.model, shared_stem=source.method == "ride")
    assert own.start_experts == (0 if source.method == "ce" else 2)


def test_it_needs_a_run_to_start_from(tmp_path):
    with pytest.raises(ConfigError, match="`start`: expected the folder of a trained run"):
        train(resolve(TINY, {"method": "crt"}), tmp_path, dataset=DATA, progress=SilentProgress())


def test_it_is_listed():
    assert METHODS["crt"].reads == {"start"}
