"""LFME: its experts, what the student learns from them and when, and its switches."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F

from ltkernels.data import class_subsets
from ltkernels.methods.lfme import LFME, PRESETS, Preset
from ltkernels.methods.subset_expert import SubsetExpert
from ltkernels.schedules import expert_weight, instance_weight
from ltkernels.train import ConfigError, Interrupted, cli, load_method, resolve, train
from ltkernels.train.progress import SilentProgress
from ltkernels.train.report import format_results
from ltkernels.train.tables import LfmeConfig
from tiny_data import TINY, process_environment
from tiny_methods import COUNTS, DATA, batch_of, build

CPU = torch.device("cpu")
# Counts 110, 60, 40, 24, 12, 6: two classes each.
THIRDS = {"subsets.thresholds": (20, 50)}
SUBSETS = ([0, 1], [2, 3], [4, 5])
PLAIN = {"lfme.distill": False, "lfme.expert_selection": False, "lfme.instance_selection": False}


def configure(**keys):
    return resolve(TINY, {"method": "lfme", "lr": 0.05, **THIRDS, **keys})


def run(out, progress=None, resume=False, **keys):
    return train(
        configure(**keys), out, dataset=DATA, progress=progress or SilentProgress(), resume=resume
    )


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Drawing takes longer than these runs train; the test of the plots draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltkernels.train.run.can_plot", lambda: False)
        yield


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A folder of trained experts, shared by the runs that name it."""
    folder = tmp_path_factory.mktemp("experts")
    run(folder / "first", expert_runs=str(folder / "experts"))
    return folder / "experts"


def started(**keys):
    """A student in its first epoch, with untrained experts."""
    method = build("lfme", **THIRDS, **keys)
    stage = method.stages()[0]
    method.on_stage_start(stage)
    method.on_epoch_start(stage, 0)
    return method, stage


def rows_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# -- the experts


def test_an_expert_knows_its_classes_and_no_other(experts):
    for index, classes in enumerate(SUBSETS):
        expert = load_method(experts / f"expert{index}", DATA, CPU)
        assert isinstance(expert, SubsetExpert)
        assert expert.classes.tolist() == classes
        images = DATA.transform.normalize(DATA.test_inputs[:20])
        logits = expert.predict(images)
        assert logits.shape == (20, 6)
        assert torch.equal(
            logits.isfinite(), torch.isin(torch.arange(6), expert.classes).expand(20, 6)
        )
        assert torch.equal(logits[:, classes], expert.subset_logits(images))


def test_an_expert_sees_the_images_of_its_subset_once_an_epoch():
    expert = build("subset_expert", **THIRDS, **{"subsets.index": 1})
    order = expert.order(expert.stages()[0], 0)
    own = (DATA.train_labels == 2) | (DATA.train_labels == 3)
    assert torch.equal(order.sort().values, own.nonzero().flatten())
    assert not torch.equal(order, expert.order(expert.stages()[0], 1))


def test_an_experts_loss_is_cross_entropy_among_its_classes():
    expert = build("subset_expert", **THIRDS, **{"subsets.index": 1})
    indices = expert.order(expert.stages()[0], 0)[:16]
    labels = DATA.train_labels[indices]
    batch = expert.prepare(DATA.train_inputs[indices], labels, indices, torch.Generator())
    logits = expert(batch)
    assert logits.shape == (16, 2)
    torch.testing.assert_close(expert.loss(logits, batch), F.cross_entropy(logits, labels - 2))


def test_an_expert_learns_and_reports_itself(experts):
    result = json.loads((experts / "expert1" / "result.json").read_text())
    assert result["subset"]["images_a_class"] == "21..49"
    assert result["subset"]["classes"] == 2
    assert result["subset"]["train_images"] == 64
    # All 60 test images, 20 of them of its classes.
    assert result["accuracy"]["overall"] == pytest.approx(result["subset"]["accuracy"] / 3)
    losses = [row["loss"] for row in rows_of(experts / "expert1")]
    assert losses[-1] < losses[0]


def test_trained_experts_are_used_as_they_are(experts, tmp_path):
    before = [(experts / f"expert{i}" / "result.json").stat().st_mtime_ns for i in range(3)]
    result = run(tmp_path / "run", expert_runs=str(experts), epochs=1, seed=7)
    after = [(experts / f"expert{i}" / "result.json").stat().st_mtime_ns for i in range(3)]
    assert before == after
    assert [result[f"expert{i}"]["run"] for i in range(3)] == [
        str(experts / f"expert{i}") for i in range(3)
    ]
    assert not (tmp_path / "run" / "expert0").exists()


