"""ECL: its loss is the paper's, its switches, what moves with a step, what inference keeps."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from collaborative_cases import SMALL, contrast_of_the_paper, losses, run, step_of
from ltkernels.methods import Batch
from ltkernels.metrics import feature_distance
from ltkernels.train import Interrupted, load_method, resolve, train
from ltkernels.train.progress import SilentProgress
from tiny_data import TINY
from tiny_methods import COUNTS, DATA, batch_of, build

LOG_PRIOR = (COUNTS / COUNTS.sum()).log()


def ecl(**keys):
    return build("ecl", **SMALL, **keys)


def nll(logits, y):
    return F.cross_entropy(logits / logits.std(1, keepdim=True), y, reduction="none")


def pairwise(rows, weights=None):
    """Sum over ordered pairs of w_k KL(p_k || p_q), / (N K (K - 1))."""
    total = torch.zeros(())
    for k, q in itertools.permutations(range(len(rows)), 2):
        log_p, log_q = rows[k].log_softmax(1), rows[q].log_softmax(1)
        kl = (log_p.exp() * (log_p - log_q)).sum(1)
        total = total + (kl if weights is None else weights[k] * kl).mean()
    return total / (len(rows) * (len(rows) - 1))


def definition(method, outputs, y):
    """Eq. 11 in plain PyTorch."""
    cls, ref = outputs["cls"], outputs["ref"]
    supervised = [F.cross_entropy(z + LOG_PRIOR, y) for z in (*cls, *ref)]
    weights = [(nll(c, y) / nll(r, y)).detach() for c, r in zip(cls, ref, strict=True)]
    parts = {
        "supervision": torch.stack(supervised).sum() / len(cls),
        "logit": 0.6 * pairwise(cls, weights),
        "feature": 0.6 * pairwise(outputs["features"]),
    }
    if "query" in outputs:
        parts["contrast"] = contrast_of_the_paper(method, outputs)
    return parts


@pytest.mark.parametrize("shared_stem", [False, True])
@pytest.mark.parametrize("experts", [2, 3])
def test_loss_is_the_papers(experts, shared_stem):
    method = ecl(experts=experts, **{"model.shared_stem": shared_stem})
    outputs, batch, loss = step_of(method)
    expected = sum(definition(method, outputs, batch.labels).values())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    for name, parameter in method.named_parameters():
        followed = name.startswith(("contrast.key_encoder", "contrast.key_heads"))
        assert parameter.requires_grad != followed
        assert (parameter.grad is None) == followed, name


@pytest.mark.parametrize(
    ("keys", "left"),
    [
        ({"ecl.transfer": "none"}, ("supervision", "feature", "contrast")),
        ({"ecl.feature_transfer": False}, ("supervision", "logit", "contrast")),
        ({"ecl.beta": 0.0}, ("supervision", "logit", "feature")),
        (
            {"ecl.transfer": "none", "ecl.feature_transfer": False, "ecl.beta": 0.0},
            ("supervision",),
        ),
    ],
)
def test_every_part_of_the_ablation_can_be_left_out(keys, left):
    method = ecl(**keys)
    outputs, batch, loss = step_of(method)
    parts = definition(method, outputs, batch.labels)
    torch.testing.assert_close(loss, sum(parts[name] for name in left), rtol=1e-5, atol=1e-5)


def test_without_contrast_there_is_no_branch_and_one_view():
    method = ecl(**{"ecl.beta": 0.0})
    assert method.contrast is None
    assert batch_of(method).second is None
    assert not any(name.startswith("contrast") for name in method.state_dict())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ecl.transfer", "uniform"),
        ("ecl.ratio", "lhs"),
        ("ecl.unbiased", False),
        ("ecl.normalize_mean", True),
        ("ecl.kd_logits", "adjusted"),
        ("ecl.direction", "teacher_first"),
        ("ecl.feature_reduction", "sum"),
        ("ecl.expert_reduction", "sum"),
        ("ecl.contrast_expert_reduction", "mean"),
        ("ecl.contrast_reduction", "sum"),
        ("ecl.temperature", 2.0),
        ("ecl.alpha", 0.5),
        ("ecl.beta", 0.5),
        ("contrast.temperature", 0.1),
        ("loss.tau", 0.5),
    ],
)
def test_switches_reach_the_loss(key, value):
    plain, changed = ecl(), ecl(**{key: value})
    outputs, batch, loss = step_of(plain)
    assert changed.loss(outputs, batch) != loss


@pytest.mark.parametrize(("key", "value"), [("ecl.detach", False), ("ecl.detach_teacher", True)])
def test_switches_reach_the_gradient(key, value):
    gradients = []
    for keys in ({}, {key: value}):
        method = ecl(**keys)
        step_of(method)[2].backward()
        head = method.reference if key == "ecl.detach" else method.model
        gradients.append(torch.cat([p.grad.flatten() for p in head.parameters()]))
    assert not torch.allclose(*gradients, rtol=1e-4, atol=1e-7)


def test_a_loss_moves_nothing_and_the_end_of_a_step_everything():
    method = ecl(**{"contrast.momentum": 0.5})
    outputs, batch, loss = step_of(method)
    assert torch.equal(method.loss(outputs, batch), loss)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        method.on_step_end(outputs, batch)
    after = method.state_dict()
    for name, old in before.items():
        if name.startswith("contrast.key_") and name.endswith(("weight", "bias")):
            own = name.replace("contrast.key_encoder.module", "model")
            own = own.replace("contrast.key_heads.module", "contrast.query_heads")
            torch.testing.assert_close(after[name], (old + after[own]) / 2)
    assert int(after["contrast.position"]) == 48
    assert torch.equal(after["contrast.queue"][:, :48], torch.stack(outputs["key"]))
    assert torch.equal(after["contrast.queue"][:, 48:], before["contrast.queue"][:, 48:])


def test_views_are_two_and_mixed_alike():
    plain, mixed = ecl(), ecl(mixup_alpha=1.0)
    batch = batch_of(plain)
    assert not torch.equal(batch.inputs, batch.second)
    both = batch_of(mixed)
    assert both.labels_b is not None
    permutation = [
        int(
            (both.inputs[i] - both.lam * batch.inputs[i])
            .sub((1 - both.lam) * batch.inputs)
            .flatten(1)
            .abs()
            .amax(1)
            .argmin()
        )
        for i in range(len(batch.labels))
    ]
    assert torch.equal(batch.labels[permutation], both.labels_b)
    expected = both.lam * batch.second + (1 - both.lam) * batch.second[permutation]
    torch.testing.assert_close(both.second, expected)
    outputs = mixed.train()(both)
    parts = [
        mixed.loss(outputs, Batch(both.inputs, y, both.indices))
        for y in (both.labels, both.labels_b)
    ]
    expected = both.lam * parts[0] + (1 - both.lam) * parts[1]
    torch.testing.assert_close(mixed.loss(outputs, both), expected)


@pytest.mark.parametrize("shared_stem", [False, True])
def test_a_run_reports_experts_and_ensemble(shared_stem, tmp_path):
    result = run("ecl", tmp_path / "run", epochs=3, **{"model.shared_stem": shared_stem})
    # The loss need not fall at first: contrast gets harder as keys take the random queue's place.
    assert result["accuracy"]["overall"] > 1.5 * 100 / 6
    experts, single = result["experts"], result["single"]
    assert len(experts["alone"]) == len(experts["first"]) == len(experts["ece"]) == 3
    assert experts["first"][-1] == result["accuracy"]
    assert experts["first"][0] == experts["alone"][0]
    mean = sum(row["overall"] for row in experts["alone"]) / 3
    assert single["accuracy"]["overall"] == pytest.approx(mean)
    assert single["ece"] == pytest.approx(sum(experts["ece"]) / 3)
    assert result["test_time_augmentation"] == "none"
    loaded = load_method(tmp_path / "run", DATA, torch.device("cpu"))
    images = DATA.transform.normalize(DATA.test_inputs)
    features = torch.stack(loaded.model.features(images))
    distances = feature_distance(features, DATA.test_labels, 6).mean(0)
    assert result["feature_distance"]["classes"] == pytest.approx(distances.tolist(), rel=1e-4)
    assert result["feature_distance"]["overall"] == pytest.approx(float(distances.mean()), rel=1e-4)
    right = (loaded.predict(images).argmax(1) == DATA.test_labels).double().mean()
    assert result["accuracy"]["overall"] == pytest.approx(100 * float(right))
    for name in ("reliability_single", "feature_distance", "confusion"):
        assert (tmp_path / "run" / "plots" / f"{name}.png").stat().st_size > 1000


def test_one_expert_teaches_nobody(tmp_path):
    result = run("ecl", tmp_path / "run", epochs=1, experts=1)
    assert result["feature_distance"] is None
    assert result["single"]["accuracy"] == result["accuracy"]


def test_bf16_autocast_trains(tmp_path):
    result = run("ecl", tmp_path / "run", epochs=1, amp="bf16")
    assert all(value == value and value < 100 for value in losses(tmp_path / "run"))
    assert len(result["experts"]["alone"]) == 3


def test_flip_test_is_stated_and_counted(tmp_path):
    plain = run("ecl", tmp_path / "plain", epochs=1, **{"ecl.beta": 0.0})
    flipped = run("ecl", tmp_path / "flipped", epochs=1, flip_test=True, **{"ecl.beta": 0.0})
    assert flipped["test_time_augmentation"] == "horizontal flip"
    assert flipped["macs"] == 2 * plain["macs"]
    method = load_method(tmp_path / "flipped", DATA, torch.device("cpu"))
    images = DATA.transform.normalize(DATA.test_inputs)
    torch.testing.assert_close(method.predict(images), method.predict(images.flip(3)))
    expected = (method.model.predict(images) + method.model.predict(images.flip(3))) / 2
    torch.testing.assert_close(method.predict(images), expected)


def test_model_is_what_inference_needs():
    names = {name.partition(".")[0] for name, _ in ecl().named_parameters()}
    assert names == {"model", "reference", "contrast"}
    assert not any("reference" in n or "contrast" in n for n in ecl().model.state_dict())


def test_interrupted_it_ends_in_the_same_numbers(tmp_path):
    straight = run("ecl", tmp_path / "straight")

    class Stop(SilentProgress):
        def epoch(self, row, epochs):
            if row["epoch"] == 1:
                raise KeyboardInterrupt

    config = resolve(TINY, {"method": "ecl", "epochs": 2, "lr": 0.05, **SMALL})
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        train(config, tmp_path / "stopped", dataset=DATA, progress=Stop())
    resumed = run("ecl", tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    assert resumed["accuracy"] == straight["accuracy"]
    assert resumed["feature_distance"] == straight["feature_distance"]


@pytest.mark.parametrize("dataset", ["cifar10-lt", "cifar100-lt"])
def test_recipe_of_the_paper(dataset):
    config = resolve({"dataset": dataset, "method": "ecl"})
    assert (config.lr, config.weight_decay, config.batch_size) == (0.01, 5e-3, 64)
    assert (config.epochs, config.schedule.kind, config.schedule.warmup) == (200, "cosine", 0.0)
    assert (config.views.first, config.views.cutout, config.views.second) == (
        "autoaugment",
        16,
        "contrast",
    )
    assert config.flip_test
    assert not config.model.shared_stem
    assert (config.ecl.alpha, config.ecl.beta, config.experts) == (0.6, 1.0, 3)
