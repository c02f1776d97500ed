"""Class-balanced experts: what each learns from, what stands still, and how they become one."""

from __future__ import annotations

import json

import pytest
import torch

from golden_vectors import load_case
from ltkernels.fusion import STRATEGIES, oracle
from ltkernels.losses import OutlierExposureLoss
from ltkernels.methods import CBE, Context
from ltkernels.metrics import shot_accuracy
from ltkernels.nn import build_model
from ltkernels.nn.expert_bank import blocks_of
from ltkernels.train import ConfigError, load_method, resolve, train
from ltkernels.train.config import parse_assignment
from ltkernels.train.distributed import World
from ltkernels.train.evaluation import predict_logits
from ltkernels.train.progress import SilentProgress
from ltkernels.train.run import load_config
from tiny_data import TINY
from tiny_methods import COUNTS, DATA, build

CPU = torch.device("cpu")
KEYS = {
    "method": "cbe",
    "epochs": 2,
    "cbe.epochs": 2,
    "cbe.batch_size": 16,
    "cbe.open_ratio": [4, 2, 1],
    "data.holdout": 0.2,
    "data.holdout_min": 2,
    "subsets.thresholds": [15, 40],
}


def run(out, **keys):
    config = resolve(TINY, {**KEYS, **keys})
    return train(config, out, dataset=DATA, progress=SilentProgress())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("cbe") / "run"
    return out, run(out)


def tiny_method(**keys):
    """The method beside a baseline that was not trained."""
    torch.manual_seed(0)
    config = resolve(TINY, {**KEYS, **keys})
    teachers = {"start": build("ce").eval()}

    def network(num_classes):
        return build_model("resnet8", num_classes, 1, width=4)

    return CBE(Context(config, DATA, COUNTS, CPU, network, teachers))


# --- the run --------------------------------------------------------------------------------------


def test_the_report_has_every_strategy(done):
    out, result = done
    fusion = result["fusion"]
    assert tuple(fusion["strategies"]) == STRATEGIES
    for name, row in fusion["strategies"].items():
        assert (
            row["accuracy"]["overall"] <= fusion["oracle"]["overall"] + 1e-9 or name == "stacking"
        )
    assert fusion["strategies"]["joint_calibration"]["accuracy"] == result["accuracy"]
    assert fusion["strategies"]["joint_calibration"]["ece"] == pytest.approx(result["ece"])
    assert [sum(row) for row in fusion["confusion"]] == pytest.approx([100] * 3)
    for expert in fusion["experts"]:
        for shares in expert["confidence"].values():
            assert sum(shares) == pytest.approx(1)
    assert result["start"]["method"] == "ce"
    assert (out / "start" / "result.json").exists()


def test_its_plots_are_drawn(done):
    pytest.importorskip("matplotlib")
    out, _ = done
    for name in ("fusion", "expert_confusion", "expert_confidence"):
        assert (out / "plots" / f"{name}.png").stat().st_size > 1000


def test_the_last_row_of_the_metrics_is_the_fused_result(done):
    out, result = done
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["stage"] == "few"
    assert last["test"]["overall"] == pytest.approx(result["accuracy"]["overall"])


def test_a_loaded_run_predicts_what_it_reported(done):
    out, result = done
    smaller, _, _ = DATA.holdout(fraction=0.2, at_least=2)
    method = load_method(out, smaller, CPU)
    logits = predict_logits(method, DATA.test_inputs, smaller.transform, World(), device=CPU)
    shots = shot_accuracy(logits.argmax(1), DATA.test_labels, smaller.class_counts)
    assert 100 * shots.overall == pytest.approx(result["accuracy"]["overall"])
    experts = [
        torch.cat([method.expert_logits(smaller.transform.normalize(DATA.test_inputs))[e]])
        for e in range(3)
    ]
    best = oracle(experts, method.model.classes, DATA.test_labels, num_classes=6)
    found = shot_accuracy(best, DATA.test_labels, smaller.class_counts)
    assert 100 * found.overall == pytest.approx(result["fusion"]["oracle"]["overall"])


