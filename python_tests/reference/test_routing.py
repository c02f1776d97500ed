"""The definitions of RIDE's router: the official vectors, torch.topk, autograd, the edges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as torch_f

from golden_vectors import Case, load_case
from ltkernels import functional, reference
from ltkernels.reference import routing_loss, routing_target, topz_gate

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
INF = float("inf")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def router(n: int = 3, c: int = 6, d: int = 5, h: int = 4, z: int = 3) -> dict[str, Any]:
    return {
        "logits": draw(n, c),
        "feature": draw(n, d, seed=1),
        "w1": draw(h, d, seed=2),
        "b1": draw(h, seed=3),
        "w2": draw(1, z + h, seed=4),
        "b2": draw(1, seed=5),
        "z": z,
    }


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.sum(), inputs)


# --- official vectors -----------------------------------------------------------------------------


@pytest.fixture
def case() -> Case:
    return load_case("ride", "ea_cifar_B8_C10_n2_top5_pos20_share_f64")


def gate_of(case: Case, weights: dict[str, Tensor]) -> Tensor:
    """The first router of the stored model, on its first expert."""
    return topz_gate(
        case["expert_logits"][0],
        case["expert_feature_maps"][0].mean(dim=(2, 3)),
        weights["W1"][0],
        weights["b1"][0],
        weights["W2"][0],
        weights["b2"][0],
        z=case.params["top_choices_num"],
    )


def test_official_router(case: Case) -> None:
    weights = {name: case.leaf(name) for name in ("W1", "b1", "W2", "b2")}
    gate = gate_of(case, weights)
    torch.testing.assert_close(gate.unsqueeze(1), case["pred_logits"], **EXACT)
    needs_help = routing_target(case["expert_logits"], case["target"])
    right = case["cumulative_correct"].bool()
    assert torch.equal(needs_help[0], ~right[:, 0] & right[:, 1])
    loss = routing_loss(gate, needs_help[0], case.params["pos_weight"])
    torch.testing.assert_close(loss, case["train_loss"][0], **EXACT)
    for name, grad in zip(weights, gradients(loss, *weights.values()), strict=True):
        torch.testing.assert_close(grad, case[f"grad_{name}"], **EXACT)


def test_official_routing(case: Case) -> None:
    """At test time a sample goes on where sigmoid(gate) > 0.5; its logits are those it has met."""
    gate = gate_of(case, {name: case[name] for name in ("W1", "b1", "W2", "b2")})
    goes_on = (torch.sigmoid(gate) > 0.5).unsqueeze(1)
    experts = case["expert_logits"]
    output = torch.where(goes_on, experts.mean(dim=0), experts[0])
    torch.testing.assert_close(output, case["test_output"], **EXACT)
    assert torch.equal(1 + goes_on.long(), case["test_num_experts"].long())


# --- the gate -------------------------------------------------------------------------------------


def test_gate_derivatives() -> None:
    call = router()
    z = call.pop("z")
    inputs = [x.requires_grad_() for x in call.values()]

    def gate(*args: Tensor) -> Tensor:
        return topz_gate(*args, z=z)

    assert gradcheck(gate, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(gate, inputs)


few_examples = settings(max_examples=40, deadline=None)


@few_examples
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.data())
def test_gate_is_its_formula(n: int, c: int, h: int, data: Any) -> None:
    z = data.draw(st.integers(1, c))
    call = router(n, c, 5, h, z)
    top = call["logits"].topk(z, dim=1).values
    unit = torch_f.normalize(call["feature"], dim=1)
    hidden = (unit @ call["w1"].t() + call["b1"]).relu()
    expected = torch.cat([top, hidden], dim=1) @ call["w2"][0] + call["b2"]
    torch.testing.assert_close(topz_gate(**call), expected)
    for scale in (1e-3, 1e3):  # the feature's length does not matter
        scaled = topz_gate(**{**call, "feature": scale * call["feature"]})
        torch.testing.assert_close(scaled, expected)
    order = torch.randperm(c, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(topz_gate(**{**call, "logits": call["logits"][:, order]}), expected)


def test_of_equal_logits_the_lowest_class_comes_first() -> None:
    call = router(z=4)
    call["logits"] = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0, 1.0]] * 3).double().requires_grad_()
    indices = torch.tensor([[1, 2, 4, 0]] * 3)
    grad = gradients(topz_gate(**call), call["logits"])[0]
    expected = torch.zeros(3, 6).double().scatter(1, indices, call["w2"][:, :4].expand(3, 4))
    torch.testing.assert_close(grad, expected)


def test_gate_of_infinite_logits() -> None:
    call = router(n=4, z=4)
    call["logits"][0, 2:] = -INF  # two of the four largest are -inf
    call["logits"][1] = -INF
    call["logits"][2, 0] = -INF  # not among the four
    names = ("logits", "feature", "w1", "b1", "w2", "b2")
    leaves = {name: call[name].requires_grad_() for name in names}
    gate = topz_gate(**call)
    assert gate[[0, 2, 3]].isfinite().all()
    assert gate[1].isnan()
    # Row 0 is the gate of its two finite logits.
    w2 = torch.cat([call["w2"][:, :2], call["w2"][:, 4:]], dim=1)
    two = {**call, "logits": call["logits"][:1, :2], "feature": call["feature"][:1]}
    torch.testing.assert_close(gate[:1], topz_gate(**{**two, "w2": w2, "z": 2}))
    kept = torch.tensor([True, False, True, True])
    grads = dict(zip(leaves, gradients(gate[kept], *leaves.values()), strict=True))
    assert all(grads[name].isfinite().all() for name in ("w1", "b1", "b2", "feature"))
    assert grads["logits"].isfinite().all()
    assert (grads["logits"][0, 2:] == 0).all()


def test_gate_of_zero_feature_and_huge_values() -> None:
    call = router()
    call["feature"][0] = 0
    call["feature"][1] *= 1e12
    call["logits"] *= 1e5
    leaves = [x.requires_grad_() for x in call.values() if isinstance(x, Tensor)]
    gate = topz_gate(**call)
    assert gate.isfinite().all()
    assert all(grad.isfinite().all() for grad in gradients(gate, *leaves))


def test_gate_of_zero_rows_and_one_class() -> None:
    call = router(n=0)
    leaves = [call[name].requires_grad_() for name in ("logits", "w1", "w2")]
    assert topz_gate(**call).shape == (0,)
    assert all((grad == 0).all() for grad in gradients(topz_gate(**call), *leaves))
    assert topz_gate(**router(c=1, z=1)).shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gate_dtypes(dtype: torch.dtype) -> None:
    call = router()
    call["logits"], call["feature"] = call["logits"].to(dtype), call["feature"].to(dtype)
    w1 = call["w1"] = call["w1"].float().requires_grad_()
    gate = topz_gate(**call)
    assert gate.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradients(gate, w1)[0].dtype == torch.float32


def test_gate_arithmetic_is_float32_under_autocast() -> None:
    call = {k: v.float() if isinstance(v, Tensor) else v for k, v in router().items()}
    expected = topz_gate(**call)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(topz_gate(**call), expected, rtol=0, atol=0)


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_is_torch_bce(reduction: Any) -> None:
    gate, help_ = draw(2, 5), draw(2, 5, seed=1) > 0
    expected = torch_f.binary_cross_entropy_with_logits(
        gate,
        help_.double(),
        pos_weight=torch.tensor(100.0, dtype=torch.float64),
        reduction=reduction,
    )
    torch.testing.assert_close(routing_loss(gate, help_, reduction=reduction), expected)
    torch.testing.assert_close(routing_loss(gate, help_.double(), reduction=reduction), expected)


def test_loss_derivatives() -> None:
    share = torch.tensor([0.0, 1.0, 0.3, 1.0], dtype=torch.float64)

    def loss(gate: Tensor) -> Tensor:
        return routing_loss(gate, share, 7.0, "none")

    gate = draw(4).requires_grad_()
    assert gradcheck(loss, gate, check_forward_ad=True)
    assert gradgradcheck(loss, gate)


def test_loss_edges() -> None:
    gate = torch.tensor([INF, -INF, INF, -INF, 1e5, -1e5], requires_grad=True)
    needs_help = torch.tensor([True, True, False, False, False, True])
    loss = routing_loss(gate, needs_help, 3.0, "none")
    expected = torch.tensor([0.0, INF, INF, 0.0, 1e5, 3e5])
    torch.testing.assert_close(loss, expected)
    assert gradients(loss, gate)[0].isfinite().all()
    assert routing_loss(gate[:0], needs_help[:0], reduction="sum") == 0
    assert routing_loss(gate[:0], needs_help[:0]).isnan()
    assert routing_loss(gate.half(), needs_help).dtype == torch.float32


# --- the labels -----------------------------------------------------------------------------------


@few_examples
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 10_000))
def test_target_is_its_formula(k: int, n: int, c: int, seed: int) -> None:
    experts, target = draw(k, n, c, seed=seed), torch.arange(n) % c
    right = [experts[: i + 1].mean(dim=0).argmax(dim=1) == target for i in range(k)]
    expected = [
        [not right[i][j] and any(right[later][j] for later in range(i + 1, k)) for j in range(n)]
        for i in range(k - 1)
    ]
    result = routing_target(list(experts.requires_grad_()), target)
    assert result.dtype == torch.bool
    assert result.shape == (k - 1, n)
    assert result.tolist() == expected


def test_target_of_infinite_logits() -> None:
    experts = torch.full((2, 1, 3), -INF)
    experts[0, 0, 1] = experts[1, 0, 2] = experts[0, 0, 2] = 1.0
    assert routing_target(experts, torch.tensor([2])).tolist() == [[True]]


# --- transforms -----------------------------------------------------------------------------------


def test_vmap_and_func_grad() -> None:
    call = router()
    logits, help_ = draw(2, 3, 6), torch.tensor([[True, False, True], [False, False, True]])

    def loss(w1: Tensor, logits: Tensor, help_: Tensor) -> Tensor:
        return routing_loss(topz_gate(**{**call, "logits": logits, "w1": w1}), help_)

    grads = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(call["w1"], logits, help_)
    w1 = call["w1"].requires_grad_()
    for grad, *args in zip(grads, logits, help_, strict=True):
        torch.testing.assert_close(grad, gradients(loss(w1, *args), w1)[0])
    experts, target = draw(2, 3, 4, 5), torch.arange(4) % 5
    expected = torch.stack([routing_target(x, target) for x in experts])
    assert torch.equal(torch.vmap(lambda x: routing_target(x, target))(experts), expected)


def test_traces_in_one_graph() -> None:
    call = router()
    experts, target = draw(2, 3, 6), torch.tensor([0, 3, 2])

    def loss(w1: Tensor, experts: Tensor) -> Tensor:
        gate = topz_gate(**{**call, "logits": experts[0], "w1": w1})
        return routing_loss(gate, routing_target(experts, target)[0])

    w1 = call["w1"].requires_grad_()
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")(w1, experts)
    torch.testing.assert_close(traced, loss(w1, experts))
    torch.testing.assert_close(gradients(traced, w1)[0], gradients(loss(w1, experts), w1)[0])


def test_functional_is_the_same_op() -> None:
    call, help_ = router(), torch.tensor([True, False, True])
    gate = topz_gate(**call)
    torch.testing.assert_close(functional.topz_gate(**call), gate)
    torch.testing.assert_close(
        functional.routing_loss(gate, help_, 3.0, "none"), routing_loss(gate, help_, 3.0, "none")
    )
    experts, target = draw(2, 3, 6), torch.tensor([0, 3, 2])
    assert torch.equal(functional.routing_target(experts, target), routing_target(experts, target))
    assert functional.topz_gate.__doc__ == reference.topz_gate.__doc__


# --- errors ---------------------------------------------------------------------------------------

BAD_GATE: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, r"`topz_gate`: expected `z` in 1\.\.C = 1\.\.6, got 7", {"z": 7}),
    (ValueError, "`z` in 1", {"z": 0}),
    (TypeError, "`z` to be an int, got float", {"z": 3.0}),
    (ValueError, r"`logits` to be \[N, C\]", {"logits": draw(3)}),
    (ValueError, r"`feature` to be \[N, D\] with at least one channel", {"feature": draw(3)}),
    (ValueError, r"`feature` to be \[N, D\] = \[3, 5\], got \[2, 5\]", {"feature": draw(2, 5)}),
    (TypeError, "`feature` to be float16", {"feature": draw(3, 5).long()}),
    (ValueError, r"`w1` to be \[h, D\] = \[4, 5\], got \[4, 6\]", {"w1": draw(4, 6)}),
    (ValueError, r"`w1` to be \[h, D\]", {"w1": draw(4)}),
    (ValueError, r"`b1` to be \[h\] = \[4\], got \[3\]", {"b1": draw(3)}),
    (ValueError, r"`w2` to be \[1, z \+ h\] = \[1, 7\], got \[7\]", {"w2": draw(7)}),
    (ValueError, r"`b2` to be \[1\] = \[1\]", {"b2": draw(2)}),
    (TypeError, "`w2` to be a floating tensor", {"w2": draw(1, 7).long()}),
]
G, H = torch.zeros(3), torch.tensor([True, False, True])
BAD_LOSS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, r"`needs_help` to have the shape of `gate`, \[3\]", {"needs_help": H[:2]}),
    (TypeError, "`needs_help` to be bool or floating", {"needs_help": H.long()}),
    (TypeError, "`routing_loss`: expected `gate` to be float16", {"gate": H}),
    (ValueError, "`pos_weight` to be finite and > 0", {"pos_weight": 0.0}),
    (ValueError, "`reduction`", {"reduction": "batchmean"}),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD_GATE)
def test_gate_errors(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        topz_gate(**{**router(), **change})


@pytest.mark.parametrize(("error", "message", "change"), BAD_LOSS)
def test_loss_errors(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        routing_loss(**{"gate": G, "needs_help": H, **change})


def test_target_errors() -> None:
    with pytest.raises(IndexError, match="`routing_target`: expected `target`"):
        routing_target(draw(2, 3, 4), torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match="`expert_logits`"):
        routing_target(draw(3, 4), torch.tensor([0, 1, 2]))