def test_experts_of_other_subsets_are_refused(experts, tmp_path):
    keys = {"expert_runs": str(experts), "subsets.thresholds": (10, 50)}
    with pytest.raises(ConfigError, match="expected expert1 to be of 3 classes from class 2 on"):
        run(tmp_path / "run", **keys)


def test_a_subset_without_a_class_is_said(tmp_path):
    with pytest.raises(ConfigError, match="none of >=300 images; the classes have 6 to 110"):
        run(tmp_path / "run", **{"subsets.thresholds": (20, 300)})


@pytest.mark.parametrize("thresholds", [(20,), (10, 20, 30, 50)])
def test_any_number_of_experts(thresholds, tmp_path):
    keys = {"subsets.thresholds": thresholds, "epochs": 1, "lfme.expert_epochs": 1.0}
    result = run(tmp_path / "run", **keys)
    assert len(result["subsets"]) == len(result["expert_weight"]) == len(thresholds) + 1
    assert sum(subset["classes"] for subset in result["subsets"]) == 6


def test_a_class_at_a_threshold_may_have_two_experts(tmp_path):
    keys = {"subsets.thresholds": (24, 60), "subsets.rule": "overlap", "epochs": 1}
    result = run(tmp_path / "run", **keys)
    assert [subset["classes"] for subset in result["subsets"]] == [2, 3, 3]


def test_the_presets_train_their_experts_as_paper_and_code_do():
    paper = LFME.prerequisites(configure(epochs=90, batch_size=128))
    official = LFME.prerequisites(
        configure(epochs=90, batch_size=128, **{"lfme.preset": "official"})
    )
    assert [c.batch_size for c in paper.values()] == [128] * 3
    assert [c.batch_size for c in official.values()] == [128, 64, 32]
    assert {c.epochs for c in paper.values()} == {90}
    assert {c.epochs for c in official.values()} == {120}
    assert {c.schedule.kind for c in paper.values()} == {"step"}
    assert {c.schedule.kind for c in official.values()} == {"cosine"}
    assert [c.subsets.index for c in official.values()] == [0, 1, 2]


# -- the student's loss


