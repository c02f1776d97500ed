"""A comparison of saved logits, and its report in three forms."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from ltkernels.compare import compare, gather, summary, write_report
from ltkernels.compare.contestants import parse_logits
from ltkernels.compare.document import Code, Heading, Items, Table, Text, to_html, to_markdown
from ltkernels.compare.experts import experts_of, experts_table
from ltkernels.compare.report import NO_PLOTS, accuracy_table, calibration_table, cell, cost_table
from ltkernels.evaluate import make_card, read_model
from ltkernels.train import ConfigError, resolve, train
from ltkernels.train.plots import can_plot
from tiny_data import TINY, tiny_dataset

COUNTS = torch.tensor([200, 150, 60, 30, 8, 4])
LABELS = torch.arange(6).repeat_interleave(20)


def write(path, skill, seed, **more):
    """Logits that are right more often the greater the skill, less so on rare classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(LABELS), 6, generator=generator)
    logits[torch.arange(len(LABELS)), LABELS] += skill
    arrays = {"logits": logits, "labels": LABELS, "class_counts": COUNTS, **more}
    np.savez(path, **{k: np.asarray(v) for k, v in arrays.items() if v is not None})
    return path


@pytest.fixture
def files(tmp_path):
    return {
        "ce": [write(tmp_path / f"ce{s}.npz", 1.0, s) for s in range(5)],
        "new": [write(tmp_path / f"new{s}.npz", 2.5, 10 + s) for s in range(5)],
        "same": [tmp_path / f"ce{s}.npz" for s in range(5)],
    }


def test_files_are_compared_with_the_baseline(files):
    found = gather({}, files, files_keep_prior=True, posthoc=["logit_adjustment"])
    assert [entry.name for entry in found.entries] == [
        "ce",
        "ce + logit adjustment",
        "new",
        "new + logit adjustment",
        "same",
        "same + logit adjustment",
    ]
    c = compare(found, resamples=2000)
    assert c.baseline.name == "ce"
    new, same = c.differences["new"], c.differences["same"]
    accuracies = [
        [entry.runs[s].accuracy["few"] for s in range(5)] for entry in found.entries[0:3:2]
    ]
    assert new["few"].points == pytest.approx(np.mean(accuracies[1]) - np.mean(accuracies[0]))
    assert new["overall"].low > 20
    assert c.stands["new"]["overall"]
    assert any(x.startswith("new  ") and "]**" in x for x in summary(c).splitlines())
    assert same["overall"].points == 0
    assert not c.stands["same"]["overall"]
    other = compare(found, "new", resamples=2000).differences["ce"]["overall"]
    assert other.points == pytest.approx(-new["overall"].points)
    with pytest.raises(ValueError, match="there is no baseline 'x'"):
        compare(found, "x")


def test_the_card_of_a_file_is_the_row_of_the_table(files):
    found = gather({}, {"new": files["new"][:1]}, posthoc=[])
    card = make_card(read_model(files["new"][0])[0])
    row = accuracy_table(found).rows[0]
    numbers = [f"{card.accuracy[group]:.1f}" for group in ("overall", "many", "medium", "few")]
    assert row == ["new", *numbers, f"{100 * card.ece['overall']:.1f}", "1"]
    ece = [f"{100 * card.ece[group]:.1f}" for group in ("overall", "many", "medium", "few")]
    assert calibration_table(found).rows == [["new", *ece]]
    assert cost_table(found).rows == [["new", "-", "-", "-", "-", "-"]]


def test_the_report_holds_all_of_it(files, tmp_path):
    found = gather({}, files, posthoc=[])
    c = compare(
        found,
        resamples=1000,
        command="python -m ltkernels.compare --logits a",
        missing=[("ride", 2, "the loss is not finite")],
        settings={"ce": {"epochs": 3}},
        notes=["a note <with> markup"],
    )
    out = tmp_path / "report"
    assert [path.name for path in write_report(out, c)] == [
        "report.md",
        "report.html",
        "report.json",
    ]
    text = (out / "report.md").read_text()
    for part in (
        "python -m ltkernels.compare --logits a",
        "- ride, seed 2: the loss is not finite",
        "| method | overall | many | medium | few | ECE | seeds |",
        "| minus ce | overall | many | medium | few | pairs |",
        "classes: many 2, medium 2, few 2",
        "- groups: rule kang",
        "- ce: `epochs = 3`",
        "2-fold comparison",
        "- a note <with> markup",
        "1,000 resamples of both",
    ):
        assert part in text
    page = (out / "report.html").read_text()
    assert "a note &lt;with&gt; markup" in page
    assert not re.search(r"https?://|<script|<link", page)
    data = json.loads((out / "report.json").read_text())
    assert data["differences"]["new"]["overall"]["holm"] is True
    assert data["entries"][0]["accuracy"]["few"]["values"] == [
        found.entries[0].runs[s].accuracy["few"] for s in range(5)
    ]
    assert data["missing"] == [{"name": "ride", "seed": 2, "why": "the loss is not finite"}]
    assert data["runs"]["new"]["1"]["kind"] == "file"
    if can_plot():
        names = ("groups", "differences", "reliability")
        assert page.count("src=") == page.count('src="data:image/png;base64,') == len(names)
        assert all((out / "plots" / f"{name}.png").stat().st_size > 1000 for name in names)
        assert "![Accuracy by group" in text
    assert "new" in summary(c)


def test_without_matplotlib_one_sentence_says_so(files, tmp_path, monkeypatch):
    monkeypatch.setattr("ltkernels.compare.report.can_plot", lambda: False)
    write_report(tmp_path / "plain", compare(gather({}, files, posthoc=[]), resamples=1000))
    assert NO_PLOTS in (tmp_path / "plain" / "report.md").read_text()
    assert not (tmp_path / "plain" / "plots").exists()


