"""Exported programs: the numbers of the model, without ltkernels."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ltkernels._ops import scale_gradient
from ltkernels.export import ExportError, check_program, export_run
from ltkernels.export import __main__ as cli
from ltkernels.export import program as program_module
from ltkernels.train import ConfigError, load_method, resolve, train
from ltkernels.train import cli as train_cli
from ltkernels.train.progress import SilentProgress
from tiny_data import TINY
from tiny_methods import DATA

SUBSETS = {"subsets.thresholds": [15, 40]}
METHODS = {
    "ce": {},
    "ldam_drw": {"model.head": "cosine"},
    "subset_expert": {**SUBSETS, "subsets.index": 1},
    "lfme": {**SUBSETS},
    "ride": {"experts": 2},
    "ncl": {"experts": 2, "contrast.queue": 64, "model.shared_stem": True},
    "ecl": {"experts": 2, "contrast.queue": 64, "flip_test": True},
    "cbe": {**SUBSETS, "data.holdout": 0.2, "data.holdout_min": 2, "cbe.epochs": 1},
}


def trained(out, method, **keys):
    config = resolve(TINY, {"method": method, "epochs": 1, **keys})
    train(config, out, dataset=DATA, progress=SilentProgress())
    return out


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Drawing takes longer than training does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltkernels.train.run.can_plot", lambda: False)
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function that trains and exports a method, once."""
    out = tmp_path_factory.mktemp("runs")
    done = {}

    def make(method):
        if method not in done:
            run = trained(out / method, method, **METHODS[method])
            done[method] = run, export_run(run, out / f"{method}-exported", DATA)
        return done[method]

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_program_gives_the_numbers_of_its_run(exported, method):
    run, result = exported(method)
    check, card = result.check, result.card
    assert check.passed
    assert check.images == len(DATA.test_inputs)
    assert check.same_class == check.images
    assert check.max_difference <= 1e-4 * max(1.0, float(check.logits.nan_to_num().abs().max()))
    reported = json.loads((run / "result.json").read_text())
    assert card["accuracy"] == pytest.approx(reported["accuracy"])
    assert card["ece"] == pytest.approx(reported["ece"], abs=1e-5)
    assert card["split_hash"] == reported["split_hash"]
    assert card["classes"] == list(DATA.class_names)
    assert card["input"]["shape"] == [1, 8, 8]
    assert card["input"]["dtype"] == "uint8"
    assert card["config"]["method"] == method
    assert json.loads((result.folder / "model.json").read_text()) == card
    weights, own = (
        load_file(result.folder / "model.safetensors"),
        load_file(run / "model.safetensors"),
    )
    assert weights.keys() == own.keys()
    assert all(torch.equal(weights[k], own[k]) for k in own)


def test_a_program_takes_any_number_of_images(exported):
    _, result = exported("ce")
    model = torch.export.load(result.folder / "model.pt2").module()
    for n in (1, 2, 3, 17):
        torch.testing.assert_close(model(DATA.test_inputs[:n]), result.check.logits[:n])


def test_what_is_for_training_only_is_not_exported(exported):
    _, result = exported("ecl")
    program = torch.export.load(result.folder / "model.pt2")
    assert not [name for name in program.state_dict if "contrast" in name or "reference" in name]
    targets = {str(node.target) for node in program.graph.nodes}
    assert not [name for name in targets if "ltkernels" in name]


def test_routers_leave_all_experts_and_say_so(tmp_path):
    run = trained(tmp_path / "run", "ride", experts=3, **{"routing.epochs": 1})
    result = export_run(run, tmp_path / "out", DATA)
    assert "all 3 experts" in result.card["note"]
    method = load_method(run, DATA, torch.device("cpu"))
    images = DATA.transform.normalize(DATA.test_inputs)
    with torch.no_grad():
        torch.testing.assert_close(result.check.logits, method.model.network.predict(images))
    program = torch.export.load(result.folder / "model.pt2")
    assert not [name for name in program.state_dict if "gates" in name or "hidden" in name]