def definition(method, outputs, batch, v, w):
    """Sec. 4.4 in plain PyTorch."""
    z, y = outputs["student"], batch.labels
    if method.preset.instance_weight_on == "logits":
        z = v[:, None] * z
        loss = F.cross_entropy(z, y)
    else:
        loss = (v * F.cross_entropy(z, y, reduction="none")).mean()
    for weight, classes, expert in zip(w, SUBSETS, outputs["experts"], strict=True):
        q = (expert / 2).softmax(1)
        log_p = (z[:, classes] / 2).log_softmax(1)
        loss = loss + weight * F.kl_div(log_p, q, reduction="batchmean")
    return loss


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_loss_is_the_papers(preset):
    method, _ = started(**{"lfme.preset": preset})
    method.expert_weight.copy_(torch.tensor([0.2, 1.0, 0.0]))
    batch = batch_of(method)
    outputs = method(batch)
    loss = method.loss(outputs, batch)
    v = method.instance_weight[batch.indices]
    assert v.min() < v.max()
    torch.testing.assert_close(loss, definition(method, outputs, batch, v, [0.2, 1.0, 0.0]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.model.parameters())
    assert not any(e.requires_grad for e in outputs["experts"])


def test_experts_are_no_part_of_the_student():
    method, _ = started()
    assert len(list(method.parameters())) == len(list(method.model.parameters()))
    assert not any(key.startswith(("expert0", "context")) for key in method.state_dict())


def test_on_top_of_the_focal_loss():
    method, _ = started(**PLAIN, **{"lfme.classification": "focal", "loss.focal_gamma": 1.5})
    batch = batch_of(method)
    outputs = method(batch)
    ce = F.cross_entropy(outputs["student"], batch.labels, reduction="none")
    expected = ((1 - (-ce).exp()) ** 1.5 * ce).mean()
    torch.testing.assert_close(method.loss(outputs, batch), expected)


def test_without_its_parts_it_is_cross_entropy(tmp_path):
    assert LFME.prerequisites(configure(**PLAIN)) == {}
    plain = run(tmp_path / "lfme", **PLAIN, **{"lfme.sampling": "instance"})
    ce = train(
        resolve(TINY, {"method": "ce", "lr": 0.05}),
        tmp_path / "ce",
        dataset=DATA,
        progress=SilentProgress(),
    )
    assert plain["accuracy"] == ce["accuracy"]
    losses = ([row["loss"] for row in rows_of(tmp_path / name)] for name in ("lfme", "ce"))
    assert next(losses) == pytest.approx(next(losses), rel=1e-6)


def test_mixed_labels_are_the_mixed_loss():
    method, _ = started(mixup_alpha=0.4, **{"lfme.instance_selection": False})
    batch = batch_of(method)
    outputs = method(batch)
    one = torch.ones(len(batch.labels))
    first = definition(method, outputs, batch, one, [1, 1, 1])
    batch_b = type(batch)(batch.inputs, batch.labels_b, batch.indices)
    second = definition(method, outputs, batch_b, one, [1, 1, 1])
    expected = batch.lam * first + (1 - batch.lam) * second
    torch.testing.assert_close(method.loss(outputs, batch), expected)
    with pytest.raises(ConfigError, match="`mixup_alpha`: expected 0 with"):
        configure(mixup_alpha=0.4)


def test_classes_come_equally_often_four_images_at_a_time():
    method, stage = started()
    labels = DATA.train_labels[method.order(stage, 0)]
    assert len(labels) == len(DATA.train_labels)
    counts = labels.bincount()
    assert counts.max() - counts.min() <= 4
    assert (labels.view(-1, 4) == labels.view(-1, 4)[:, :1]).all()
    by_image, stage = started(**{"lfme.sampling": "instance"})
    order = by_image.order(stage, 0)
    assert torch.equal(order.sort().values, torch.arange(len(order)))


# -- the student's pace: experts


@pytest.mark.parametrize(("preset", "alpha"), [("paper", 0.6), ("official", 0.3)])
def test_experts_weigh_by_how_far_the_student_is_behind(preset, alpha):
    method, stage = started(**{"lfme.preset": preset})
    assert method.expert_weight.tolist() == [1, 1, 1]
    expected = []
    for index, classes in enumerate(SUBSETS):
        own = torch.isin(DATA.train_labels, torch.tensor(classes))
        x, y = DATA.transform.normalize(DATA.train_inputs[own]), DATA.train_labels[own]
        expert = method.context.teachers[f"expert{index}"]
        with torch.no_grad():
            of_expert = torch.tensor(classes)[expert.subset_logits(x).argmax(1)] == y
            of_student = method.eval().predict(x).argmax(1) == y
        accuracies = [
            torch.stack([right[y == c].double().mean() for c in classes]).mean()
            for right in (of_student, of_expert)
        ]
        expected.append(expert_weight(*accuracies, alpha))
    method.loss(method(batch_of(method)), batch_of(method))
    row = method.on_epoch_end(stage, 0, {})["lfme"]
    torch.testing.assert_close(method.expert_weight, torch.stack(expected).float())
    assert row["expert_weight"] == [1, 1, 1]  # of the epoch that ended


def test_weights_stay_one_without_expert_selection(experts, tmp_path):
    keys = {"expert_runs": str(experts), "lfme.expert_selection": False}
    result = run(tmp_path / "run", **keys)
    assert "expert_weight" not in result
    assert all(row["lfme"]["expert_weight"] == [1, 1, 1] for row in rows_of(tmp_path / "run"))


def test_compared_on_images_held_out_where_there_are_any(experts, tmp_path):
    assert run(tmp_path / "train", expert_runs=str(experts), epochs=1)["validation"] == "train"
    held_out = run(tmp_path / "held", epochs=1, **{"data.holdout": 0.2})
    assert held_out["validation"] == "holdout"
    assert not held_out["test_set_leak"]
    with pytest.raises(ConfigError, match=r"above 0 with lfme.validation = holdout, got 0\.0"):
        configure(**{"lfme.validation": "holdout"})


def test_comparing_on_the_test_set_is_labelled(experts, tmp_path):
    keys = {"expert_runs": str(experts), "lfme.validation": "test", "epochs": 1}
    result = run(tmp_path / "run", **keys)
    assert result["test_set_leak"]
    assert "accuracies on the test set: a leak" in format_results([result])
    # A_M after the last epoch is the accuracy on the subsets' test images: ten of each class.
    row = rows_of(tmp_path / "run")[-1]["lfme"]
    overall = sum(row["student_accuracy"]) / 3
    assert overall == pytest.approx(result["accuracy"]["overall"], abs=1e-4)


def test_a_subset_without_held_out_images_is_said(tmp_path):
    # int(0.1 * n) of the rarest classes, 12 and 6 images: one and none; of 6 alone: none.
    keys = {"data.holdout": 0.1, "subsets.thresholds": (8, 50), "epochs": 1}
    with pytest.raises(ConfigError, match="held-out images of every subset, got none of subset 2"):
        run(tmp_path / "run", **keys)


# -- the student's pace: images


@pytest.mark.parametrize("schedule", ["linear", "convex", "concave"])
@pytest.mark.parametrize("preset", ["paper", "official"])
def test_images_weigh_by_the_experts_confidence(preset, schedule):
    method, stage = started(**{"lfme.preset": preset, "lfme.schedule": schedule, "epochs": 10})
    confidence = torch.zeros(len(DATA.train_labels), dtype=torch.float64)
    subset = torch.empty_like(DATA.train_labels)
    for index, classes in enumerate(SUBSETS):
        own = torch.isin(DATA.train_labels, torch.tensor(classes))
        x = DATA.transform.normalize(DATA.train_inputs[own])
        with torch.no_grad():
            p = method.context.teachers[f"expert{index}"].subset_logits(x).double().softmax(1)
        confidence[own] = p.gather(1, (DATA.train_labels[own] - classes[0])[:, None]).squeeze(1)
        subset[own] = index
    for epoch in (0, 4, 9):
        method.on_epoch_start(stage, epoch)
        expected = instance_weight(
            confidence,
            subset,
            [85, 32, 9],
            epoch + 1,
            10,
            schedule,
            labels=DATA.train_labels,
            preset=preset,
        )
        torch.testing.assert_close(method.instance_weight, expected.float(), rtol=1e-4, atol=1e-5)
    if preset == "paper":
        torch.testing.assert_close(method.instance_weight, torch.ones(len(confidence)))


def test_each_difference_is_a_switch():
    names = {field.name for field in fields(Preset)}
    assert names == {field.name for field in fields(LfmeConfig) if field.default is None}
    for name in names:
        other = getattr(PRESETS["official"], name)
        assert other != getattr(PRESETS["paper"], name)
        config = configure(**{f"lfme.{name}": other})
        changed = Preset.of(config.lfme)
        assert getattr(changed, name) == other
        assert sum(getattr(changed, n) != getattr(PRESETS["paper"], n) for n in names) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lfme.alpha", 1.0),
        ("lfme.instance_span", 0.0),
        ("lfme.expert_epochs", 0.0),
        ("lfme.images_per_class", 0),
        ("subsets.index", 3),
        ("subsets.thresholds", (50, 20)),
    ],
)
def test_impossible_values(key, value):
    with pytest.raises(ConfigError, match=f"`{key}`: expected"):
        configure(**{key: value})


