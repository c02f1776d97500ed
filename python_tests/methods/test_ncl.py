"""NCL: its loss is the released code's, both maskings of hard categories, its contrast."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from collaborative_cases import SMALL, contrast_of_the_paper, losses, run, step_of
from ltkernels.methods import Batch
from ltkernels.train import resolve
from tiny_methods import COUNTS, batch_of, build


def ncl(**keys):
    return build("ncl", **SMALL, **keys)


def nested(logits, y, transfer):
    """Cross-entropies and mutual distillation, sums over the experts."""
    loss = torch.stack([F.cross_entropy(z, y) for z in logits]).sum()
    for k, q in itertools.permutations(range(len(logits)), 2):
        log_p, log_q = logits[k].log_softmax(1), logits[q].log_softmax(1)
        kl = (log_p.exp() * (log_p - log_q)).sum(1).mean()
        loss = loss + transfer * kl / (len(logits) - 1)
    return loss


def definition(logits, y, hard, masking):
    adjusted = [z + COUNTS.log() for z in logits]
    first = logits[0].detach().scatter(1, y[:, None], 999999.0)
    mask = torch.zeros_like(first, dtype=torch.bool).scatter(1, first.topk(hard).indices, True)
    masked = [torch.where(mask, a, 0.0 if masking == "zero" else -1e30) for a in adjusted]
    return nested(adjusted, y, 0.6) + nested(masked, y, 0.6)


@pytest.mark.parametrize("masking", ["zero", "exclude"])
@pytest.mark.parametrize("hard", [0, 3])
def test_loss_is_the_released_codes(masking, hard):
    method = ncl(**{"ncl.masking": masking, "ncl.hard": hard})
    outputs, batch, loss = step_of(method)
    # 0 is three tenths of the classes: one of six.
    expected = definition(outputs["cls"], batch.labels, hard or 1, masking)
    expected = expected + contrast_of_the_paper(method, outputs)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    trained = [p for p in method.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ncl.hard", 4),
        ("ncl.ce", 0.5),
        ("ncl.hard_ce", 0.0),
        ("ncl.transfer", 0.0),
        ("ncl.contrast", 0.5),
        ("ncl.expert_reduction", "mean"),
    ],
)
def test_switches_reach_the_loss(key, value):
    plain, changed = ncl(), ncl(**{key: value})
    outputs, batch, loss = step_of(plain)
    assert changed.loss(outputs, batch) != loss


def test_hard_transfer_counts_where_the_hard_categories_are_more_than_one():
    plain, changed = ncl(**{"ncl.hard": 3}), ncl(**{"ncl.hard": 3, "ncl.hard_transfer": 0.0})
    outputs, batch, loss = step_of(plain)
    assert changed.loss(outputs, batch) < loss


def test_mean_over_experts_is_a_third_of_all():
    plain, mean = ncl(), ncl(**{"ncl.expert_reduction": "mean"})
    outputs, batch, loss = step_of(plain)
    mean.load_state_dict(plain.state_dict())
    torch.testing.assert_close(mean.loss(outputs, batch), loss / 3)


def test_mixed_labels_are_the_mixed_loss():
    method = ncl(mixup_alpha=0.4)
    batch = batch_of(method)
    outputs = method(batch)
    parts = [
        method.loss(outputs, Batch(batch.inputs, y, batch.indices))
        for y in (batch.labels, batch.labels_b)
    ]
    expected = batch.lam * parts[0] + (1 - batch.lam) * parts[1]
    torch.testing.assert_close(method.loss(outputs, batch), expected)


@pytest.mark.parametrize("contrast", [0.0, 1.0])
def test_a_run_reports_experts_and_ensemble(contrast, tmp_path):
    result = run("ncl", tmp_path / "run", epochs=3, **{"ncl.contrast": contrast})
    values = losses(tmp_path / "run")
    assert values[-1] < values[0]
    assert len(result["experts"]["alone"]) == 3
    assert result["experts"]["first"][-1] == result["accuracy"]
    assert result["feature_distance"]["overall"] > 0


def test_recipe_of_the_released_code():
    config = resolve({"dataset": "cifar100-lt", "method": "ncl"})
    assert (config.lr, config.weight_decay, config.batch_size) == (0.1, 2e-4, 64)
    assert config.epochs == 400
    assert config.schedule.warmup * config.epochs == 5
    assert config.schedule.milestones == (0.8, 0.9)
    assert config.schedule.factors == (0.1, 0.01)
    assert config.optimizer.nesterov
    contrast = config.contrast
    assert (contrast.queue, contrast.temperature, contrast.width) == (1024, 0.2, 64)
    assert contrast.momentum == 0.999
