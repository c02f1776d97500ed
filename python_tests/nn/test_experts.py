"""Multi-expert networks: the papers' costs, routing, checkpoints of the released code."""

from __future__ import annotations

import pytest
import torch

from ltkernels.nn import (
    CifarExperts,
    RoutedExperts,
    build_model,
    count_macs,
    count_parameters,
    load_official_state,
)


def small(experts=3, classes=7, **options):
    torch.manual_seed(0)
    return build_model("resnet8", classes, 1, width=4, experts=experts, **options)


def routed(experts=3, **options):
    return RoutedExperts(small(experts), z=5, **options).eval()


IMAGES = torch.randn(12, 1, 16, 16, generator=torch.Generator().manual_seed(1))


# -- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experts", "macs", "parameters"),
    [(2, 74.9, 530_512), (3, 100.4, 783_856), (4, 125.8, 1_037_200), (6, 176.7, 1_543_888)],
)
def test_resnet32_costs_what_the_official_model_costs(experts, macs, parameters):
    model = build_model("resnet32", 100, head="cosine", experts=experts)
    assert round(count_macs(model, (3, 32, 32)) / 1e6, 1) == macs
    assert count_parameters(model) == parameters


@pytest.mark.parametrize(("experts", "macs"), [(2, 4.451), (3, 5.770), (4, 7.089)])
def test_resnet50_costs_what_the_official_model_costs(experts, macs):
    with torch.device("meta"):
        model = build_model("resnet50", 1000, head="cosine", experts=experts)
    assert round(count_macs(model, (3, 224, 224)) / 1e9, 3) == macs


def test_router_costs_what_the_paper_says():
    model = RoutedExperts(build_model("resnet32", 100, head="cosine", experts=2), z=30)
    all_experts = count_macs(model.network, (3, 32, 32))
    one, two = model.macs((3, 32, 32))
    assert two - all_experts == 48 * 16 + (30 + 16) == 814
    stem_and_one = (74.9e6 - 25.44e6, 74.9e6 - 25.43e6)
    assert stem_and_one[0] < one < stem_and_one[1] + 1e5


@pytest.mark.parametrize("experts", [1, 2, 8])
def test_forward_gives_every_expert(experts):
    model = small(experts).eval()
    logits = model(IMAGES)
    assert model.num_experts == experts
    assert model.num_classes == 7
    assert [z.shape for z in logits] == [(12, 7)] * experts
    assert [f.shape for f in model.features(IMAGES)] == [(12, model.num_features)] * experts
    assert torch.equal(model.predict(IMAGES), torch.stack(logits).mean(0))
    if experts > 1:
        assert not torch.equal(logits[0], logits[1])


def test_forward_keeps_nothing_on_the_module():
    model = small().eval()
    before = set(vars(model))
    model(IMAGES)
    assert set(vars(model)) == before


