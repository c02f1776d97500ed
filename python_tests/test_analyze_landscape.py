"""Landscape and features of a run: what moves, by how much, and that it is put back."""

from __future__ import annotations

import json

import pytest
import torch

from ltkernels.analyze import __main__ as cli
from ltkernels.analyze import (
    analyze_features,
    analyze_landscape,
    filter_normalized,
    principal_components,
)
from ltkernels.analyze import features as features_module
from ltkernels.nn import build_model
from ltkernels.train import cli as train_cli
from ltkernels.train import load_result

SETTINGS = ["--set", "epochs=1", "--set", "model.width=2", "--set", "model.name=resnet8"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for method in ("ce", "ecl"):
        arguments = [method, "--dataset", "digits-lt", *SETTINGS, "--out", str(out / method)]
        if method == "ecl":
            arguments += ["--set", "experts=2", "--set", "ecl.beta=0"]
        assert train_cli.main(arguments) == 0
    return out


def test_noise_has_the_norm_of_every_filter():
    model = build_model("resnet8", 7, 1, width=4, experts=2, shared_stem=False)
    direction = filter_normalized(model, torch.Generator().manual_seed(0))
    weights = dict(model.named_parameters())
    assert set(direction) == {name for name, w in weights.items() if w.dim() > 1}
    for name, noise in direction.items():
        torch.testing.assert_close(
            noise.flatten(1).norm(dim=1), weights[name].detach().flatten(1).norm(dim=1)
        )
        assert noise.flatten()[:50].std() > 0


def test_landscape_of_runs(runs, tmp_path, capsys):
    folders = [str(runs / name) for name in ("ce", "ecl")]
    options = ["--directions", "2", "--steps", "1", "--radius", "0.5", "--out", str(tmp_path)]
    assert cli.main(["landscape", *folders, *options]) == 0
    found = json.loads((tmp_path / "landscape.json").read_text())
    assert [each["method"] for each in found] == ["ce", "ecl"]
    for each, folder in zip(found, ("ce", "ecl"), strict=True):
        assert each["distances"] == [-0.5, 0.0, 0.5]
        trained = load_result(runs / folder)["accuracy"]["overall"]
        # In the middle stand the trained weights, for every direction: they were put back.
        assert [row[1] for row in each["accuracy"]] == pytest.approx([trained, trained])
        assert each["loss"][0][1] == each["loss"][1][1]
        assert each["loss"][0][0] != each["loss"][1][0]
    assert (tmp_path / "landscape.png").stat().st_size > 1000
    assert "distance     loss  accuracy" in capsys.readouterr().out


def test_landscape_is_a_function_of_the_seed(runs):
    first, again, other = (
        analyze_landscape(runs / "ce", distances=[0.3], directions=1, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first.loss != other.loss


def test_principal_components_are_those_of_most_variance():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([1.0, 9.0, 0.1, 3.0, 0.5, 0.2]) + 7
    points = principal_components(x)
    centred = x - x.mean(0)
    torch.testing.assert_close(points.std(0), centred.std(0)[[1, 3]], rtol=0.02, atol=0)
    assert abs(float((points[:, 0] * points[:, 1]).mean())) < 1e-3
    assert torch.equal(points, principal_components(x))


@pytest.mark.parametrize("name", ["ce", "ecl"])
def test_features_of_a_run(name, runs, tmp_path, capsys):
    path = tmp_path / "new" / "features.png"
    options = ["--embedding", "pca", "--images", "100", "--out", str(path)]
    assert cli.main(["features", str(runs / name), *options]) == 0
    assert path.stat().st_size > 1000
    width = {"ce": 8, "ecl": 16}[name]  # of two experts, both
    assert f"PCA of {width} features" in capsys.readouterr().out
    found = analyze_features(runs / name, images=100, embedding="pca")
    assert found.points.shape == (100, 2)
    assert found.points.isfinite().all()


def test_without_scikit_learn_pca_is_taken(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features_module, "can_tsne", lambda: False)
    assert "PCA" in analyze_features(runs / "ce", images=20).title
    options = ["--embedding", "tsne", "--out", str(tmp_path / "x.png")]
    assert cli.main(["features", str(runs / "ce"), *options]) == 1
    assert "needs scikit-learn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["landscape", "RUN", "--steps", "0"], "--steps"),
        (["landscape", "RUN", "--directions", "0"], "--directions"),
        (["features", "RUN", "--images", "3"], "--images"),
        (["landscape", "missing"], "missing"),
    ],
)
def test_wrong_usage(arguments, named, runs, tmp_path, capsys):
    arguments = [str(runs / "ce") if a == "RUN" else a for a in arguments]
    assert cli.main([*arguments, "--out", str(tmp_path / "x.png")]) == 2
    assert named in capsys.readouterr().err
