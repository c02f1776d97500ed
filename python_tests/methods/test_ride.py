"""RIDE: its switches, its two stages, its teacher, and what it reports."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ltkernels.methods import Batch
from ltkernels.methods.ride_report import experts_used
from ltkernels.train import Interrupted, load_method, resolve, train
from ltkernels.train.progress import SilentProgress
from tiny_data import TINY
from tiny_methods import COUNTS, DATA, batch_of, build

ROUTING = {"routing.epochs": 2, "routing.batch_size": 64, "routing.z": 4}


def run(out, **keys):
    config = resolve(TINY, {"method": "ride", "epochs": 2, "lr": 0.05, **keys})
    return train(config, out, dataset=DATA, progress=SilentProgress(), resume=out.exists())


def loss_of(method, epoch=0):
    stage = method.stages()[0]
    method.on_stage_start(stage)
    method.on_epoch_start(stage, epoch)
    batch = batch_of(method)
    outputs = method(batch)
    return method.loss(outputs, batch), outputs["experts"], batch.labels


# -- the first stage's switches: each is one config line of the paper's ablation


@pytest.mark.parametrize("collaborative", [False, True])
@pytest.mark.parametrize("individual", ["ce", "balanced_softmax"])
def test_other_individual_losses(individual, collaborative):
    method = build(
        "ride",
        **{
            "ride.individual": individual,
            "ride.collaborative": collaborative,
            "ride.diversity": -0.3,
            "loss.deferred": 1.0,
        },
    )
    loss, experts, y = loss_of(method)
    bias = COUNTS.float().log() if individual == "balanced_softmax" else 0
    mean = torch.stack(experts).mean(0)
    judged = [mean] * len(experts) if collaborative else experts
    q = mean.detach().softmax(1)
    expected = sum(F.cross_entropy(z + bias, y) for z in judged)
    expected -= 0.3 * sum(F.kl_div(z.log_softmax(1), q, reduction="batchmean") for z in experts)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_diversity_is_rewarded_and_can_be_left_out():
    with_it, experts, _ = loss_of(build("ride"))
    without, same, _ = loss_of(build("ride", **{"ride.diversity": 0.0}))
    for a, b in zip(experts, same, strict=True):
        assert torch.equal(a, b)
    assert with_it < without


def test_pairwise_is_another_loss():
    assert loss_of(build("ride"))[0] != loss_of(build("ride", **{"ride.pairwise": True}))[0]


@pytest.mark.parametrize(
    "switch",
    [
        {"ride.collaborative": True},
        {"ride.diversity": -0.2},
        {"ride.temperature": 2.0},
        {"ride.gamma": 0.5},
        {"ride.distill_factor": 2.0},
        {"ride.distill_temperature": 3.0},
        {"loss.max_margin": 0.2},
        {"loss.beta": 0.9},
        {"loss.deferred": 1.0},
    ],
    ids=lambda switch: next(iter(switch)),
)
def test_every_key_of_the_loss_is_read(switch):
    keys = {"loss.deferred": 0.0, "ride.distill": True}
    loss, experts, _ = loss_of(build("ride", **keys))
    other, same, _ = loss_of(build("ride", **{**keys, **switch}))
    assert all(torch.equal(a, b) for a, b in zip(experts, same, strict=True))
    assert abs(other - loss) > 1e-4 * abs(loss)


def test_paper_takes_the_mean_over_experts():
    official = build("ride", **{"ride.diversity": 0.0})
    paper = build("ride", **{"ride.diversity": 0.0, "ride.preset": "paper"})
    torch.testing.assert_close(loss_of(official)[0], 3 * loss_of(paper)[0])


def test_experts_are_as_many_as_asked_for():
    _, experts, _ = loss_of(build("ride", experts=2))
    assert len(experts) == 2


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("ride", {}),
        ("ride", {"ride.pairwise": True, "loss.deferred": 0.0}),  # weights and temperatures
        ("ride", {"ride.distill": True}),
        ("ride_bkd", {}),
    ],
)
def test_a_step_compiles_in_one_graph_with_the_same_gradients(name, keys):
    method = build(name, **keys)
    stage = method.stages()[0]
    method.on_stage_start(stage)
    method.on_epoch_start(stage, 0)
    method.eval()  # so that both calls see the same batch norm
    batch = batch_of(method)

    def loss_of_images(images):
        same = Batch(images, batch.labels, batch.indices)
        return method.loss(method(same), same)

    found = []
    for step in (
        loss_of_images,
        torch.compile(loss_of_images, fullgraph=True, backend="aot_eager"),
    ):
        method.zero_grad()
        loss = step(batch.inputs)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in method.model.parameters())])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


# -- two stages


def test_each_stage_trains_its_own_part():
    method = build("ride", **ROUTING)
    experts, routers = method.stages()
    assert (experts.name, routers.name) == ("experts", "routers")
    network = dict(method.network.named_parameters())
    for stage in (experts, routers):
        method.on_stage_start(stage)
        trained = {name for name, p in method.model.named_parameters() if p.requires_grad}
        assert trained == {
            name
            for name, _ in method.model.named_parameters()
            if name.startswith("network.") == (stage is experts)
        }
    assert network


def test_routers_leave_the_experts_as_they_are(tmp_path):
    run(tmp_path / "stage1")
    before = load_method(tmp_path / "stage1", DATA, torch.device("cpu")).network.state_dict()
    result = run(tmp_path / "routed", start=str(tmp_path / "stage1"), **ROUTING)
    after = load_method(tmp_path / "routed", DATA, torch.device("cpu")).network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert result["start"]["run"] == str(tmp_path / "stage1")


def test_routers_see_every_class_equally_often():
    method = build("ride", **ROUTING)
    order = method.order(method.stages()[1], 0)
    counts = DATA.train_labels[order].bincount()
    assert len(order) == len(DATA.train_labels)
    assert counts.max() - counts.min() <= 1


def test_routers_learn_the_routing_loss():
    method = build("ride", **ROUTING)
    method.on_stage_start(method.stages()[1])
    method.train()
    assert not method.network.training
    batch = batch_of(method)
    outputs = method(batch)
    loss = method.loss(outputs, batch)
    together = torch.stack(outputs["experts"]).cumsum(0).argmax(2) == batch.labels
    needs = torch.stack([~together[i] & together[i + 1 :].any(0) for i in range(2)])
    weight = torch.tensor(100.0)
    expected = F.binary_cross_entropy_with_logits(
        outputs["gates"].t(), needs.float(), pos_weight=weight
    )
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in method.network.parameters())
    assert all(p.grad is not None for p in method.model.hidden.parameters())


def test_a_run_with_routers_reports_what_routing_saves(tmp_path):
    result = run(tmp_path / "run", **ROUTING)
    routing = result["routing"]
    assert result["macs"] == routing["macs"] <= routing["macs_of_all"]
    assert result["accuracy"] == pytest.approx(routing["accuracy"])
    assert len(routing["shares"]["overall"]) == 3
    assert sum(routing["shares"]["overall"]) == pytest.approx(1)
    costs = [row["macs"] for row in routing["curve"]]
    assert costs == sorted(costs, reverse=True)
    assert routing["curve"][0]["accuracy"] == result["experts"]["first"][-1]
    assert routing["curve"][-1]["accuracy"] == result["experts"]["first"][0]
    assert routing["seconds"] > 0
    for name in ("experts_used", "routing_cost", "reliability"):
        assert (tmp_path / "run" / "plots" / f"{name}.png").stat().st_size > 1000
    loaded = load_method(tmp_path / "run", DATA, torch.device("cpu"))
    images = DATA.transform.normalize(DATA.test_inputs[:20])
    again = loaded.predict(images)
    torch.testing.assert_close(again, loaded.model(images, loaded._threshold).logits)


def test_interrupted_between_the_stages_it_ends_in_the_same_numbers(tmp_path):
    straight = run(tmp_path / "straight", **ROUTING)

    class Stop(SilentProgress):
        def epoch(self, row, epochs):
            if row["stage"] == "routers" and row["epoch"] == 1:
                raise KeyboardInterrupt

    config = resolve(TINY, {"method": "ride", "epochs": 2, "lr": 0.05, **ROUTING})
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        train(config, tmp_path / "stopped", dataset=DATA, progress=Stop())
    resumed = run(tmp_path / "stopped", **ROUTING)
    assert resumed["accuracy"] == straight["accuracy"]
    assert resumed["routing"]["shares"] == straight["routing"]["shares"]


def test_gates_to_numbers_of_experts():
    gates = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]])
    assert experts_used(gates, 0.5).tolist() == [3, 2, 1, 1]
    assert experts_used(gates, 0.0).tolist() == [3, 3, 3, 3]
    assert experts_used(gates, 1.0).tolist() == [1, 1, 1, 1]
    assert experts_used(gates, 0.9).tolist() == [1, 1, 1, 1]
    assert experts_used(gates[:0], 0.5).tolist() == [1, 1, 1, 1]


# -- distillation


def test_a_teacher_of_more_experts_is_trained_first(tmp_path):
    result = run(tmp_path / "run", **{"ride.distill": True, "ride.teacher_experts": 4})
    assert result["teacher"]["method"] == "ride"
    teacher = load_method(tmp_path / "run" / "teacher", DATA, torch.device("cpu"))
    assert teacher.network.num_experts == 4


@pytest.mark.parametrize("preset", ["official", "paper"])
def test_distillation_adds_the_teachers_term(preset):
    keys = {"ride.distill": True, "ride.preset": preset, "ride.pairwise": False}
    method = build("ride", **keys)
    plain = build("ride", **{**keys, "ride.distill": False})
    batch = batch_of(method)
    outputs = method(batch)
    total = method.loss(outputs, batch)
    alone = plain.loss({"experts": outputs["experts"]}, batch)
    q = (outputs["teacher"] / 1.5).softmax(1)

    def kd(z):
        return 1.5**2 * F.kl_div((z / 1.5).log_softmax(1), q, reduction="batchmean")

    experts = outputs["experts"]
    if preset == "official":
        expected = 3 * (alone + kd(torch.stack(experts).mean(0)))
    else:
        expected = alone + sum(map(kd, experts)) / 3
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)


def test_mixed_batches_reach_the_criterion():
    method = build("ride", mixup_alpha=0.4)
    batch = batch_of(method)
    assert isinstance(batch, Batch)
    assert batch.labels_b is not None
    assert method.loss(method(batch), batch).isfinite()
