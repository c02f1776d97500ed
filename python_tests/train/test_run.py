"""A run: what it writes, that it resumes to the same numbers, and how it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys

import pytest
import torch
from safetensors.torch import load_file

from interrupted_training import InterruptAt
from ltkernels.methods import METHODS, CrossEntropy, Stage
from ltkernels.predictions import read_logits
from ltkernels.train import (
    ConfigError,
    Interrupted,
    TrainingError,
    load_config,
    load_method,
    resolve,
    train,
)
from ltkernels.train.checkpoint import load_checkpoint, save_checkpoint
from ltkernels.train.evaluation import adjust_logits
from ltkernels.train.plots import HOW_TO_GET_PLOTS
from ltkernels.train.progress import SilentProgress
from ltkernels.train.report import format_results
from ltkernels.train.run import LOGITS
from tiny_data import COUNTS, TINY, tiny_dataset

DATA = tiny_dataset()


def run(out, *, resume=False, progress=None, **keys):
    config = resolve(TINY, keys)
    return train(config, out, resume=resume, dataset=DATA, progress=progress or SilentProgress())


def rows(out):
    """metrics.jsonl without its clocks."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    clocks = ("seconds", "images_per_second")
    return [{k: v for k, v in json.loads(x).items() if k not in clocks} for x in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "ce"
    return out, run(out, method="ce")


def test_result_has_the_contract(finished):
    out, result = finished
    assert json.loads((out / "result.json").read_text()) == result
    kinds = {
        "method": str,
        "dataset": str,
        "seed": int,
        "classes": int,
        "train_images": int,
        "shot_rule": str,
        "splits": dict,
        "accuracy": dict,
        "ece": float,
        "macs": int,
        "parameters": int,
        "seconds": float,
        "torch": str,
        "ltkernels": str,
        "backend": str,
    }
    assert {k: type(result[k]) for k in kinds} == kinds
    assert result["splits"] == {"many": 1, "medium": 3, "few": 2}
    assert set(result["accuracy"]) == {"overall", "many", "medium", "few"}
    assert all(0 <= v <= 100 for v in result["accuracy"].values())
    assert result["train_images"] == sum(COUNTS)
    assert result["split_hash"] == DATA.split_hash
    assert result["teacher"] is None
    assert result["info"]["version"] == result["ltkernels"]
    assert not result["test_set_leak"]


def test_run_writes_its_folder(finished):
    out, _ = finished
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    plots = {
        f"plots/{n}.png"
        for n in ("class_accuracy", "confusion", "curves", "group_confusion", "reliability")
    }
    names = {"config.toml", "metrics.jsonl", "result.json", "checkpoint.pt", "model.safetensors"}
    names |= {"logits.safetensors"}
    assert files == names | plots
    assert load_config(out) == resolve(TINY)
    assert [row["epoch"] for row in rows(out)] == [1, 2, 3]


def test_training_learns(finished):
    out, result = finished
    losses = [row["loss"] for row in rows(out)]
    assert losses[-1] < 0.6 * losses[0]
    assert result["accuracy"]["overall"] > 100 / len(COUNTS)


def test_saved_network_gives_the_reported_accuracy(finished):
    out, result = finished
    method = load_method(out, DATA, torch.device("cpu"))
    assert not any(p.requires_grad for p in method.parameters())
    with torch.no_grad():
        logits = method.predict(DATA.transform.normalize(DATA.test_inputs))
    accuracy = 100 * float((logits.argmax(1) == DATA.test_labels).double().mean())
    assert accuracy == pytest.approx(result["accuracy"]["overall"])
    adjusted = adjust_logits(logits, DATA.class_counts).argmax(1)
    accuracy = 100 * float((adjusted == DATA.test_labels).double().mean())
    assert accuracy == pytest.approx(result["logit_adjusted"]["accuracy"]["overall"])


def test_what_a_run_cost(finished, tmp_path):
    _, result = finished
    assert result["seconds_total"] == result["seconds"] > 0
    # A process that has imported torch is not smaller than this.
    assert result["peak_memory_bytes"] > 50e6
    assert result["peak_memory_kind"] == "process_rss"
    result = run(tmp_path / "bkd", method="bkd", epochs=1)
    both = result["seconds"] + result["teacher"]["seconds"]
    assert result["seconds_total"] == pytest.approx(both)


def test_peak_memory_is_that_of_all_parts_of_a_run(tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        run(tmp_path, method="ce", progress=InterruptAt(3, monkeypatch))
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    assert saved["peak_memory"] > 0
    for before, expected in ((10**15, 10**15), (1, None)):
        out = tmp_path / str(before)
        out.mkdir()
        (out / "config.toml").write_bytes((tmp_path / "config.toml").read_bytes())
        save_checkpoint(out / "checkpoint.pt", {**saved, "peak_memory": before})
        peak = run(out, method="ce", resume=True)["peak_memory_bytes"]
        assert peak == expected if expected else peak > 50e6


def test_logits_are_kept_unless_told_not_to(finished, tmp_path):
    out, result = finished
    source = read_logits(out / LOGITS)
    (member,) = source.members
    accuracy = 100 * float((member.test.argmax(1) == source.labels).double().mean())
    assert accuracy == pytest.approx(result["accuracy"]["overall"])
    assert torch.equal(source.labels, DATA.test_labels)
    assert torch.equal(source.class_counts, DATA.class_counts)
    assert (source.rule, source.split) == (result["shot_rule"], result["split_hash"])
    run(tmp_path, method="ce", epochs=1, keep_logits=False)
    assert not (tmp_path / LOGITS).exists()


@pytest.mark.parametrize("steps", [3, 8, 13])  # inside an epoch, at the end of one, inside again
def test_resumed_run_equals_an_uninterrupted_one(finished, tmp_path, monkeypatch, steps):
    whole, result = finished
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(out, method="ce", progress=InterruptAt(steps, monkeypatch))
    assert not (out / "result.json").exists()
    torch.rand(steps)  # numbers drawn elsewhere change nothing
    again = run(out, method="ce", resume=True)
    assert rows(out) == rows(whole)
    assert again["accuracy"] == result["accuracy"]
    assert again["ece"] == result["ece"]
    a, b = load_file(out / "model.safetensors"), load_file(whole / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_resumed_bkd_equals_an_uninterrupted_one_in_teacher_and_student(tmp_path, monkeypatch):
    keys = {"method": "bkd", "mixup_alpha": 0.5, "epochs": 2, "loss.deferred": 0.5}
    run(tmp_path / "whole", **keys)
    out = tmp_path / "run"
    for steps in (5, 14):  # in the teacher, then (its 11 other steps later) in the student
        with pytest.raises(Interrupted):
            run(out, resume=True, progress=InterruptAt(steps, monkeypatch), **keys)
    run(out, resume=True, **keys)
    for part in ("", "teacher"):
        assert rows(out / part) == rows(tmp_path / "whole" / part)
        a = load_file(out / part / "model.safetensors")
        b = load_file(tmp_path / "whole" / part / "model.safetensors")
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_seed_decides_everything(finished, tmp_path):
    whole, _ = finished
    run(tmp_path / "same", method="ce")
    run(tmp_path / "other", method="ce", seed=1)
    assert rows(tmp_path / "same") == rows(whole)
    assert rows(tmp_path / "other") != rows(whole)


def test_a_folder_with_a_run_is_not_overwritten(finished):
    out, result = finished
    before = (out / "checkpoint.pt").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run"):
        run(out, method="ce")
    with pytest.raises(ConfigError, match=re.escape("epochs = 3 (now 4)")):
        run(out, method="ce", epochs=4, resume=True)
    assert run(out, method="ce", resume=True, device="cpu") == result
    assert (out / "checkpoint.pt").read_bytes() == before


def test_nan_stops_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    original = CrossEntropy.loss
    calls = 0

    def loss(self, outputs, batch):
        nonlocal calls
        calls += 1
        return original(self, outputs, batch) * (math.nan if calls == 11 else 1)

    monkeypatch.setattr(CrossEntropy, "loss", loss)
    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 2, step 3.*kept in.*`lr`"):
        run(tmp_path, method="ce")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert (saved["position"]["epoch"], saved["position"]["step"]) == (1, 0)
    assert all(v.isfinite().all() for v in saved["method"].values())
    assert len(rows(tmp_path)) == 1


def test_teacher_is_given_or_trained_first_once(finished, tmp_path):
    teacher, result = finished
    given = run(tmp_path / "given", method="kd", teacher=str(teacher))
    assert given["teacher"]["run"] == str(teacher)
    assert given["teacher"]["accuracy"] == result["accuracy"]
    assert not (tmp_path / "given" / "teacher").exists()
    trained = run(tmp_path / "own", method="kd")
    assert rows(tmp_path / "own" / "teacher") == rows(teacher)
    assert rows(tmp_path / "own") == rows(tmp_path / "given")
    assert trained["accuracy"] == given["accuracy"]


def test_a_teacher_that_does_not_fit_is_refused(finished, tmp_path):
    with pytest.raises(ConfigError, match="holds no finished run"):
        run(tmp_path / "a", method="kd", teacher=str(tmp_path))
    fewer = dataclasses.replace(
        DATA,
        class_names=DATA.class_names[:5],
        train_inputs=DATA.train_inputs[DATA.train_labels < 5],
        train_labels=DATA.train_labels[DATA.train_labels < 5],
    )
    config = resolve(TINY, {"method": "kd", "teacher": str(finished[0])})
    with pytest.raises(ConfigError, match="trained on 6 classes, tiny has 5"):
        train(config, tmp_path / "b", dataset=fewer, progress=SilentProgress())


@pytest.mark.parametrize("selection", ["best_val", "best_test"])
def test_selected_epoch_is_the_best_one_and_a_leak_is_labelled(tmp_path, selection):
    out = tmp_path / "run"
    result = run(out, method="ce", selection=selection, **{"data.holdout": 0.2})
    split = {"best_val": "validation", "best_test": "test"}[selection]
    accuracy = [row[split]["overall"] for row in rows(out)]
    best = accuracy.index(max(accuracy))
    assert result["selected_epoch"] == best + 1
    assert result["accuracy"]["overall"] == pytest.approx(rows(out)[best]["test"]["overall"])
    assert result["test_set_leak"] == (selection == "best_test")
    assert ("leak" in format_results([result])) == (selection == "best_test")
    held = sum(max(1, int(0.2 * n)) for n in COUNTS)
    assert result["train_images"] == sum(COUNTS) - held
    assert result["split_hash"] != DATA.split_hash


def test_a_method_of_two_stages_resumes_in_either(tmp_path, monkeypatch):
    class TwoStages(CrossEntropy):
        """Features first, then the classifier alone."""

        name = "two_stages"
        validated = 0

        def stages(self):
            (first,) = super().stages()
            return first, dataclasses.replace(first, name="head", epochs=2, lr=0.01)

        def on_stage_start(self, stage: Stage):
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(stage.name == "train" or name.startswith("linear"))

        def on_epoch_end(self, stage, epoch, accuracy):
            TwoStages.validated += "overall" in accuracy

    monkeypatch.setitem(METHODS, "two_stages", TwoStages)
    keys = {"method": "two_stages", "epochs": 1, "data.holdout": 0.2}
    run(tmp_path / "whole", **keys)
    assert [row["stage"] for row in rows(tmp_path / "whole")] == ["train", "head", "head"]
    assert TwoStages.validated == 3
    frozen = [n for n, _ in _network(TwoStages).named_parameters() if not n.startswith("linear")]
    assert frozen
    for steps in (4, 7, 10):
        out = tmp_path / str(steps)
        with pytest.raises(Interrupted):
            run(out, progress=InterruptAt(steps, monkeypatch), **keys)
        run(out, resume=True, **keys)
        assert rows(out) == rows(tmp_path / "whole")
        a, b = (load_file(x / "model.safetensors") for x in (out, tmp_path / "whole"))
        assert all(torch.equal(a[k], b[k]) for k in a)


def _network(method):
    from ltkernels.nn import build_model

    return build_model("resnet8", 6, 1, width=4)


def test_without_matplotlib_one_line_says_how_to_get_plots(tmp_path, monkeypatch):
    notes = []

    class Notes(SilentProgress):
        def note(self, text):
            notes.append(text)

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run(tmp_path, method="ce", epochs=1, progress=Notes())
    assert notes == [HOW_TO_GET_PLOTS]
    assert not (tmp_path / "plots").exists()
    monkeypatch.undo()
    assert run(tmp_path, method="ce", epochs=1, resume=True) == result
    assert len(list((tmp_path / "plots").glob("*.png"))) == 5


def test_bf16_autocast_trains(tmp_path):
    keys = {"amp": "bf16", "epochs": 2, "method": "bkd", "lr": 0.05}
    result = run(tmp_path, **keys)
    losses = [row["loss"] for row in rows(tmp_path)]
    assert losses[1] < losses[0]
    assert all(math.isfinite(v) for v in result["accuracy"].values())


def test_two_threads_resume_to_the_same_numbers(tmp_path, monkeypatch):
    keys = {"method": "ldam_drw", "threads": 2, "epochs": 2}
    run(tmp_path / "whole", **keys)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", progress=InterruptAt(11, monkeypatch), **keys)
    run(tmp_path / "run", resume=True, **keys)
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_table_stands_side_by_side(finished, tmp_path):
    bkd = run(tmp_path / "bkd", method="bkd", teacher=str(finished[0]))
    table = format_results([finished[1], bkd])
    lines = table.splitlines()
    assert lines[0].split()[:4] == ["method", "many", "(1)", "medium"]
    assert [line.split("  ")[0] for line in lines[2:5]] == ["ce", "ce + logit adjustment", "bkd"]
    assert f"split {DATA.split_hash}" in table
    assert "rule kang" in table
    assert "last epoch" in table