def test_a_run_that_was_cut_goes_on_to_the_same_numbers(done, tmp_path):
    out, whole = done

    class Cut(SilentProgress):
        def epoch(self, row, epochs):
            if row["stage"] == "medium" and row["epoch"] == 1:
                self.cut = True

        def step(self, images, loss):
            if getattr(self, "cut", False):
                raise RuntimeError("cut")

    config = resolve(TINY, {**KEYS, "start": str(out / "start")})
    with pytest.raises(RuntimeError, match="cut"):
        train(config, tmp_path / "run", dataset=DATA, progress=Cut())
    again = train(config, tmp_path / "run", resume=True, dataset=DATA, progress=SilentProgress())
    assert again["accuracy"] == whole["accuracy"]
    assert again["fusion"] == whole["fusion"]


@pytest.mark.parametrize(
    "keys",
    [
        {"cbe.mechanism": "exposure", "cbe.fusion": "stacking"},
        {"cbe.reject_correction": 0.7, "cbe.fusion": "kl_min", "cbe.redraw": True},
        {"cbe.reject_correction": "test_prior", "subsets.thresholds": [30], "mixup_alpha": 0.5},
    ],
)
def test_variants_run(keys, done, tmp_path):
    out, _ = done
    result = run(tmp_path / "run", start=str(out / "start"), **{"cbe.epochs": 1}, **keys)
    fusion = result["fusion"]
    assert len(fusion["experts"]) == (2 if "subsets.thresholds" in keys else 3)
    if keys.get("cbe.mechanism") == "exposure":
        assert all(e["reject"]["own"] is None for e in fusion["experts"])
    own = fusion["strategies"][keys.get("cbe.fusion", "joint_calibration")]
    assert own["accuracy"] == result["accuracy"]
    assert load_config(tmp_path / "run") == load_config(tmp_path / "run")


# --- single parts ---------------------------------------------------------------------------------


