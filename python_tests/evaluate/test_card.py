"""Cards of runs and of files, and the command line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ltkernels.evaluate.card
from ltkernels.analyze import analyze_tau_norm
from ltkernels.evaluate import POSTHOC, format_card, make_card, read_model
from ltkernels.evaluate import __main__ as cli
from ltkernels.metrics import expected_calibration_error
from ltkernels.predictions import Member, Source, read_logits, write_logits
from ltkernels.predictions.runs import logits_of_run, prediction_of_run
from ltkernels.train import ConfigError, resolve, train
from ltkernels.train import cli as train_cli
from ltkernels.train.evaluation import adjust_logits
from ltkernels.train.progress import SilentProgress
from ltkernels.train.run import EXPERT_LOGITS, LOGITS
from tiny_data import TINY
from tiny_methods import DATA

COUNTS = np.array([150, 120, 50, 30, 8, 4])


def draw(rows, seed):
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % 6
    logits = generator.normal(size=(rows, 6)) + 2 * np.eye(6)[labels] + np.log(COUNTS)
    return logits, labels


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("logits") / "model.npz"
    logits, labels = draw(300, 0)
    held, held_labels = draw(240, 1)
    np.savez(
        path,
        logits=logits,
        labels=labels,
        val_logits=held,
        val_labels=held_labels,
        class_counts=COUNTS,
        rule="sharma",
    )
    return path


METHODS = {
    "ce": {"data.holdout": 0.2},
    "kd": {},
    "ldam_drw": {"model.head": "cosine", "data.holdout": 0.2},
    "cbe": {
        "data.holdout": 0.2,
        "data.holdout_min": 2,
        "subsets.thresholds": [15, 40],
        "cbe.epochs": 1,
    },
    "subset_expert": {"subsets.thresholds": [15, 40], "subsets.index": 1, "data.holdout": 0.2},
    "ride": {"experts": 2, "routing.epochs": 1},
}


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Drawing takes longer than training does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltkernels.train.run.can_plot", lambda: False)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for method, keys in METHODS.items():
        config = resolve(TINY, {"method": method, "epochs": 1, **keys})
        train(config, out / method, dataset=DATA, progress=SilentProgress())
    return out


def card_of(run, **options):
    source, facts = read_model(run, dataset=DATA)
    return make_card(source, facts, dataset=DATA, **options)


def evaluate(*arguments):
    return cli.main([str(a) for a in arguments])


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_card_says_what_the_run_reported(runs, method):
    run = runs / method
    result = json.loads((run / "result.json").read_text())
    card = card_of(run)
    assert card.accuracy == pytest.approx(result["accuracy"])
    assert card.ece["overall"] == pytest.approx(result["ece"])
    assert card.groups == result["splits"]
    assert card.notes == ()
    written = card.to_dict()
    assert json.loads(json.dumps(written)) == written
    for key in (
        *("method", "dataset", "seed", "epochs", "recipe", "selection", "split_hash", "macs"),
        *("parameters", "seconds", "seconds_total", "peak_memory_bytes", "shot_rule", "torch"),
        *("ltkernels", "backend", "train_images", "test_images"),
    ):
        assert written[key] == result[key] is not None
    assert written["kind"] == "run"
    assert written["classes"] == 6
    printed = format_card(card)
    assert f"split {result['split_hash']}" in printed
    assert f"{result['parameters']:,} parameters" in printed


def test_every_key_is_documented(runs):
    written = card_of(runs / "ce").to_dict()
    for key in written:
        assert f"``{key}``" in ltkernels.evaluate.card.__doc__
    for row in written["posthoc"]:
        assert set(row) <= {"row", "setting", *written}


def test_seconds_of_what_a_run_needed_stand_apart(runs):
    card = card_of(runs / "kd")
    own, before = card.facts["seconds"], card.facts["seconds_before"]
    teacher = json.loads((runs / "kd" / "teacher" / "result.json").read_text())
    assert before == {"teacher": pytest.approx(teacher["seconds"])}
    assert card.facts["seconds_total"] == pytest.approx(own + before["teacher"])
    assert card_of(runs / "ce").facts["seconds_before"] == {}


@pytest.mark.parametrize("method", METHODS)
def test_logits_of_the_folder_are_those_that_are_predicted_again(runs, method, tmp_path):
    run = tmp_path / method
    shutil.copytree(runs / method, run)
    stored = [prediction_of_run(run), logits_of_run(run)]
    assert (run / EXPERT_LOGITS).exists() == (method == "cbe")
    for name in (LOGITS, EXPERT_LOGITS):
        (run / name).unlink(missing_ok=True)
    again = [prediction_of_run(run, dataset=DATA), logits_of_run(run, dataset=DATA)]
    for a, b in zip(stored, again, strict=True):
        assert (a.name, a.rule, a.split) == (b.name, b.rule, b.split)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.class_counts, b.class_counts)
        assert [m.name for m in a.members] == [m.name for m in b.members]
        assert (a.validation_labels is None) == (b.validation_labels is None)
        for m, n in zip(a.members, b.members, strict=True):
            assert torch.equal(m.classes, n.classes)
            torch.testing.assert_close(m.test, n.test)
            assert (m.validation is None) == (n.validation is None)
            if m.validation is not None:
                torch.testing.assert_close(m.validation, n.validation)


def test_rows_for_nothing(runs):
    card = card_of(runs / "ce")
    assert set(card.posthoc) == set(POSTHOC)
    adjusted = card.posthoc["logit_adjustment"]
    result = json.loads((runs / "ce" / "result.json").read_text())["logit_adjusted"]
    assert adjusted.accuracy == pytest.approx(result["accuracy"])
    assert adjusted.setting == {"tau": result["tau"]}
    warm = card.posthoc["temperature"]
    assert warm.accuracy == card.accuracy
    assert warm.setting["fitted_on"] == f"{card.facts['validation_images']} validation images"
    probabilities = (card.logits / warm.setting["temperature"]).softmax(1)
    ece = expected_calibration_error(probabilities, card.labels)
    assert warm.ece["overall"] == pytest.approx(ece)
    both = card.posthoc["logit_adjustment+temperature"]
    assert both.accuracy == adjusted.accuracy
    assert both.ece != adjusted.ece


def test_tau_is_chosen_on_validation_images(runs):
    from ltkernels.evaluate.posthoc import tau_normalized

    chosen = tau_normalized(runs / "ce", dataset=DATA)
    assert "validation images" in chosen.setting["chosen_on"]
    fixed = tau_normalized(runs / "kd", dataset=DATA)
    assert fixed.setting == {"tau": 0.7, "chosen_on": "no validation images: fixed"}


def test_rows_that_there_are_not_say_why(runs):
    kd = card_of(runs / "kd")
    assert "no validation images" in kd.absent["temperature"]
    assert "logit_adjustment" in kd.posthoc
    cosine = card_of(runs / "ldam_drw")
    assert "no length" in cosine.absent["tau_norm"]
    assert "do not carry the training prior" in cosine.absent["logit_adjustment"]
    assert "no one classifier" in card_of(runs / "cbe").absent["tau_norm"]
    assert "routers" in card_of(runs / "ride").absent["tau_norm"]
    source, facts = read_model(runs / "ce")  # "tiny" is no data set that can be loaded by name
    assert "cannot be loaded" in make_card(source, facts).absent["tau_norm"]
    for row, why in cosine.absent.items():
        assert row in POSTHOC
        assert why in format_card(cosine)
    assert card_of(runs / "ce", posthoc=()).posthoc == {}
    with pytest.raises(ValueError, match="expected `posthoc`"):
        card_of(runs / "ce", posthoc=("magic",))


def test_what_does_not_fit_is_said(runs):
    source, facts = read_model(runs / "ce")
    other = {**facts, "split_hash": "0" * 12, "accuracy": {"overall": 1.0}, "test_set_leak": True}
    notes = " ".join(make_card(source, other, posthoc=()).notes)
    assert "a leak" in notes
    assert "000000000000" in notes
    assert "result.json says 1.00 %" in notes
    moved = make_card(source, facts, posthoc=(), rule="liu")
    assert "the model's own is kang" in " ".join(moved.notes)
    assert moved.facts["shot_rule"] == "liu"


def test_a_run_that_is_not_finished(tmp_path):
    with pytest.raises(ConfigError, match="run"):
        read_model(tmp_path)


# --- files ----------------------------------------------------------------------------------------


def test_of_a_file_nothing_is_invented(file):
    card = make_card(*read_model(file))
    facts = {k: v for k, v in card.facts.items() if v is not None}
    assert facts == {
        "kind": "file",
        "classes": 6,
        "train_images": int(COUNTS.sum()),
        "validation_images": 240,
        "test_images": 300,
        "shot_rule": "sharma",
    }
    assert "not known" in card.absent["logit_adjustment"]
    assert "weights" in card.absent["tau_norm"]
    assert set(card.posthoc) == {"temperature"}
    assert "method      -" in format_card(card)


def test_the_logits_of_a_file_may_carry_the_prior(file, tmp_path, capsys):
    assert evaluate(file, "--logits-keep-prior", "--json", tmp_path / "cards.json") == 0
    (card,) = json.loads((tmp_path / "cards.json").read_text())
    rows = {row["row"]: row for row in card["posthoc"]}
    source = read_logits(file)
    adjusted = adjust_logits(source.members[0].test, source.class_counts).argmax(1)
    right = 100 * float((adjusted == source.labels).double().mean())
    assert rows["logit_adjustment"]["accuracy_overall"] == pytest.approx(right)
    assert right > card["accuracy_overall"]
    printed = capsys.readouterr().out
    assert "+ logit adjustment + temperature" in printed
    assert "many (2)" in printed


@pytest.mark.parametrize("kind", ["npy", "safetensors", "npz"])
def test_files_of_all_kinds_give_the_same_card(file, kind, tmp_path, capsys):
    with np.load(file) as stored:
        arrays = dict(stored)
    own = []
    path = tmp_path / f"model.{kind}"
    if kind == "npy":
        np.save(path, arrays["logits"])
        np.save(tmp_path / "model.val.npy", arrays["val_logits"])
        for option, name in (
            ("--labels", "labels"),
            ("--val-labels", "val_labels"),
            ("--class-counts", "class_counts"),
        ):
            np.save(tmp_path / f"{name}.npy", arrays[name])
            own += [option, tmp_path / f"{name}.npy"]
        own += ["--rule", "sharma"]
    elif kind == "safetensors":
        numbers = {k: torch.from_numpy(v) for k, v in arrays.items() if k != "rule"}
        save_file(numbers, path, {"rule": "sharma"})
    else:
        write_logits(path, read_logits(file))
    assert evaluate(file, path, *own, "--json", tmp_path / "cards.json") == 0
    first, second = json.loads((tmp_path / "cards.json").read_text())
    assert {**second, "name": ""} == {**first, "name": ""}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_experts_of_a_file_keep_their_order_and_have_cards_of_their_own(suffix, tmp_path, capsys):
    logits, labels = draw(60, 0)
    names = ("zebra", "ant")
    whole = torch.arange(6)
    members = tuple(
        Member(f"x:{name}", whole, torch.from_numpy(logits) * (i + 1), None)
        for i, name in enumerate(names)
    )
    source = Source("x", members, labels=torch.from_numpy(labels), split="abc", rule="wang")
    path = tmp_path / f"two{suffix}"
    write_logits(path, source)
    again = read_logits(path)
    assert [m.name for m in again.members] == [f"{path}:{name}" for name in names]
    assert (again.split, again.rule) == ("abc", "wang")
    with pytest.raises(ValueError, match="holds 2 experts"):
        make_card(again)
    assert evaluate(path) == 0
    printed = capsys.readouterr().out
    assert all(f"{path}:{name}" in printed for name in names)


def test_an_expert_of_some_classes(tmp_path):
    logits, labels = draw(60, 0)
    part = Member("x", torch.tensor([1, 4]), torch.from_numpy(logits[:, [1, 4]]), None)
    card = make_card(Source("x", (part,), labels=torch.from_numpy(labels)))
    assert card.facts["classes"] == 6
    assert card.accuracy["overall"] <= 100 * 2 / 6
    rejecting = Member("x", torch.tensor([1]), torch.from_numpy(logits[:, [1, 4]]), None)
    with pytest.raises(ValueError, match="reject class"):
        make_card(Source("x", (rejecting,), labels=torch.from_numpy(labels)))


def test_counts_of_no_images_give_no_groups():
    logits, labels = draw(60, 0)
    member = Member("x", torch.arange(6), torch.from_numpy(logits), None)
    counts = torch.tensor([10, 9, 8, 7, 6, 0])
    card = make_card(Source("x", (member,), torch.from_numpy(labels), class_counts=counts))
    assert card.groups == {"many": None, "medium": None, "few": None}
    assert "no training image" in " ".join(card.notes)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"logits": np.zeros((2, 3))}, "no test labels"),
        ({"logits": np.zeros((2, 3)), "labels": np.zeros(4, int)}, "of 2 test images, labels of 4"),
        (
            {
                "logits": np.zeros((2, 3)),
                "labels": np.zeros(2, int),
                "class_counts": np.ones(2, int),
            },
            "images of 2 classes, logits or labels of 3",
        ),
        (
            {
                "logits": np.zeros((2, 3)),
                "labels": np.zeros(2, int),
                "val_logits": np.zeros((2, 3)),
                "val_labels": np.zeros(5, int),
            },
            "of 2 validation images, labels of 5",
        ),
        ({"logits": np.zeros((2, 3)), "labels": np.zeros(2, int), "rule": "x"}, "one of kang"),
        ({"logits": np.full((2, 3), np.nan), "labels": np.zeros(2, int)}, "got NaN or +inf"),
        ({"logits": np.zeros((0, 3)), "labels": np.zeros(0, int)}, "to have a row at least"),
        ({"logits": np.zeros((2, 3)), "labels": np.array([0, -1])}, "expected 'labels' >= 0"),
        (
            {
                "logits": np.zeros((2, 3)),
                "labels": np.zeros(2, int),
                "classes": np.array([0, 2, 2]),
            },
            "distinct, got 2 twice",
        ),
    ],
)
def test_wrong_files_are_named(arrays, message, tmp_path, capsys):
    np.savez(tmp_path / "wrong.npz", **arrays)
    assert evaluate(tmp_path / "wrong.npz") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
def test_a_damaged_file_is_named(suffix, tmp_path, capsys):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(b"no numbers at all")
    assert evaluate(path) == 1
    assert f"{path}: not a readable {suffix} file" in capsys.readouterr().err


def test_classes_without_a_test_image_are_said():
    z, labels = torch.eye(5)[:4], torch.arange(4)
    counts = torch.tensor([200, 150, 60, 30, 3])
    source = Source("few", (Member("few", torch.arange(5), z, None),), labels, None, counts)
    assert "1 of 5 classes have no test image" in " ".join(make_card(source).notes)


def test_wrong_usage(file, tmp_path, capsys):
    assert evaluate(tmp_path / "nothing") == 2
    assert "there is no run and no file" in capsys.readouterr().err
    assert evaluate(tmp_path) == 2
    assert "run" in capsys.readouterr().err
    assert evaluate(file, "--posthoc", "magic") == 2
    assert "unknown post-hoc row 'magic'" in capsys.readouterr().err
    assert evaluate(file, "--json", tmp_path / "nowhere" / "cards.json") == 2
    assert "--json: there is no folder" in capsys.readouterr().err
    assert evaluate(file, "--posthoc", "") == 0


def test_the_command_on_a_run(tmp_path, capsys):
    run = tmp_path / "run"
    keys = ("epochs=1", "model.name=resnet8", "model.width=2", "data.holdout=0.2")
    settings = [word for key in keys for word in ("--set", key)]
    assert train_cli.main(["ce", "--dataset", "digits-lt", "--out", str(run), *settings]) == 0
    capsys.readouterr()
    assert evaluate(run, "--json", tmp_path / "cards.json") == 0
    printed = capsys.readouterr().out
    (card,) = json.loads((tmp_path / "cards.json").read_text())
    assert {row["row"] for row in card["posthoc"]} == set(POSTHOC)
    assert card["notes"] == []
    tau = next(row for row in card["posthoc"] if row["row"] == "tau_norm")
    by_tau = analyze_tau_norm(run, taus=(tau["setting"]["tau"],)).by_tau
    (accuracy,) = by_tau.values()
    assert tau["accuracy_overall"] == pytest.approx(accuracy["overall"])
    assert "MiB (resident, whole process)" in printed
    assert "+ tau-normalisation" in printed