def test_retrained_classifiers_of_experts(exported, tmp_path):
    start, _ = exported("ride")
    run = trained(tmp_path / "run", "crt", start=str(start))
    assert export_run(run, tmp_path / "out", DATA).check.passed


# --- without ltkernels ----------------------------------------------------------------------------

ALONE = """
import json, sys
import numpy, torch
found = []
for folder in sys.argv[1:]:
    card = json.load(open(f"{folder}/model.json"))
    model = torch.export.load(f"{folder}/model.pt2").module()
    images = torch.from_numpy(numpy.load("images.npy"))
    assert list(images.shape[1:]) == card["input"]["shape"]
    with torch.no_grad():
        found.append([card["classes"][i] for i in model(images).argmax(1)])
assert not [name for name in sys.modules if name.startswith("ltkernels")]
print(json.dumps(found))
"""


def test_torch_alone_runs_a_program(exported, tmp_path):
    results = [exported(method)[1] for method in ("ride", "cbe")]
    np.save(tmp_path / "images.npy", DATA.test_inputs[:7].numpy())
    # -I: neither PYTHONPATH nor the working directory, where ltkernels could be found.
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, *(str(result.folder) for result in results)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    expected = [
        [DATA.class_names[i] for i in result.check.logits[:7].argmax(1)] for result in results
    ]
    assert json.loads(done.stdout) == expected


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_difference_is_seen():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(9, 4, generator=generator)
    for off, passes in ((0.0, True), (1e-6, True), (0.1, False), (math.nan, False)):
        check = check_program(lambda x, off=off: x + off, images, images, batch_size=4)
        assert check.passed == passes
        assert check.images == 9
    swapped = check_program(lambda x: x.roll(1, 1), images, images)
    assert swapped.same_class < 9
    assert not swapped.passed
    impossible = images.clone()
    impossible[:, 2] = -torch.inf
    assert check_program(lambda x: x, impossible, impossible).max_difference == 0
    possible = check_program(lambda x: x.nan_to_num(neginf=0.0), impossible, impossible)
    assert not possible.passed


def test_a_program_that_differs_is_an_error(exported, monkeypatch, tmp_path, capsys):
    run, _ = exported("ce")
    forward = program_module.Classifier.forward

    def off(self, images):
        return forward(self, images) + torch.arange(6.0)

    monkeypatch.setattr(program_module.Classifier, "forward", off)
    with pytest.raises(ExportError, match="the program differs from the model: 5 in a logit"):
        export_run(run, tmp_path / "out", DATA)
    assert not (tmp_path / "out" / "model.json").exists()


def test_an_op_of_ours_in_the_graph_is_an_error():
    class Ours(nn.Module):
        def forward(self, x):
            return scale_gradient(x, x.sum(), x.sum())

    with pytest.raises(RuntimeError, match=r"needs ltkernels for .*scale_gradient"):
        program_module.export_program(Ours(), torch.ones(2, 3))


def test_the_command(tmp_path, capsys):
    run = tmp_path / "run"
    keys = ("epochs=1", "model.name=resnet8", "model.width=2")
    settings = [word for key in keys for word in ("--set", key)]
    assert train_cli.main(["ce", "--dataset", "digits-lt", "--out", str(run), *settings]) == 0
    capsys.readouterr()
    assert cli.main([str(run), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    result = json.loads((run / "result.json").read_text())
    n = result["test_images"]
    assert f"on {n} test images: largest difference" in printed
    assert f"the same class for {n}" in printed
    assert cli.main([str(tmp_path / "no"), "--out", str(tmp_path / "out")]) == 2
    assert "there is no run" in capsys.readouterr().err
    assert cli.main([str(tmp_path / "out"), "--out", str(tmp_path / "x")]) == 2


def test_a_run_that_is_not_finished(tmp_path):
    (tmp_path / "config.toml").write_text('method = "ce"\n')
    with pytest.raises(ConfigError, match="no finished run"):
        export_run(tmp_path, tmp_path / "out", DATA)