def test_forward_compiles_in_one_graph():
    model = small().eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for ours, theirs in zip(compiled(IMAGES), model(IMAGES), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bad", [{"experts": 0}, {"experts": 2, "expert_width": 0.0}])
def test_bad_sizes_are_named(bad):
    with pytest.raises(ValueError, match=next(k for k in reversed(bad))):
        build_model("resnet8", 7, 1, **bad)


# -- routing ------------------------------------------------------------------------------------


def test_images_leave_where_the_gates_say():
    model = routed(shared=False)
    with torch.no_grad():
        threshold = float(model.gates_of_all(IMAGES)[0][0].median())
        model.gates[1].bias += threshold - model.gates_of_all(IMAGES)[0][1].median()
        gates, logits = model.gates_of_all(IMAGES)
        together, used = model(IMAGES, threshold)
    goes_on = (gates > threshold).long().cumprod(0)
    assert torch.equal(used, 1 + goes_on.sum(0))
    assert len(used.unique()) > 1  # a case that tells
    for n, count in enumerate(used.tolist()):
        expected = torch.stack([z[n] for z in logits[:count]]).mean(0)
        torch.testing.assert_close(together[n], expected)


def test_later_experts_compute_only_what_is_left():
    model = routed()
    seen = []
    original = model.network.expert

    def counted(k, shared):
        seen.append((k, len(shared)))
        return original(k, shared)

    model.network.expert = counted
    with torch.no_grad():
        used = model(IMAGES, float(model.gates_of_all(IMAGES)[0][0].median())).experts
    calls = seen[3:]  # after gates_of_all's own
    assert calls == [(k, int((used > k).sum())) for k in range(3) if (used > k).any()]


@pytest.mark.parametrize(("threshold", "experts"), [(-1e9, 3), (1e9, 1)])
def test_extreme_thresholds(threshold, experts):
    model = routed()
    with torch.no_grad():
        logits, used = model(IMAGES, threshold)
        expected = torch.stack(model.network(IMAGES)[:experts]).mean(0)
    assert (used == experts).all()
    torch.testing.assert_close(logits, expected)


def test_no_images():
    logits, used = routed()(IMAGES[:0])
    assert logits.shape == (0, 7)
    assert used.shape == (0,)


def test_own_second_layers():
    assert len(routed(shared=False).gates) == 2
    assert len(routed().gates) == 1


def test_one_expert_needs_no_router():
    with pytest.raises(ValueError, match="at least 2 experts"):
        RoutedExperts(small(1))


def test_gates_train_only_the_routers():
    model = routed()
    model.network.requires_grad_(False)
    model.gates_of_all(IMAGES)[0].sum().backward()
    assert all(p.grad is not None for p in (*model.hidden.parameters(), *model.gates.parameters()))
    assert all(p.grad is None for p in model.network.parameters())


# -- the released code's checkpoints ------------------------------------------------------------

OFFICIAL_CIFAR = {  # parameter families of ride_resnet_cifar.ResNet_s with 3/4 wide experts
    "conv1.weight": (16, 3, 3, 3),
    "layer1.4.conv2.weight": (16, 16, 3, 3),
    "layer2s.1.0.conv1.weight": (24, 16, 3, 3),
    "layer2s.2.4.bn2.running_var": (24,),
    "layer3s.0.0.conv1.weight": (48, 24, 3, 3),
    "linears.2.weight": (48, 100),
}


def published(model, *, wrapper="module.backbone."):
    """A state dict with the released code's names and shapes, and other values."""
    renamed = {}
    for name, value in model.state_dict().items():
        name = name.removeprefix("network.")
        name = name.replace("hidden.", "expert_help_pred_hidden_fcs.")
        name = name.replace("gates.0.", "expert_help_pred_fc.")
        renamed[wrapper + name] = torch.randn(value.shape) if value.is_floating_point() else value
    return renamed


def test_names_and_shapes_are_the_released_ones():
    state = build_model("resnet32", 100, head="cosine", experts=3).state_dict()
    assert {name: tuple(state[name].shape) for name in OFFICIAL_CIFAR} == OFFICIAL_CIFAR


@pytest.mark.parametrize("wrapper", ["", "backbone.", "module.backbone."])
def test_a_published_checkpoint_loads(wrapper):
    model = build_model("resnet8", 10, experts=2, head="cosine")
    state = published(model, wrapper=wrapper)
    load_official_state(model, {"state_dict": state, "epoch": 200})
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[wrapper + name])


def test_a_published_checkpoint_with_routers_loads():
    model = RoutedExperts(build_model("resnet8", 10, experts=3, head="cosine"), z=5)
    state = published(model)
    load_official_state(model, state)
    own = model.state_dict()
    assert torch.equal(
        own["hidden.1.weight"], state["module.backbone.expert_help_pred_hidden_fcs.1.weight"]
    )
    assert torch.equal(own["gates.0.bias"], state["module.backbone.expert_help_pred_fc.bias"])
    network = build_model("resnet8", 10, experts=3, head="cosine")
    load_official_state(network, state)  # the experts alone
    assert torch.equal(network.linears[2].weight, model.network.linears[2].weight)


def test_what_does_not_fit_is_named():
    model = build_model("resnet8", 10, experts=2)
    state = build_model("resnet8", 12, experts=3).state_dict()
    with pytest.raises(ValueError, match=r"linears\.0\.weight is missing.* fits nothing"):
        load_official_state(
            model, {k: v for k, v in state.items() if "linears" not in k or ".2" in k}
        )
    with pytest.raises(ValueError, match=r"linears\.0\.weight is \[12, 48\]"):
        load_official_state(build_model("resnet8", 10, experts=3), state)


def test_official_widths_can_be_asked_for():
    full = CifarExperts((1, 1, 1), 10, experts=2, expert_width=1.0)
    assert full.num_features == 64