def test_an_expert_sees_its_images_and_an_undersampled_draw_of_the_others():
    method = tiny_method()
    labels = DATA.train_labels
    for e, stage in enumerate(method.stages()):
        first, second = method.order(stage, 0), method.order(stage, 1)
        own = torch.isin(labels[first], method.model.classes[e])
        total = int(torch.isin(labels, method.model.classes[e]).sum())
        assert int(own.sum()) == total
        assert int((~own).sum()) == min(total // (4, 2, 1)[e], len(labels) - total)
        assert not torch.equal(first, second)
        assert torch.equal(first.sort().values, second.sort().values)  # one draw for all epochs
    redrawn = tiny_method(**{"cbe.redraw": True})
    stage = redrawn.stages()[1]
    orders = [redrawn.order(stage, epoch).sort().values for epoch in (0, 1)]
    assert not torch.equal(*orders)


def test_experts_begin_with_the_features_of_the_baseline():
    method = tiny_method()
    trained = method.context.teachers["start"].model.state_dict()
    for network in method.model.networks:
        for name, value in network.state_dict().items():
            assert torch.equal(value, trained[name]) != name.startswith("linear.")


@pytest.mark.parametrize("frozen", [True, False])
def test_lower_blocks_stand_still(frozen):
    method = tiny_method(**{"cbe.learnable": [-1, 2, 1], "cbe.frozen_statistics": frozen})
    for e, (stage, learnable) in enumerate(zip(method.stages(), (5, 2, 1), strict=True)):
        method.on_stage_start(stage)
        method.train()
        before = {k: v.clone() for k, v in method.model.state_dict().items()}
        indices = method.order(stage, 0)[:16]
        images, labels = DATA.train_inputs[indices], DATA.train_labels[indices]
        batch = method.prepare(images, labels, indices, torch.Generator().manual_seed(0))
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
        method.loss(method(batch), batch).backward()
        optimizer.step()
        after = method.model.state_dict()
        changed = {k for k in after if not torch.equal(before[k], after[k])}
        assert changed
        assert all(name.startswith(f"networks.{e}.") for name in changed)
        blocks = blocks_of(method.model.networks[e])
        assert len(blocks) == 5
        for depth, block in enumerate(blocks):
            of_block = {
                name
                for name, module in method.model.named_modules()
                if any(module is m for part in block for m in part.modules())
            }
            inside = {k for k in changed if k.rpartition(".")[0] in of_block}
            weights = {k for k in inside if "running" not in k and "num_batches" not in k}
            learns = depth >= 5 - learnable
            assert bool(weights) == learns
            if not learns:
                assert bool(inside) != frozen


def test_other_classes_are_the_reject_class():
    method = tiny_method()
    method.on_stage_start(method.stages()[1])
    indices = torch.arange(0, 240, 7)
    batch = method.prepare(
        DATA.train_inputs[indices],
        DATA.train_labels[indices],
        indices,
        torch.Generator().manual_seed(0),
    )
    outputs = method(batch)
    own = method.model.classes[1].tolist()
    expected = [own.index(y) if y in own else len(own) for y in batch.labels.tolist()]
    assert outputs.shape[1] == len(own) + 1
    loss = torch.nn.functional.cross_entropy(outputs, torch.tensor(expected))
    torch.testing.assert_close(method.loss(outputs, batch), loss)


def test_the_reject_logit_is_corrected():
    plain = tiny_method(**{"cbe.reject_correction": "none"}).eval()
    moved = tiny_method(**{"cbe.reject_correction": "ratio"}).eval()
    images = DATA.transform.normalize(DATA.test_inputs[:3])
    with torch.no_grad():
        pairs = zip(plain.expert_logits(images), moved.expert_logits(images), strict=True)
    for (a, b), ratio in zip(pairs, (4, 2, 1), strict=True):
        torch.testing.assert_close(b[:, :-1], a[:, :-1])
        torch.testing.assert_close(b[:, -1], a[:, -1] + torch.tensor(float(ratio)).log())


def test_outlier_exposure_is_the_reference():
    case = load_case("derived", "cbe_outlier_exposure_C10_2")
    z = case.leaf("logits")
    loss = OutlierExposureLoss(case.params["lam"])(z, case["target"], case["ood"])
    torch.testing.assert_close(loss, case["loss"])
    loss.backward()
    torch.testing.assert_close(z.grad, case["grad"])
    nobody = torch.zeros(16, dtype=torch.bool)
    plain = OutlierExposureLoss()(z.detach(), case["target"] % 2, nobody)
    expected = torch.nn.functional.cross_entropy(z.detach(), case["target"] % 2)
    torch.testing.assert_close(plain, expected)


def test_outlier_exposure_names_wrong_arguments():
    loss, z = OutlierExposureLoss(), torch.zeros(2, 3)
    with pytest.raises(TypeError, match=r"`outlier` to be torch.bool"):
        loss(z, torch.zeros(2).long(), torch.zeros(2))
    with pytest.raises(ValueError, match=r"`target` to be \[N\] = \[2\]"):
        loss(z, torch.zeros(3).long(), torch.zeros(2).bool())
    with pytest.raises(ValueError, match="`factor` >= 0"):
        OutlierExposureLoss(-1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data.holdout": 0.0, "data.holdout_min": 0}, "`data.holdout`: expected above 0"),
        ({"selection": "best_test"}, "`selection`: expected last with cbe"),
        ({"cbe.learnable": [0]}, "`cbe.learnable`: expected a list of numbers of blocks"),
        ({"cbe.open_ratio": []}, "`cbe.open_ratio`: expected a list"),
        ({"cbe.reject_correction": "double"}, "`cbe.reject_correction`: expected one of half"),
    ],
)
def test_what_cannot_be_run_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        resolve(TINY, {**KEYS, **keys})


def test_a_correction_is_a_word_or_a_number():
    assert parse_assignment("cbe.reject_correction=ratio") == ("cbe.reject_correction", "ratio")
    assert parse_assignment("cbe.reject_correction=2.5") == ("cbe.reject_correction", 2.5)
    with pytest.raises(ConfigError, match="expected one of half"):
        parse_assignment("cbe.reject_correction=double")


def test_images_held_out_of_every_class():
    smaller, _, labels = DATA.holdout(fraction=0.1, at_least=2)
    taken = torch.bincount(labels, minlength=6)
    counts = DATA.class_counts
    assert taken.tolist() == [max(int(0.1 * n), 2) for n in counts.tolist()]
    assert torch.equal(smaller.class_counts + taken, counts)
    with pytest.raises(ValueError, match="`at_least` to be >= 0"):
        DATA.holdout(per_class=1, at_least=1)
