"""Every method: one step's loss is the paper's, and training lowers it."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from ltkernels.methods import METHODS, Batch
from ltkernels.schedules import diversity_temperature, effective_number_weight, ldam_margin
from ltkernels.train import resolve, train
from ltkernels.train.config import CONFIG_KEYS, Config
from ltkernels.train.progress import SilentProgress
from tiny_data import TINY
from tiny_methods import COUNTS, DATA, batch_of, build


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "ce"
    train(resolve(TINY, {"epochs": 2}), out, dataset=DATA, progress=SilentProgress())
    return str(out)


def test_table_of_methods():
    assert list(METHODS) == [
        "ce",
        "focal",
        "cb",
        "ldam_drw",
        "balanced_softmax",
        "kd",
        "bkd",
        "ride",
        "ride_bkd",
        "ncl",
        "ecl",
        "crt",
        "subset_expert",
        "lfme",
        "cbe",
    ]
    assert all(METHODS[name].name == name and METHODS[name].summary for name in METHODS)
    keys = {*CONFIG_KEYS, *(key.partition(".")[0] for key in CONFIG_KEYS)}
    assert all(method.reads <= keys for method in METHODS.values())


# The others have tests of their own.
OWN_TESTS = ("crt", "subset_expert", "lfme", "cbe", "ecl", "ncl")
BY_THEMSELVES = [name for name in METHODS if name not in OWN_TESTS]


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_training_lowers_the_loss(name, teacher, tmp_path):
    config = resolve(TINY, {"method": name, "lr": 0.05})
    if "teacher" in METHODS[name].reads:
        config = resolve(TINY, {"method": name, "lr": 0.05, "teacher": teacher})
    if config.loss.deferred:  # weights change the loss when they come on: compare before
        config = resolve(TINY, {"method": name, "lr": 0.05, "loss.deferred": 1.0})
    result = train(config, tmp_path / "run", dataset=DATA, progress=SilentProgress())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < losses[0]
    assert ("logit_adjusted" in result) == (name in ("ce", "kd"))


def definition(name, method, outputs, batch):
    """The loss in plain PyTorch from the papers' formulas; the weights are on."""
    config: Config = method.context.config
    y = batch.labels
    weight = effective_number_weight(COUNTS).float()
    if name in ("kd", "bkd"):
        z, t = outputs
        temperature = config.temperature
        q = (t / temperature).softmax(1)
        if name == "bkd":
            q = q * weight
            q = q / q.sum(1, keepdim=True)
        log_p = (z / temperature).log_softmax(1)
        kl = F.kl_div(log_p, q, reduction="batchmean")
        return F.cross_entropy(z, y) + temperature**2 * kl
    if name == "ride":
        return ride_of_the_paper(config, outputs["experts"], y, weight)
    if name == "ride_bkd":
        parts = [(z, outputs["teacher"]) for z in outputs["experts"]]
        taught = sum(definition("bkd", method, part, batch) for part in parts)
        return taught + diversity_of_the_paper(config, outputs["experts"])
    z = outputs
    if name == "ce":
        return F.cross_entropy(z, y)
    if name == "focal":
        ce = F.cross_entropy(z, y, reduction="none")
        return ((1 - (-ce).exp()) ** config.loss.focal_gamma * ce).mean()
    if name == "cb":
        return F.cross_entropy(z, y, weight)
    if name == "balanced_softmax":
        return F.cross_entropy(z + COUNTS.float().log(), y)
    margin = config.model.scale * ldam_margin(COUNTS).float()[y]
    return F.cross_entropy(z - margin[:, None] * F.one_hot(y, 6), y, weight)


def ride_of_the_paper(config, experts, y, weight):
    """RIDE's released form of eqs. 2-4, after the deferred epoch."""
    margin = config.model.scale * ldam_margin(COUNTS).float()[y]
    adjusted = [z - margin[:, None] * F.one_hot(y, 6) for z in experts]
    each = [F.cross_entropy(z, y, weight) for z in adjusted]
    return torch.stack(each).sum() + diversity_of_the_paper(config, experts)


