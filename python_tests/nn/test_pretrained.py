"""Networks that start from a file of torchvision's weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from ltkernels.nn import (
    MODELS,
    ResNeXtBottleneck,
    build_model,
    count_macs,
    count_parameters,
    load_pretrained,
)


@pytest.fixture(scope="module")
def source():
    """A ResNet-10 of 1,000 classes, as a file of torchvision has it."""
    torch.manual_seed(1)
    return build_model("resnet10", 1000, width=8).state_dict()


def backbone(state):
    return {k: v for k, v in state.items() if not k.startswith("fc.")}


def legacy(state):
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        legacy,
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        lambda state: {"model": state},
    ],
)
def test_everything_but_the_head_is_taken(wrap, source, tmp_path):
    torch.save(wrap(source), tmp_path / "weights.pth")
    network = build_model("resnet10", 7, width=8, head="cosine")
    head = network.fc.weight.detach().clone()
    load_pretrained(network, tmp_path / "weights.pth")
    state = network.state_dict()
    assert all(torch.equal(state[k], v) for k, v in backbone(source).items())
    assert torch.equal(network.fc.weight, head)


def test_safetensors_and_experts(source, tmp_path):
    save_file(source, tmp_path / "w.safetensors")
    shared = build_model("resnet10", 7, width=8, experts=2, expert_width=1.0)
    load_pretrained(shared, tmp_path / "w.safetensors")
    assert torch.equal(shared.layer3s[1][0].conv1.weight, source["layer3.0.conv1.weight"])
    assert torch.equal(shared.layer1[0].conv1.weight, source["layer1.0.conv1.weight"])
    apart = build_model("resnet10", 7, width=8, experts=2, shared_stem=False)
    load_pretrained(apart, tmp_path / "w.safetensors")
    for network in apart.networks:
        assert torch.equal(network.conv1.weight, source["conv1.weight"])
    narrow = build_model("resnet10", 7, width=8, experts=2)
    with pytest.raises(ValueError, match=r"layer3\.0\.conv1\.weight is .*`model.expert_width` = 1"):
        load_pretrained(narrow, tmp_path / "w.safetensors")


def test_another_network_is_refused(source, tmp_path):
    torch.save(source, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"layer1\.0\.conv3\.weight is missing.* and \d+ more"):
        load_pretrained(build_model("resnet50", 7, width=8), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"conv1\.weight is \[8, 3, 7, 7\], the network has"):
        load_pretrained(build_model("resnet10", 7, width=4), tmp_path / "weights.pth")


def test_a_file_that_is_none_is_named(tmp_path):
    network = build_model("resnet10", 7, width=4)
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.pth"):
        load_pretrained(network, tmp_path / "none.pth")
    for name, content in {"a.pth": b"hello", "b.safetensors": b"hello", "c.pth": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"`load_pretrained`: .*{name}"):
            load_pretrained(network, tmp_path / name)
    for name, value in {"list.pth": [1], "empty.pth": {"a": 1}}.items():
        torch.save(value, tmp_path / name)
        with pytest.raises(ValueError, match=r"not weights|holds no weights"):
            load_pretrained(network, tmp_path / name)


def test_the_networks_of_the_papers():
    assert {"resnet152", "resnext50_32x4d"} <= set(MODELS)
    # torchvision's numbers of parameters.
    assert count_parameters(build_model("resnet152", 1000)) == 60_192_808
    assert count_parameters(build_model("resnext50_32x4d", 1000)) == 25_028_904


@pytest.mark.parametrize(
    ("name", "experts", "gigas"),
    # Of the released networks of RIDE, all experts active.
    [
        ("resnet10", 2, 0.959),
        ("resnet50", 3, 5.770),
        ("resnext50_32x4d", 2, 4.646),
        ("resnext50_32x4d", None, 4.230),
    ],
)
def test_macs_of_rides_experts(name, experts, gigas):
    network = build_model(name, 1000, head="cosine", experts=experts)
    assert count_macs(network, (3, 224, 224)) / 1e9 == pytest.approx(gigas, abs=6e-3)
    if name.startswith("resnext"):
        assert ResNeXtBottleneck.inner_width(192) == 384
