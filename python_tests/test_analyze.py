"""The analyses: their numbers, what is resumed, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import normalize

from ltkernels.analyze import __main__ as cli
from ltkernels.analyze import (
    analyze_bias_variance,
    analyze_longtailness,
    analyze_tau_norm,
    evaluate_official,
    tau_normalize,
)
from ltkernels.data import load
from ltkernels.nn import RoutedExperts, build_model
from ltkernels.train import ConfigError

SHORT = [
    "--dataset",
    "digits-lt",
    "--models",
    "2",
    *("--set", "epochs=1"),
    *("--set", "model.width=2"),
    *("--set", "model.name=resnet8"),
]


def analyze(out, *more):
    return cli.main(["bias-variance", "--methods", "ce", "--out", str(out), *SHORT, *more])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    out = tmp_path_factory.mktemp("bias")
    assert analyze(out) == 0
    return out


def test_error_is_bias_and_both_parts_of_the_variance(report):
    (row,) = json.loads((report / "bias_variance.json").read_text())
    assert row["models"] == 2
    for group in ("overall", "many", "medium", "few"):
        if row["error"][group] is None:
            continue
        parts = row["variance_unbiased"][group] + row["variance_biased"][group]
        assert row["variance"][group] == pytest.approx(parts)
        # Two models: on a biased image the one that differs may be right or wrong again.
        low = row["bias"][group] + row["variance_unbiased"][group] - row["variance_biased"][group]
        high = row["bias"][group] + row["variance_unbiased"][group]
        assert low - 1e-9 <= row["error"][group] <= high + 1e-9


def test_models_are_trained_on_draws_of_their_own(report):
    hashes = [
        json.loads((report / "ce" / f"draw-{i}" / "result.json").read_text())["split_hash"]
        for i in range(2)
    ]
    assert hashes[0] != hashes[1]


def test_finished_models_are_not_trained_again(report, capsys):
    before = [(report / "ce" / f"draw-{i}" / "result.json").stat().st_mtime_ns for i in range(2)]
    assert analyze(report) == 0
    after = [(report / "ce" / f"draw-{i}" / "result.json").stat().st_mtime_ns for i in range(2)]
    assert before == after
    assert "done" not in capsys.readouterr().out


def test_what_a_training_says_is_passed_on(tmp_path, capsys):
    assert analyze(tmp_path, "--set", "lr=-1") == 1
    assert "error: ce, draw 0: `lr`: expected a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "named"), [(["--models", "1"], "--models"), (["--methods", "x"], "'x'")]
)
def test_wrong_usage(more, named, tmp_path, capsys):
    assert analyze(tmp_path, *more) == 2
    assert named in capsys.readouterr().err


def test_one_model_has_no_variance(report):
    with pytest.raises(ConfigError, match="at least 2 models"):
        analyze_bias_variance([report / "ce" / "draw-0"])


def test_tau_brings_the_lengths_together():
    model = build_model("resnet8", 7, 1, width=4, experts=2)
    before = [head.weight.detach().clone() for head in model.classifiers()]
    tau_normalize(model, 0.5)
    for head, weight in zip(model.classifiers(), before, strict=True):
        torch.testing.assert_close(head.weight.norm(dim=1), weight.norm(dim=1).sqrt())
        torch.testing.assert_close(normalize(head.weight, dim=1), normalize(weight, dim=1))
        assert not head.bias.any()
    tau_normalize(model, 1.0)
    torch.testing.assert_close(model.linears[0].weight.norm(dim=1), torch.ones(7))


def test_tau_normalisation_of_a_run(report, capsys):
    found = analyze_tau_norm(report / "ce" / "draw-0", taus=(0.0, 1.0))
    again = analyze_tau_norm(report / "ce" / "draw-0", taus=(1.0,))
    assert found.by_tau[1.0] == again.by_tau[1.0]  # each tau starts from the trained weights
    result = json.loads((report / "ce" / "draw-0" / "result.json").read_text())
    assert found.trained == result["accuracy"]
    assert cli.main(["tau-norm", str(report / "ce" / "draw-0")]) == 0
    assert "tau 0.5" in capsys.readouterr().out


def test_cosine_heads_have_no_length():
    with pytest.raises(ValueError, match="cosine head"):
        tau_normalize(build_model("resnet8", 7, 1, head="cosine"), 0.5)


# -- long-tailness and curves


def test_longtailness_of_a_data_set_and_its_subsets(capsys):
    assert cli.main(["longtailness", "--dataset", "digits-lt"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("digits-lt, split ")
    assert [line.split()[:4] for line in lines[4:]] == [
        ["entire", "10", "431", "21.3"],
        [">=40", "4", "331", "2.7"],
        ["16..39", "3", "74", "1.9"],
        ["<=15", "3", "26", "2.0"],
    ]


def test_longtailness_of_other_subsets_and_of_what_is_left_to_train_on(capsys):
    more = ["--set", "subsets.thresholds=100", "--set", "subsets.rule=wang"]
    assert cli.main(["longtailness", "--dataset", "digits-lt", *more]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[4:]]
    assert names == ["entire", ">=101", "<=100"]
    _, rows = analyze_longtailness("digits-lt", ["data.holdout=0.5"])
    assert rows[0].images < 431 / 2 + 10


@pytest.mark.parametrize(
    ("more", "named"),
    [(["--dataset", "x"], "'x'"), (["--set", "subsets.thresholds=5,2"], "rising")],
)
def test_longtailness_of_what_is_not_there(more, named, capsys):
    assert cli.main(["longtailness", *more]) == 2
    assert named in capsys.readouterr().err


def test_curves_of_runs(report, tmp_path, capsys):
    runs = [str(report / "ce" / f"draw-{i}") for i in range(2)]
    out = tmp_path / "plots" / "curves.png"
    assert cli.main(["curves", *runs, "--out", str(out)]) == 0
    assert out.stat().st_size > 1000
    assert str(out) in capsys.readouterr().out
    assert cli.main(["curves", str(tmp_path), "--out", str(out)]) == 2
    assert "holds no run" in capsys.readouterr().err


# -- published checkpoints


class ReleasedConfig:
    """What the released code pickles beside the weights; building one is refused."""

    def __reduce__(self):
        return pytest.fail, ("code named by the file was run",)


@pytest.fixture(params=["zip", "before torch 1.6"])
def published(request, tmp_path):
    """A file as the released code writes it, of a routed network for digits-lt."""
    torch.manual_seed(0)
    network = RoutedExperts(
        build_model("resnet8", 10, 1, width=4, experts=3, head="cosine"), z=5, hidden=4
    )
    state = {}
    for name, value in network.state_dict().items():
        name = name.removeprefix("network.").replace("hidden.", "expert_help_pred_hidden_fcs.")
        name = name.replace("gates.0.", "expert_help_pred_fc.")
        state[f"module.backbone.{name}"] = value
    file = tmp_path / "model_best.pth"
    content = {"arch": "x", "epoch": 5, "state_dict": state, "config": ReleasedConfig()}
    torch.save(content, file, _use_new_zipfile_serialization=request.param == "zip")
    return file, network.eval()


SMALL = {"dataset": "digits-lt", "model.name": "resnet8", "model.width": 4}


def test_a_published_checkpoint_is_evaluated(published):
    file, network = published
    found = evaluate_official(file, SMALL)
    config = found.config
    assert (config.method, config.experts, config.model.head) == ("ride", 3, "cosine")
    assert (config.routing.z, config.routing.hidden, config.routing.shared) == (5, 4, True)
    data = load("digits-lt")
    with torch.no_grad():
        predicted = network(data.transform.normalize(data.test_inputs)).logits.argmax(1)
    right = 100 * (predicted == data.test_labels).double().mean()
    assert found.accuracy["overall"] == pytest.approx(float(right), abs=0.21)  # one image
    assert len(found.report["experts"]["alone"]) == 3
    assert found.report["routing"]["macs"] > 0


def test_the_command_evaluates_a_published_checkpoint(published, capsys):
    sets = [word for k, v in SMALL.items() if k != "dataset" for word in ("--set", f"{k}={v}")]
    assert cli.main(["official", str(published[0]), "--dataset", "digits-lt", *sets]) == 0
    out = capsys.readouterr().out
    assert "expert 3 alone" in out
    assert "experts asked" in out


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    file = tmp_path / "x.pth"
    torch.save({"epoch": 3}, file)
    assert cli.main(["official", str(file)]) == 2
    assert "holds no weights" in capsys.readouterr().err