# -- the run


class Notes(SilentProgress):
    def __init__(self):
        self.said = []

    def start(self, title, steps, done):
        self.said.append(title)

    def note(self, text):
        self.said.append(text)


def test_long_tailness_is_printed_before_anything_is_trained(tmp_path):
    notes = Notes()
    run(tmp_path / "run", notes, epochs=1, **PLAIN)
    assert notes.said[1] == "lfme"
    table = notes.said[0].splitlines()
    assert table[0] == "tiny, long-tailness"
    assert [line.split()[:3] for line in table[3:]] == [
        ["entire", "6", "252"],
        [">=50", "2", "170"],
        ["21..49", "2", "64"],
        ["<=20", "2", "18"],
    ]


def test_each_expert_says_what_it_is_of(tmp_path):
    notes = Notes()
    run(tmp_path / "run", notes, epochs=1)
    said = [text for text in notes.said if text.startswith("expert of")]
    assert said[0] == "expert of the 2 classes with >=50 images, 170 in all"
    assert said[2] == "expert of the 2 classes with <=20 images, 18 in all"


def test_a_run_writes_its_weights_and_plots(experts, tmp_path, monkeypatch):
    monkeypatch.setattr("ltkernels.train.run.can_plot", lambda: True)
    result = run(tmp_path / "run", expert_runs=str(experts))
    rows = rows_of(tmp_path / "run")
    losses = [row["loss"] for row in rows]
    assert losses[-1] < losses[0]
    for row in rows:
        quantiles = torch.tensor(row["lfme"]["instance_weight"])
        assert quantiles.shape == (3, 5)
        assert (quantiles.diff(dim=1) >= 0).all()
    assert torch.tensor(rows[-1]["lfme"]["instance_weight"]).eq(1).all()
    for name in ("expert_weight", "instance_weight", "loss_terms", "curves"):
        assert (tmp_path / "run" / "plots" / f"{name}.png").stat().st_size > 1000
    assert result["preset"]["name"] == "paper"
    loaded = load_method(tmp_path / "run", DATA, CPU)
    assert loaded.predict(DATA.transform.normalize(DATA.test_inputs[:3])).shape == (3, 6)