def test_one_seed_covers_test_images_only(files, tmp_path):
    one = {name: paths[:1] for name, paths in files.items()}
    c = compare(gather({}, one, posthoc=[]), resamples=1000)
    write_report(tmp_path / "one", c)
    assert "test images only" in (tmp_path / "one" / "report.md").read_text()
    assert "test images only" in summary(c)


def test_a_run_is_what_its_files_lack(tmp_path):
    """A run's labels, counts and split complete the files; its facts stand in the report."""
    data = tiny_dataset()
    for seed in (0, 1):
        train(resolve(TINY, {"seed": seed, "epochs": 1}), tmp_path / f"ce-{seed}", dataset=data)
    logits = torch.randn(len(data.test_labels), 6, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "x.npz", logits=logits.numpy())
    runs = {"ce": {s: tmp_path / f"ce-{s}" for s in (0, 1)}}
    files = {"x": [tmp_path / "x.npz"]}
    found = gather(runs, files, posthoc=["logit_adjustment", "temperature"])
    assert found.split == data.split_hash
    assert [entry.name for entry in found.entries] == ["ce", "ce + logit adjustment", "x"]
    c = compare(found, resamples=1000)
    assert c.differences["x"]["overall"].seeds == 1
    assert c.differences["ce + logit adjustment"]["overall"].seeds == 2
    row = cost_table(found).rows[0]
    assert row[0] == "ce"
    assert all(value != "-" for value in row)
    write_report(tmp_path / "report", c)
    text = (tmp_path / "report" / "report.md").read_text()
    assert f"split `{data.split_hash}` (not known of x)" in text
    assert "no temperature of ce, x: no validation images held out of training" in text
    assert "where there is one pair, test images only" in text


def test_one_common_seed_is_not_one_seed(files):
    some = {"ce": files["ce"][:1], "new": files["new"][:2]}
    assert "as there is one common seed:" in summary(compare(gather({}, some), resamples=1000))
    some["new"] = files["new"][:1]
    assert "as there is one seed:" in summary(compare(gather({}, some), resamples=1000))


def test_an_interval_without_width_is_explained_where_there_is_one(files):
    tie = compare(gather({}, files, posthoc=[]), resamples=1000)
    assert (same := tie.differences["same"]["overall"]).low == same.high == 0
    assert "An interval without width is no certainty" in summary(tie)
    files.pop("same")
    assert "without width" not in summary(compare(gather({}, files, posthoc=[]), resamples=1000))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": LABELS.flip(0)}, r"b\.npz is of other test images than .*a\.npz"),
        ({"split": "0123"}, r"b\.npz is trained on another split .* \(0123, there abcd\)"),
        ({"class_counts": COUNTS + 1}, r"b\.npz is of other training images a class"),
        ({"rule": "liu"}, r"b\.npz is of another rule"),
    ],
)
def test_what_does_not_fit_is_named(change, message, tmp_path):
    a = write(tmp_path / "a.npz", 1, 0, split="abcd", rule="kang")
    b = write(tmp_path / "b.npz", 1, 1, **{"split": "abcd", **change})
    with pytest.raises(ValueError, match=message):
        gather({}, {"a": [a], "b": [b]})
    if "rule" in change:
        assert gather({}, {"a": [a], "b": [b]}, rule="wang").rule == "wang"


def test_the_argument_of_logits(tmp_path):
    a = write(tmp_path / "a.npz", 1, 0)
    assert parse_logits([f"x={a},{a}", f"y={a}"]) == {"x": [a, a], "y": [a]}
    for texts, message in (
        ([str(a)], "expects name=FILE"),
        ([f"x={a}", f"x={a}"], "names 'x' twice"),
        (["x=none.npz"], "there is no run and no file none.npz"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_logits(texts)
    with pytest.raises(ValueError, match="nothing to compare"):
        gather({}, {})


def test_experts_alone_and_together():
    run = {
        "experts": {
            "alone": [{"overall": 80.0}, {"overall": 82.0}],
            "first": [{"overall": 80.0}, {"overall": 84.0}],
        }
    }
    routing = {
        "shares": {
            "overall": [0.5, 0.5],
            "many": [1.0, 0.0],
            "medium": [0, 1.0],
            "few": [0.0, 0.0],
        },
        "seconds": 3.0,
        "seconds_of_all": 4.0,
    }
    results = {"ce": [{}], "ride": [run, run], "routed": [{**run, "routing": routing}]}
    assert list(experts_of(results)) == ["ride", "routed"]
    table = experts_table(results, cell)
    assert table.rows == [
        ["ride", "81.0 ± 0.0", "84.0 ± 0.0", "3.0 ± 0.0", "all", "-"],
        ["routed", "81.0", "84.0", "3.0", "1.5 / 1.0 / 2.0 / -", "75.0"],
    ]
    assert experts_table({"ce": [{}]}, cell) is None


def test_blocks_as_markdown_and_html():
    blocks = [
        Heading("T", 1),
        Text("a `b` & c"),
        Items(["x"]),
        Code("p --q <r>"),
        Table(["n", "v"], [["a|b", "1"]]),
    ]
    text, page = to_markdown(blocks), to_html(blocks)
    assert "| a\\|b | 1 |" in text
    assert "```sh\np --q <r>\n```" in text
    assert "<p>a <code>b</code> &amp; c</p>" in page
    assert "<pre>p --q &lt;r&gt;</pre>" in page
    assert "<title>T</title>" in page
