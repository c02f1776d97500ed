"""Experts that share nothing."""

from __future__ import annotations

import pytest
import torch

from ltkernels.nn import SeparateExperts, build_model, count_macs, count_parameters

IMAGES = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["resnet8", "resnet10"])
@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_each_expert_is_a_whole_network(name, head):
    torch.manual_seed(0)
    model = build_model(
        name, 7, 1, width=4, head=head, experts=3, shared_stem=False, expert_width=0.5
    ).eval()
    single = build_model(name, 7, 1, width=4, head=head)
    assert isinstance(model, SeparateExperts)
    assert model.num_experts == 3
    assert model.num_classes == 7
    assert model.num_features == single.num_features
    assert count_parameters(model) == 3 * count_parameters(single)
    assert count_macs(model, (1, 16, 16)) == 3 * count_macs(single, (1, 16, 16))
    logits, features = model(IMAGES), model.features(IMAGES)
    for k, network in enumerate(model.networks):
        torch.testing.assert_close(logits[k], network(IMAGES))
        torch.testing.assert_close(features[k], network.features(IMAGES))
        assert model.classifiers()[k].out_features == 7
    assert not torch.equal(logits[0], logits[1])
    torch.testing.assert_close(model.predict(IMAGES), torch.stack(logits).mean(0))


def test_no_network_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        SeparateExperts([])
    with pytest.raises(ValueError, match="`experts` to be >= 1"):
        build_model("resnet8", 7, experts=0, shared_stem=False)