def test_the_losses_without_weights_are_those_of_the_epoch(experts, tmp_path):
    keys = {"lfme.expert_selection": False, "lfme.instance_selection": False}
    run(tmp_path / "run", expert_runs=str(experts), **keys)
    for row in rows_of(tmp_path / "run"):
        parts = row["lfme"]["cross_entropy"] + sum(row["lfme"]["divergence"])
        assert parts == pytest.approx(row["loss"], rel=1e-5)


@pytest.mark.parametrize("stop_in", ["an expert", "the student"])
def test_interrupted_it_ends_in_the_same_numbers(stop_in, experts, tmp_path):
    straight = run(tmp_path / "straight", expert_runs=str(experts))
    keys = {} if stop_in == "an expert" else {"expert_runs": str(experts)}

    class Stop(SilentProgress):
        title, steps = "", 0

        def start(self, title, steps, done):
            self.title, self.steps = title, 0

        def step(self, images, loss):
            self.steps += 1
            # Inside the second epoch of the student; between two of an expert's.
            if self.title == "lfme" and stop_in == "the student" and self.steps == 11:
                signal.raise_signal(signal.SIGINT)

        def epoch(self, row, epochs):
            if self.title == "subset_expert" and stop_in == "an expert" and row["epoch"] == 2:
                raise KeyboardInterrupt

    with pytest.raises((Interrupted, KeyboardInterrupt)):
        run(tmp_path / "stopped", Stop(), **keys)
    assert not (tmp_path / "stopped" / "result.json").exists()
    resumed = run(tmp_path / "stopped", resume=True, **keys)
    assert resumed["accuracy"] == straight["accuracy"]
    assert resumed["expert_weight"] == straight["expert_weight"]
    one, two = rows_of(tmp_path / "straight"), rows_of(tmp_path / "stopped")
    assert [row["loss"] for row in one] == [row["loss"] for row in two]
    assert [row["lfme"] for row in one] == [row["lfme"] for row in two]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_give_the_losses_of_one(tmp_path):
    arguments = ["lfme", "--dataset", "digits-lt", "--threads", "1", "--set", "device=cpu"]
    # The last batch, 31 images, does not divide by 2.
    for text in (
        "epochs=2",
        "batch_size=100",
        "lr=0.02",
        "model.width=4",
        "lfme.expert_epochs=0.5",
    ):
        arguments += ["--set", text]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "ltkernels.train", *arguments, "--out", "two"],
        cwd=tmp_path,
        env=process_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("long-tailness") == 1  # one process speaks
    assert cli.main([*arguments, "--out", str(tmp_path / "one")]) == 0
    # Sums in another order differ by rounding; every step of training amplifies that a little.
    one, two = (rows_of(tmp_path / name) for name in ("one", "two"))
    for epoch, tolerance in enumerate((2e-3, 2e-2)):
        assert two[epoch]["loss"] == pytest.approx(one[epoch]["loss"], rel=tolerance)
        for key in ("cross_entropy", "divergence"):
            expected = pytest.approx(one[epoch]["lfme"][key], rel=tolerance)
            assert two[epoch]["lfme"][key] == expected


def test_subsets_of_the_tiny_set():
    assert [c.tolist() for c in class_subsets(COUNTS, (20, 50))] == [list(c) for c in SUBSETS]
