"""The momentum-contrast branch: what follows, what is queued, what has a gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ltkernels.nn import MomentumContrast, MovingAverage, build_model, projection_head

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def experts(shared_stem=False, k=3, name="resnet8"):
    torch.manual_seed(0)
    return build_model(name, 5, 1, width=4, experts=k, shared_stem=shared_stem)


def moved(module, by=0.1):
    """Every parameter and floating-point buffer of a module, moved."""
    with torch.no_grad():
        for value in module.state_dict().values():
            value.add_(by if value.is_floating_point() else 1)


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("buffers", ["averaged", "copied"])
def test_average_follows(momentum, buffers):
    source = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    average = MovingAverage(source, momentum, buffers=buffers)
    before = {k: v.clone() for k, v in source.state_dict().items()}
    moved(source)
    average.update(source)
    parameters = dict(source.named_parameters())
    for name, value in average.module.state_dict().items():
        now = source.state_dict()[name]
        if name in parameters or (buffers == "averaged" and value.is_floating_point()):
            torch.testing.assert_close(value, momentum * before[name] + (1 - momentum) * now)
        else:
            assert torch.equal(value, now)
    assert not any(p.requires_grad for p in average.parameters())


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_statistics_of_batch_normalisation(statistics):
    layer = nn.BatchNorm2d(1)
    average = MovingAverage(layer, statistics=statistics).train()
    x = 5 + 2 * IMAGES
    out = average(x)
    own = out.std(unbiased=False) < 1.01
    assert bool(own) == (statistics == "batch")
    running = average.module.running_mean
    assert torch.equal(running, torch.zeros(1)), "its own batches leave the running ones alone"
    assert not average.eval().module.training


@pytest.mark.parametrize(
    ("key", "value"), [("momentum", 1.5), ("buffers", "x"), ("statistics", "y")]
)
def test_average_refuses(key, value):
    with pytest.raises(ValueError, match=f"`MovingAverage`: expected `{key}`"):
        MovingAverage(nn.Linear(1, 1), **{key: value})


@pytest.mark.parametrize("shared_stem", [False, True])
@pytest.mark.parametrize("name", ["resnet8", "resnet10"])
def test_keys_start_as_queries_of_the_same_view(shared_stem, name):
    model = experts(shared_stem, 2, name)
    branch = MomentumContrast(model, 8, queue=16)
    images = F.interpolate(IMAGES, 32)
    queries, keys = branch.query(model.features(images)), branch.key(images)
    assert len(queries) == len(keys) == 2
    for q, k in zip(queries, keys, strict=True):
        torch.testing.assert_close(q, k)
        torch.testing.assert_close(q.norm(dim=1), torch.ones(6))
        assert q.requires_grad
        assert not k.requires_grad
    assert not torch.equal(queries[0], queries[1])
    assert branch.queue.shape == (2, 16, 8)
    torch.testing.assert_close(branch.queue.norm(dim=2), torch.ones(2, 16))


def test_key_branch_has_no_classifier_and_the_model_keeps_its_own():
    model = experts()
    branch = MomentumContrast(model, 8)
    assert not any("linear" in name for name in branch.key_encoder.state_dict())
    assert model(IMAGES)[0].shape == (6, 5)


def test_everything_of_the_key_branch_follows():
    model = experts()
    branch = MomentumContrast(model, 8, momentum=0.0)
    before = {k: v.clone() for k, v in branch.state_dict().items() if k.startswith("key_")}
    moved(model)
    moved(branch.query_heads)
    branch.update(model, branch.key(IMAGES))
    for name, old in before.items():
        assert not torch.equal(branch.state_dict()[name], old), name


def test_queue_is_a_ring():
    model = experts(k=2)
    branch = MomentumContrast(model, 3, queue=10)
    start = branch.queue.clone()
    first, second = (tuple(F.normalize(torch.randn(n, 3), dim=1) for _ in range(2)) for n in (6, 7))
    branch.update(model, first)
    assert torch.equal(branch.queue[:, :6], torch.stack(first))
    assert torch.equal(branch.queue[:, 6:], start[:, 6:])
    branch.update(model, second)  # 7 keys from place 6: 4 at the end, 3 at the beginning
    assert torch.equal(branch.queue[:, 6:], torch.stack(second)[:, :4])
    assert torch.equal(branch.queue[:, :3], torch.stack(second)[:, 4:])
    assert torch.equal(branch.queue[:, 3:6], torch.stack(first)[:, 3:])
    assert int(branch.position) == 3


def test_more_keys_than_the_queue_holds():
    model = experts(k=1)
    branch = MomentumContrast(model, 3, queue=4)
    keys = (F.normalize(torch.randn(9, 3), dim=1),)
    branch.update(model, keys)
    assert torch.equal(branch.queue[0], keys[0][-4:])


def test_projection_heads():
    assert isinstance(projection_head(6, 4, hidden=0), nn.Linear)
    assert projection_head(6, 4)[0].out_features == 6
    assert projection_head(6, 4, hidden=9)[0].out_features == 9
    with pytest.raises(ValueError, match="`queue` to be >= 1"):
        MomentumContrast(experts(), queue=0)
