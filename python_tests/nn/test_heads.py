"""The cosine head: its definition, the official code's output and gradients, its start."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ltkernels.nn import NormedLinear, build_head

GOLDEN = Path(__file__).parents[1] / "golden" / "ride"
CASES = [
    case
    for case in json.loads((GOLDEN / "manifest.json").read_text())["cases"]
    if case["id"].startswith("normed_linear")
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_normed_linear_is_the_official_one(case, scale):
    with np.load(GOLDEN / case["file"]) as arrays:
        golden = {key: torch.from_numpy(arrays[key]) for key in arrays}
    head = NormedLinear(*golden["weight"].shape, scale=scale).double()
    head.load_state_dict({"weight": golden["weight"]})
    x = golden["x"].requires_grad_()
    out = head(x)
    (out * golden["upstream"]).sum().backward()
    torch.testing.assert_close(out, scale * golden["out"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, scale * golden["grad_x"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        head.weight.grad, scale * golden["grad_weight"], rtol=1e-12, atol=1e-12
    )


def test_there_is_a_golden_case():
    assert CASES


def test_logits_are_scaled_cosines():
    torch.manual_seed(0)
    head = NormedLinear(6, 4, scale=5.0)
    x = torch.randn(3, 6)
    expected = 5 * torch.cosine_similarity(x[:, :, None], head.weight[None], dim=1)
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head(7 * x), expected)


def test_a_zero_feature_gives_zero_logits_and_no_nan():
    head = NormedLinear(6, 4)
    x = torch.zeros(2, 6, requires_grad=True)
    out = head(x)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(2, 4))
    assert x.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


def test_weight_starts_uniform_with_columns_of_length_one():
    torch.manual_seed(0)
    weight = NormedLinear(400, 50).weight.detach()
    torch.testing.assert_close(weight.norm(dim=0), torch.ones(50))
    # U(-1, 1) of 400 rows has columns of length about sqrt(400 / 3); its kurtosis is 1.8.
    assert weight.abs().max() == pytest.approx((3 / 400) ** 0.5, rel=0.1)
    assert (weight**4).mean() / (weight**2).mean() ** 2 == pytest.approx(1.8, rel=0.05)


def test_build_head():
    assert isinstance(build_head("linear", 3, 2), torch.nn.Linear)
    assert build_head("cosine", 3, 2, 8.0).scale == 8.0
    assert "scale=8.0" in repr(build_head("cosine", 3, 2, 8.0))
    with pytest.raises(ValueError, match="'linear' or 'cosine', got 'mlp'"):
        build_head("mlp", 3, 2)
    with pytest.raises(ValueError, match="`in_features`"):
        build_head("cosine", 0, 2)
