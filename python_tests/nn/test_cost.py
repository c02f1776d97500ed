"""Multiply-accumulates and parameters, against the published costs and by hand."""

import pytest
import torch
from torch import nn

from ltkernels.nn import NormedLinear, build_model, count_macs, count_parameters


@pytest.mark.parametrize(
    ("name", "num_classes", "side", "printed", "unit"),
    [
        ("resnet32", 100, 32, 68.87, 1e6),
        ("resnet10", 1000, 224, 0.889, 1e9),
        ("resnet50", 1000, 224, 4.089, 1e9),
    ],
)
def test_published_costs(name, num_classes, side, printed, unit):
    macs = count_macs(build_model(name, num_classes), (3, side, side))
    assert round(macs / unit, 2 if unit == 1e6 else 3) == printed


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_resnet8_by_hand(head):
    stem, one = 9 * 14 * 14 * 16, 2 * 9 * 16 * 16 * 14 * 14
    two, three = 9 * (16 + 32) * 32 * 7 * 7, 9 * (32 + 64) * 64 * 4 * 4
    model = build_model("resnet8", 120, 1, head, stem_stride=2)
    assert count_macs(model, (1, 28, 28)) == stem + one + two + three + 64 * 120


def test_layers_by_hand():
    grouped = nn.Conv2d(8, 12, (3, 1), stride=2, groups=4)
    assert count_macs(grouped, (8, 9, 9)) == 12 * 4 * 5 * (8 // 4) * 3
    assert count_macs(nn.Conv1d(4, 6, 5), (4, 20)) == 6 * 16 * 4 * 5
    assert count_macs(nn.Conv3d(2, 3, 2), (2, 4, 4, 4)) == 3 * 27 * 2 * 8
    assert count_macs(nn.Linear(5, 7), (11, 5)) == 11 * 5 * 7
    assert count_macs(NormedLinear(5, 7), (5,)) == 5 * 7
    assert count_macs(nn.ReLU(), (5,)) == 0


def test_a_layer_called_twice_counts_twice():
    layer = nn.Linear(4, 4)
    assert count_macs(nn.Sequential(layer, nn.ReLU(), layer), (4,)) == 2 * 16


def test_the_model_is_left_as_it_was():
    model = build_model("resnet8", 5).double()
    model.train()
    model.layer2.eval()
    flags = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    assert count_macs(model, (3, 8, 8)) > 0
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(stream, torch.get_rng_state())


def test_the_model_is_left_as_it_was_after_an_error():
    model = build_model("resnet8", 5)
    with pytest.raises(RuntimeError):
        count_macs(model, (4, 8, 8))
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_parameters_count_shared_ones_once_and_buffers_never():
    layer = nn.Linear(3, 4)
    assert count_parameters(nn.Sequential(layer, layer, nn.BatchNorm1d(4))) == 16 + 8