def diversity_of_the_paper(config, experts):
    temperature = diversity_temperature(COUNTS, 1.0, config.ride.gamma).float()
    mean = (torch.stack(experts).mean(0).detach() / temperature).softmax(1)
    total = torch.zeros(())
    for z in experts:
        kl = F.kl_div((z / temperature).log_softmax(1), mean, reduction="batchmean")
        total = total + config.ride.diversity * temperature.mean() ** 2 * kl
    return total


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_loss_is_the_papers(name):
    method = build(name)
    (stage,) = method.stages()
    method.on_epoch_start(stage, stage.epochs - 1)
    batch = batch_of(method)
    outputs = method(batch)
    loss = method.loss(outputs, batch)
    torch.testing.assert_close(loss, definition(name, method, outputs, batch), rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.model.parameters())


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_mixed_labels_are_the_mixed_loss(name):
    method = build(name, mixup_alpha=0.4)
    (stage,) = method.stages()
    method.on_epoch_start(stage, stage.epochs - 1)
    batch = batch_of(method)
    assert batch.labels_b is not None
    assert 0 < batch.lam < 1
    outputs = method(batch)
    parts = [
        definition(name, method, outputs, Batch(batch.inputs, labels, batch.indices))
        for labels in (batch.labels, batch.labels_b)
    ]
    expected = batch.lam * parts[0] + (1 - batch.lam) * parts[1]
    torch.testing.assert_close(method.loss(outputs, batch), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cb", "ldam_drw", "bkd"])
def test_class_weights_wait_for_the_deferred_epoch(name):
    method = build(name, epochs=10, **{"loss.deferred": 0.8})
    (stage,) = method.stages()
    for epoch, deferred in ((0, True), (7, True), (8, False), (9, False)):
        method.on_epoch_start(stage, epoch)
        assert bool((method.criterion.class_weight == 1).all()) == deferred


def test_teacher_is_no_part_of_the_student():
    method = build("bkd")
    assert len(list(method.parameters())) == len(list(method.model.parameters()))
    assert not any("teacher" in key for key in method.state_dict())
    student, teacher = method(batch_of(method))
    assert student.requires_grad
    assert not teacher.requires_grad


def test_official_kd_weights_the_cross_entropy():
    method = build("kd", **{"loss.weighted_ce": True})
    plain = build("kd")
    batch = batch_of(method)
    outputs = method(batch)
    z, y = outputs[0], batch.labels
    weight = effective_number_weight(COUNTS).float()
    difference = F.cross_entropy(z, y, weight) - F.cross_entropy(z, y)
    torch.testing.assert_close(
        method.loss(outputs, batch) - plain.loss(outputs, batch), difference, rtol=1e-4, atol=1e-5
    )


def test_batches_depend_on_the_generator_alone():
    method = build("ce", mixup_alpha=1.0)
    first, _, again = batch_of(method), torch.rand(3), batch_of(method)
    assert torch.equal(first.inputs, again.inputs)
    assert first.lam == again.lam


def test_uniform_class_sampling_shows_every_class_equally_often():
    method = build("ce", **{"data.sampling": "class"})
    (stage,) = method.stages()
    first, second = (method.order(stage, epoch) for epoch in (0, 1))
    assert len(first) == len(DATA.train_labels)
    shown = DATA.train_labels[first].bincount()
    assert shown.max() - shown.min() <= 1
    assert not torch.equal(first, second)


def test_logits_of_balanced_epochs_carry_no_prior():
    for sampling, keeps in (("instance", True), ("class", False)):
        config = resolve(TINY, {"method": "ce", "data.sampling": sampling})
        assert METHODS["ce"].logits_keep_prior(config) is keeps
        assert not METHODS["balanced_softmax"].logits_keep_prior(config)
