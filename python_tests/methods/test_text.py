"""Methods on texts: those that need no image train, resume and load again; the others say no."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file

from interrupted_training import InterruptAt
from ltkernels.data import TextTransform, Vocabulary, tokenize, vocabulary_of, wordnet
from ltkernels.export import export_run
from ltkernels.methods import METHODS
from ltkernels.train import (
    ConfigError,
    Interrupted,
    cli,
    load_config,
    load_method,
    resolve,
    train,
)
from ltkernels.train.progress import SilentProgress
from ltkernels.train.report import format_results
from ltkernels.train.run import hold_out
from tiny_data import TINY, tiny_dataset
from tiny_text import SMALL_TEXTCNN, TINY_TEXT, tiny_text_dataset, write_wordnet

DATA = tiny_text_dataset()
CPU = torch.device("cpu")
ON_TEXTS = [
    name
    for name, method in METHODS.items()
    if not method.needs_images and name not in ("ce", "crt", "subset_expert")
]
SUBSETS = {"subsets.thresholds": (20, 50)}


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Drawing takes longer than these runs train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltkernels.train.run.can_plot", lambda: False)
        yield


def run(out, *, dataset=DATA, resume=False, progress=None, **keys):
    config = resolve(TINY_TEXT, keys)
    return train(config, out, dataset=dataset, resume=resume, progress=progress or SilentProgress())


def rows(out):
    lines = (out / "metrics.jsonl").read_text().splitlines()
    clocks = ("seconds", "images_per_second")
    return [{k: v for k, v in json.loads(x).items() if k not in clocks} for x in lines]


def weights(out):
    return load_file(out / "model.safetensors")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("text") / "ce"
    return out, run(out, method="ce", epochs=6)


def test_a_run_learns_and_says_what_it_read(finished):
    out, result = finished
    losses = [row["loss"] for row in rows(out)]
    assert losses[-1] < 0.6 * losses[0]
    assert result["accuracy"]["overall"] > 40
    vocabulary = DATA.transform.vocabulary
    assert result["vocabulary"] == {
        "words": len(vocabulary),
        "hash": vocabulary.hash,
        "with_vector": 0,
    }
    assert result["split_hash"] == DATA.split_hash
    assert result["macs"] == 8 * 8 * 6 + 7 * 16 * 6 + 6 * 24 * 6 + 18 * 6
    assert Vocabulary.from_text((out / "vocabulary.txt").read_text()) == vocabulary
    table = format_results([result])
    assert "252 training texts of 6 classes" in table
    assert "60 test texts" in table


def test_a_run_loads_again_from_its_folder(finished):
    out, result = finished
    method = load_method(out, DATA, CPU)
    with torch.no_grad():
        logits = method.predict(DATA.transform.normalize(DATA.test_inputs))
    accuracy = 100 * float((logits.argmax(1) == DATA.test_labels).double().mean())
    assert accuracy == pytest.approx(result["accuracy"]["overall"])


def test_an_exported_run_brings_its_words(finished, tmp_path):
    exported = export_run(finished[0], tmp_path, DATA)
    assert exported.check.passed
    assert exported.card["input"]["dtype"] == "int32"
    assert exported.card["input"]["vocabulary"] == DATA.transform.vocabulary.hash
    assert exported.card["input"]["max_length"] == DATA.input_shape[0]
    pattern = exported.card["input"]["tokenisation"].partition("regular expression ")[2]
    assert re.findall(pattern, "don't x_1, no") == tokenize("don't x_1, no")
    words = Vocabulary.from_text((tmp_path / "vocabulary.txt").read_text())
    program = torch.export.load(tmp_path / "model.pt2").module()
    text = words.encode([["own0x0", "any1"]], DATA.input_shape[0])
    assert int(program(text).argmax()) == 0


def test_a_run_of_other_words_is_refused(finished):
    out, _ = finished
    swapped = (*DATA.transform.vocabulary.words[:-2], *DATA.transform.vocabulary.words[:-3:-1])
    other = dataclasses.replace(DATA, transform=TextTransform(Vocabulary(swapped)))
    with pytest.raises(ConfigError, match=r"trained with vocabulary \w{12}, tiny-text has \w{12}"):
        load_method(out, other, CPU)
    with pytest.raises(ConfigError, match=r"vocabulary \w{12}, tiny has none"):
        load_method(out, tiny_dataset(), CPU)


@pytest.mark.parametrize("name", ON_TEXTS)
def test_methods_without_images_train_on_texts(name, finished, tmp_path):
    keys = {"teacher": str(finished[0])} if name in ("kd", "bkd") else {}
    if name == "cbe":
        keys = {"start": str(finished[0]), "data.holdout": 0.2, "cbe.epochs": 2}
    result = run(tmp_path / "run", method=name, epochs=6, **SUBSETS, **keys)
    assert result["accuracy"]["overall"] > 100 / 6
    assert result["vocabulary"]["hash"] == DATA.transform.vocabulary.hash
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert all(map(math.isfinite, losses))
    trained_on, _ = hold_out(DATA, load_config(tmp_path / "run"))
    method = load_method(tmp_path / "run", trained_on, CPU)
    with torch.no_grad():
        logits = method.predict(DATA.test_inputs)
    accuracy = 100 * float((logits.argmax(1) == DATA.test_labels).double().mean())
    assert accuracy == pytest.approx(result["accuracy"]["overall"])


def test_the_methods_that_were_meant_for_texts_are_among_them():
    named = {"focal", "cb", "balanced_softmax", "ldam_drw", "kd", "bkd", "lfme", "cbe"}
    assert named <= set(ON_TEXTS)


def test_classifiers_are_trained_again_on_frozen_features(finished, tmp_path):
    run(tmp_path, method="crt", start=str(finished[0]), epochs=2)
    before, after = weights(finished[0]), weights(tmp_path)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if not name.startswith("linear.")}


@pytest.mark.parametrize("steps", [3, 18])  # inside an epoch of the teacher, of the student
def test_resumed_bkd_equals_an_uninterrupted_one(steps, tmp_path, monkeypatch):
    keys = {"method": "bkd", "epochs": 2, "data.holdout": 0.2}
    run(tmp_path / "whole", **keys)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", progress=InterruptAt(steps, monkeypatch), **keys)
    torch.rand(steps)  # numbers drawn elsewhere change nothing, dropout included
    run(tmp_path / "run", resume=True, **keys)
    for part in ("", "teacher"):
        assert rows(tmp_path / "run" / part) == rows(tmp_path / "whole" / part)
        a, b = weights(tmp_path / "run" / part), weights(tmp_path / "whole" / part)
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_word_vectors_of_a_file(tmp_path):
    file = tmp_path / "vectors.txt"
    file.write_text("own0x0 " + " ".join(["0.5"] * 8) + "\nnobody " + " ".join(["1"] * 8) + "\n")
    keys = {"method": "ce", "epochs": 1, "model.embeddings": str(file)}
    result = run(tmp_path / "static", **keys, **{"model.static_embeddings": True})
    assert result["vocabulary"]["with_vector"] == 1
    own = vocabulary_of(DATA)["own0x0"]
    assert weights(tmp_path / "static")["embedding.weight"][own].tolist() == [0.5] * 8
    run(tmp_path / "free", **keys)
    assert weights(tmp_path / "free")["embedding.weight"][own].tolist() != [0.5] * 8
    file.unlink()  # a trained network needs it no more
    load_method(tmp_path / "static", DATA, CPU)
    with pytest.raises(ConfigError, match=r"`model.embeddings`: cannot read .*vectors\.txt"):
        run(tmp_path / "missing", **keys)
    file.write_text("own0x0 1 2\n")
    with pytest.raises(ConfigError, match=r"`model.embeddings`: .* expected 8 numbers .* got 2"):
        run(tmp_path / "narrow", **keys)
    assert not (tmp_path / "narrow").exists()


@pytest.mark.parametrize("name", ["ride", "ride_bkd", "ncl", "ecl"])
def test_methods_of_images_are_refused_before_anything_trains(name, tmp_path):
    with pytest.raises(ConfigError, match=f"{name} needs images, tiny-text has texts; .* bkd"):
        run(tmp_path / "run", method=name)
    assert not (tmp_path / "run").exists()


def test_texts_are_not_mixed(tmp_path):
    with pytest.raises(ConfigError, match="`mixup_alpha`: expected 0"):
        run(tmp_path / "run", method="bkd", mixup_alpha=1.0)


def test_network_and_data_must_be_of_one_kind(tmp_path):
    with pytest.raises(ConfigError, match=r"`model.name`: expected textcnn, .* got 'resnet8'"):
        run(tmp_path / "run", method="ce", **{"model.name": "resnet8"})
    config = resolve(TINY, {"method": "ce", "model.name": "textcnn"})
    with pytest.raises(ConfigError, match=r"`model.name`: expected a network for images, tiny has"):
        train(config, tmp_path / "run", dataset=tiny_dataset(), progress=SilentProgress())


def test_the_command_line_on_files(tmp_path, capsys):
    write_wordnet(tmp_path / "wordnet", {"noun.person": 40, "adj.all": 30})
    small = [f"--set=model.{k}={','.join(map(str, v)) if isinstance(v, list) else v}"
             for k, v in SMALL_TEXTCNN.items()]  # fmt: skip
    command = ["--dataset", "wordnet-lt", "--set", f"data.root={tmp_path}", "--threads", "1"]
    assert cli.main(["ce", *command, *small, "--set=epochs=1", "--out", str(tmp_path / "run")]) == 0
    assert "148 training texts of 45 classes" in capsys.readouterr().out
    assert cli.main(["ecl", *command, "--out", str(tmp_path / "no")]) == 2
    assert "ecl needs images" in capsys.readouterr().err


def test_a_missing_wordnet_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(wordnet, "SYSTEM_FOLDER", tmp_path / "system")
    where = ["--dataset", "wordnet-lt", "--set", f"data.root={tmp_path / 'none'}"]
    assert cli.main(["ce", *where, "--out", str(tmp_path / "run")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert "wordnet-base" in lines[-1]
    assert lines[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text.max_length", 0),
        ("text.min_count", 0),
        ("text.max_words", 0),
        ("model.filter_widths", []),
        ("model.dropout", 1.0),
        ("model.embedding_width", 0),
    ],
)
def test_impossible_values(key, value):
    with pytest.raises(ConfigError, match=f"`{key}`"):
        resolve(TINY_TEXT, {key: value})
