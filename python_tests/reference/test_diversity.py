"""The definitions of ride_loss and diversity_loss: official vectors, autograd, their formulas."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as torch_f

from golden_vectors import cases, load_case
from ltkernels import functional, reference
from ltkernels.reference import adjusted_cross_entropy, diversity_loss, kd_loss, ride_loss

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
INF = float("inf")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.sum(), inputs)


# --- official vectors -----------------------------------------------------------------------------


@pytest.mark.parametrize("case_id", cases("ride", "RIDELoss.forward"))
def test_official_ride(case_id: str) -> None:
    case = load_case("ride", case_id)
    experts = case.leaf("expert_logits")
    reweighted = case.params["epoch_passed_to_hook"] > case.params["reweight_epoch"]
    loss = ride_loss(
        experts,
        case["target"],
        margin=30 * case["m_list"],
        class_weight=case["per_cls_weights_enabled"] if reweighted else None,
        temperature=case["diversity_temperature_weights"] if reweighted else 1.0,
        diversity_factor=case.params["additional_diversity_factor"],
    )
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    torch.testing.assert_close(gradients(loss, experts)[0], case["grad_expert_logits"], **EXACT)


def test_total_of_the_paper() -> None:
    case = load_case("derived", "ride_total_eq4_B4_C10_n2_scalar")
    experts, temperature = case.leaf("expert_logits"), case["T"]
    factor = case.params["lam"]
    diversity = diversity_loss(experts, temperature, pairwise=True, t2=False)
    torch.testing.assert_close(-factor * diversity, case["diversity"], **EXACT)
    loss = ride_loss(experts, case["target"], diversity_factor=0, expert_reduction="mean")
    loss = loss - factor * diversity / 2
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    torch.testing.assert_close(gradients(loss, experts)[0], case["grad"], **EXACT)


# --- derivatives ----------------------------------------------------------------------------------

TEMPERATURES = {
    "number": 2.0,
    "scalar": torch.tensor([1.7], dtype=torch.float64),
    "class": torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64),
    "sample": torch.tensor([[0.7], [1.3], [2.5]], dtype=torch.float64),
}


@pytest.mark.parametrize("kind", TEMPERATURES)
@pytest.mark.parametrize("pairwise", [False, True])
def test_diversity_derivatives(kind: str, pairwise: bool) -> None:
    given_temperature = TEMPERATURES[kind]
    variable = isinstance(given_temperature, Tensor)
    inputs = [draw(3, 4, seed=seed).requires_grad_() for seed in range(3)]
    if isinstance(given_temperature, Tensor):
        inputs.append(given_temperature.clone().requires_grad_())
    # The mean is a constant for the loss, but not for a finite difference.
    mean = torch.stack([x.detach() for x in inputs[:3]]).mean(dim=0)

    def loss(*args: Tensor) -> Tensor:
        temperature = args[3] if variable else given_temperature
        if pairwise:
            return diversity_loss(args[:3], temperature, pairwise=True, reduction="none")
        terms = [kd_loss(z, mean, temperature, reduction="none") for z in args[:3]]
        return torch.stack(terms).sum(dim=0)

    assert gradcheck(loss, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(loss, inputs)
    value = diversity_loss(
        inputs[:3],
        inputs[3] if variable else given_temperature,
        pairwise=pairwise,
        reduction="none",
    )
    torch.testing.assert_close(value, loss(*inputs))
    for ours, expected in zip(
        gradients(value, *inputs), gradients(loss(*inputs), *inputs), strict=True
    ):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("collaborative", [False, True])
def test_ride_derivatives(collaborative: bool) -> None:
    target = torch.tensor([0, 3, 1])
    weight = torch.tensor([0.5, 0.1, 1.5, 2.0], dtype=torch.float64)

    def loss(experts: Tensor, margin: Tensor) -> Tensor:
        return ride_loss(
            experts,
            target,
            margin=margin,
            class_weight=weight,
            temperature=weight + 1,
            collaborative=collaborative,
            pairwise=True,
        )

    inputs = (draw(3, 3, 4).requires_grad_(), draw(4, seed=1).requires_grad_())
    assert gradcheck(loss, inputs, check_forward_ad=True)
    assert gradgradcheck(loss, inputs)


# --- what the formula says ------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7), st.integers(0, 10_000))
few_examples = settings(max_examples=40, deadline=None)


@few_examples
@given(sizes, st.booleans(), st.floats(0.05, 100))
def test_diversity_is_not_negative_and_zero_at_equality(
    size: tuple[int, int, int, int], pairwise: bool, temperature: float
) -> None:
    k, n, c, seed = size
    experts = draw(k, n, c, seed=seed)
    loss = diversity_loss(experts, temperature, pairwise=pairwise, t2=False, reduction="none")
    assert loss.shape == (n,)
    assert (loss >= -1e-12).all()
    equal = diversity_loss([experts[0]] * k, temperature, pairwise=pairwise, reduction="none")
    torch.testing.assert_close(equal, torch.zeros_like(equal), atol=1e-9, rtol=0)


@few_examples
@given(sizes, st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_order_of_experts_and_classes_does_not_matter(
    size: tuple[int, int, int, int], pairwise: bool, collaborative: bool, random: Any
) -> None:
    k, n, c, seed = size
    order, classes = random.sample(range(k), k), torch.tensor(random.sample(range(c), c))
    experts, temperature = draw(k, n, c, seed=seed), draw(c, seed=seed + 1).abs() + 0.2
    margin, target = draw(c, seed=seed + 2), torch.arange(n) % c
    options: dict[str, Any] = {"pairwise": pairwise, "collaborative": collaborative}
    moved = torch.empty_like(classes).scatter(0, classes, torch.arange(c))
    torch.testing.assert_close(
        ride_loss(
            [experts[i][:, classes] for i in order],
            moved[target],
            margin=margin[classes],
            temperature=temperature[classes],
            **options,
        ),
        ride_loss(experts, target, margin=margin, temperature=temperature, **options),
    )


@few_examples
@given(sizes, st.booleans(), st.floats(-50, 50))
def test_shifting_rows_of_an_expert_changes_nothing(
    size: tuple[int, int, int, int], pairwise: bool, shift: float
) -> None:
    k, n, c, seed = size
    experts, target = draw(k, n, c, seed=seed), torch.arange(n) % c
    moved = [z + shift * (i + 1) for i, z in enumerate(experts)]
    torch.testing.assert_close(
        ride_loss(moved, target, temperature=2.0, pairwise=pairwise),
        ride_loss(experts, target, temperature=2.0, pairwise=pairwise),
    )


def test_pairwise_is_the_double_sum() -> None:
    experts = draw(4, 3, 5)
    p = torch.softmax(experts / 1.5, dim=2)
    rows = sum((p[i] * (p[i] / p[j]).log()).sum(dim=1) for i, j in permutations(range(4), 2))
    assert isinstance(rows, Tensor)
    loss = diversity_loss(experts, 1.5, pairwise=True, reduction="none")
    torch.testing.assert_close(loss, 1.5**2 * rows / 3)
    mean = diversity_loss(experts, 1.5, pairwise=True, expert_reduction="mean", t2=0.5)
    torch.testing.assert_close(mean, 0.5 * rows.mean() / 3 / 4)


@pytest.mark.parametrize("temperature", TEMPERATURES.values(), ids=TEMPERATURES.keys())
@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("expert_reduction", ["sum", "mean"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ride_is_cross_entropies_plus_diversity(
    temperature: float | Tensor, pairwise: bool, expert_reduction: Any, reduction: Any
) -> None:
    experts, target = draw(3, 3, 4), torch.tensor([0, 3, 1])
    margin, weight = draw(4, seed=1), draw(4, seed=2).abs()
    options: dict[str, Any] = {"expert_reduction": expert_reduction, "reduction": reduction}
    share = 3 if expert_reduction == "mean" else 1

    def total(**extra: Any) -> Tensor:
        return ride_loss(
            experts,
            target,
            margin=margin,
            class_weight=weight,
            temperature=temperature,
            pairwise=pairwise,
            **options,
            **extra,
        )

    def cross_entropy(logits: Tensor) -> Tensor:
        moved = logits - margin[target].unsqueeze(1) * torch_f.one_hot(target, 4)
        return torch_f.cross_entropy(moved, target, weight, reduction=reduction)

    diversity = diversity_loss(experts, temperature, pairwise=pairwise, **options)
    individual = torch.stack([cross_entropy(z) for z in experts]).sum(dim=0) / share
    together = 3 * cross_entropy(experts.mean(dim=0)) / share
    torch.testing.assert_close(total(), individual - 0.45 * diversity)
    torch.testing.assert_close(total(diversity_factor=0.3), individual + 0.3 * diversity)
    torch.testing.assert_close(total(diversity_factor=0), individual)
    torch.testing.assert_close(total(collaborative=True), together - 0.45 * diversity)
    torch.testing.assert_close(total(collaborative=True, diversity_factor=0), together)


def test_the_mean_is_a_constant() -> None:
    experts = draw(2, 3, 4).requires_grad_()
    mean = experts.detach().mean(dim=0)
    p, q = torch.softmax(experts.detach() / 2, dim=2), torch.softmax(mean / 2, dim=1)
    grad = gradients(diversity_loss(experts, 2.0, reduction="sum"), experts)[0]
    torch.testing.assert_close(grad, 2 * (p - q))


def test_collaborative_reaches_every_expert() -> None:
    experts, target = draw(2, 3, 4).requires_grad_(), torch.tensor([0, 3, 1])
    loss = ride_loss(experts, target, collaborative=True, diversity_factor=0)
    grad = gradients(loss, experts)[0]
    mean = experts.detach().mean(dim=0).requires_grad_()
    expected = gradients(torch_f.cross_entropy(mean, target), mean)[0]
    torch.testing.assert_close(grad, expected.expand(2, 3, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    experts = [draw(3, 4, seed=seed, dtype=dtype).requires_grad_() for seed in range(2)]
    weight = torch.tensor([0.5, 1.0, 1.0, 1.5], dtype=torch.float64)
    loss = ride_loss(experts, torch.tensor([0, 3, 2]), margin=weight, class_weight=weight)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(grad.dtype == dtype for grad in gradients(loss, *experts))


def test_one_tensor_or_several() -> None:
    experts, target = draw(3, 2, 4), torch.tensor([1, 2])
    expected = ride_loss(experts, target)
    for form in (
        list(experts),
        tuple(experts),
        draw(2, 3, 4, seed=9).copy_(experts.transpose(0, 1)).transpose(0, 1),
    ):
        torch.testing.assert_close(ride_loss(form, target), expected, rtol=0, atol=0)


# --- the edges ------------------------------------------------------------------------------------


def test_infinite_logits_and_the_mean() -> None:
    experts = [draw(4, 4, seed=seed) for seed in range(3)]
    for z in experts:
        z[0, 1] = -INF  # a class nobody has
    experts[0][1, 2] = -INF  # one expert 0 lacks
    experts[0][2] = -INF  # a row without a finite logit for expert 0
    leaves = [z.requires_grad_() for z in experts]
    loss = diversity_loss(leaves, 1.5, reduction="none")
    assert loss[[0, 1, 3]].isfinite().all()
    assert loss[2].isnan()
    left = torch.tensor([0, 2, 3])
    rest = diversity_loss([z[:1, left] for z in leaves], 1.5)
    torch.testing.assert_close(loss[0], rest)
    grads = gradients(loss, *leaves)
    for grad in grads:
        assert grad[[0, 1, 3]].isfinite().all()
        assert grad[2].isnan().all()
        assert (grad[0, 1] == 0).all()
    assert grads[0][1, 2] == 0
    # The mean has no class 2 in row 1, but the others' share of it is pushed down as in any KL.
    assert grads[1][1, 2] > 0


def test_experts_without_a_common_class_have_no_mean() -> None:
    experts = draw(2, 2, 4)
    experts[0, 0, :2] = experts[1, 0, 2:] = -INF
    loss = diversity_loss(experts, reduction="none")
    assert loss[0].isnan()
    assert loss[1].isfinite()


def test_infinite_logits_pairwise() -> None:
    experts = [draw(4, 4, seed=seed) for seed in range(3)]
    for z in experts:
        z[0, 1] = -INF
    experts[0][1, 2] = -INF
    experts[0][2] = -INF
    leaves = [z.requires_grad_() for z in experts]
    loss = diversity_loss(leaves, 1.5, pairwise=True, t2=False, reduction="none")
    assert loss[[0, 3]].isfinite().all()
    assert loss[1] == INF
    assert loss[2].isnan()
    grads = gradients(loss, *leaves)
    for grad in grads:
        assert grad[[0, 1, 3]].isfinite().all()
        assert grad[2].isnan().all()
        assert grad[0, 1] == 0
    assert grads[0][1, 2] == 0
    # In the infinite row the first distributions are constants: sums of (p_k - p_q) / T remain.
    p = [torch.softmax(z[1].detach() / 1.5, dim=0) for z in leaves]
    total = torch.stack(p).sum(dim=0)
    for k, grad in enumerate(grads):
        expected = (3 * p[k] - total) / 1.5 / 2
        if k == 0:
            expected[2] = 0
        torch.testing.assert_close(grad[1], expected)


def test_ride_rows_stand_alone() -> None:
    experts = draw(2, 4, 3)
    experts[0, 1] = -INF
    experts[1, 2, 0] = -INF  # the label's logit
    target = torch.tensor([0, 1, 0, 2])
    leaf = experts.clone().requires_grad_()
    loss = ride_loss(leaf, target, reduction="none")
    assert loss[[0, 3]].isfinite().all()
    assert loss[1].isnan()
    assert loss[2] == INF
    grad = gradients(loss, leaf)[0]
    assert grad[:, [0, 2, 3]].isfinite().all()
    assert grad[:, 1].isnan().all()
    assert grad[1, 2, 0] == 0
    # Without the diversity term the experts have nothing to do with each other.
    loss = ride_loss(leaf, target, diversity_factor=0, reduction="none")
    grad = gradients(loss, leaf)[0]
    assert grad[0, 1].isnan().all()
    assert grad[1, 1].isfinite().all()


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 100.0])
@pytest.mark.parametrize("size", [1e4, 1e5])
def test_huge_logits(pairwise: bool, temperature: float, size: float) -> None:
    experts = (size * draw(3, 4, 6, dtype=torch.float32)).requires_grad_()
    target = torch.tensor([0, 5, 2, 3])
    loss = ride_loss(experts, target, temperature=temperature, pairwise=pairwise)
    assert loss.isfinite()
    assert gradients(loss, experts)[0].isfinite().all()


@pytest.mark.parametrize("pairwise", [False, True])
def test_one_expert_has_no_diversity(pairwise: bool) -> None:
    logits, target = draw(3, 4), torch.tensor([0, 3, 2])
    logits[0, 1] = -INF
    leaf = logits.requires_grad_()
    loss = diversity_loss([leaf], 2.0, pairwise=pairwise, reduction="none")
    assert (loss == 0).all()
    grad = gradients(loss, leaf)[0]
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-15)
    torch.testing.assert_close(
        ride_loss([leaf], target, pairwise=pairwise), adjusted_cross_entropy(leaf, target)
    )


@pytest.mark.parametrize("pairwise", [False, True])
def test_one_class(pairwise: bool) -> None:
    experts = draw(3, 2, 1).requires_grad_()
    loss = ride_loss(experts, torch.zeros(2, dtype=torch.int64), pairwise=pairwise)
    assert loss == 0
    assert (gradients(loss, experts)[0] == 0).all()


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize(("reduction", "expected"), [("mean", float("nan")), ("sum", 0.0)])
def test_zero_rows(pairwise: bool, reduction: Any, expected: float) -> None:
    experts, target = torch.zeros(2, 0, 3, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for loss in (
        ride_loss(experts, target, pairwise=pairwise, reduction=reduction),
        diversity_loss(experts, pairwise=pairwise, reduction=reduction),
    ):
        torch.testing.assert_close(loss, torch.tensor(expected), equal_nan=True)
        assert gradients(loss, experts)[0].shape == (2, 0, 3)
    assert ride_loss(experts, target, pairwise=pairwise, reduction="none").shape == (0,)


def test_inputs_are_not_written_to() -> None:
    inputs = [draw(2, 3, 4), draw(4, seed=2).abs() + 1]
    copies = [x.clone() for x in inputs]
    ride_loss(
        inputs[0],
        torch.tensor([0, 1, 2]),
        margin=inputs[1],
        class_weight=inputs[1],
        temperature=inputs[1],
    )
    for now, before in zip(inputs, copies, strict=True):
        assert torch.equal(now, before)


# --- transforms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pairwise", [False, True])
def test_vmap_and_func_grad(pairwise: bool) -> None:
    experts, target = draw(2, 3, 3, 4), torch.tensor([[0, 1, 2], [3, 3, 0]])

    def loss(experts: Tensor, target: Tensor) -> Tensor:
        return ride_loss(experts, target, temperature=2.0, pairwise=pairwise)

    expected = torch.stack([loss(*x) for x in zip(experts, target, strict=True)])
    torch.testing.assert_close(torch.vmap(loss)(experts, target), expected)
    grads = torch.vmap(torch.func.grad(loss))(experts, target)
    leaf = experts.clone().requires_grad_()
    one_by_one = torch.stack([loss(*x) for x in zip(leaf, target, strict=True)])
    torch.testing.assert_close(grads, gradients(one_by_one, leaf)[0])


@pytest.mark.parametrize("pairwise", [False, True])
def test_traces_in_one_graph(pairwise: bool) -> None:
    def loss(experts: list[Tensor], target: Tensor) -> Tensor:
        return ride_loss(experts, target, margin=margin, temperature=2.0, pairwise=pairwise)

    margin, target = draw(4, seed=3), torch.tensor([0, 3, 2])
    experts = [draw(3, 4, seed=seed).requires_grad_() for seed in range(2)]
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")(experts, target)
    eager = loss(experts, target)
    torch.testing.assert_close(traced, eager)
    for a, b in zip(gradients(traced, *experts), gradients(eager, *experts), strict=True):
        torch.testing.assert_close(a, b)


def test_functional_is_the_same_op() -> None:
    experts, target, weight = draw(3, 3, 4), torch.tensor([0, 3, 2]), draw(4, seed=1).abs() + 1
    options: dict[str, Any] = {
        "margin": weight,
        "class_weight": weight,
        "temperature": weight,
        "diversity_factor": -0.3,
        "collaborative": True,
        "pairwise": True,
        "expert_reduction": "mean",
        "reduction": "sum",
    }
    torch.testing.assert_close(
        functional.ride_loss(experts, target, **options), ride_loss(experts, target, **options)
    )
    options = {"pairwise": True, "t2": False, "expert_reduction": "mean", "reduction": "none"}
    torch.testing.assert_close(
        functional.diversity_loss(experts, 2.0, **options), diversity_loss(experts, 2.0, **options)
    )
    assert functional.ride_loss.__doc__ == reference.ride_loss.__doc__


# --- errors ---------------------------------------------------------------------------------------

Z, Y = torch.zeros(2, 3, 4), torch.tensor([0, 1, 2])
BAD_EXPERTS: list[tuple[type[Exception], str, Any]] = [
    (ValueError, r"`expert_logits` to be \[K, N, C\] or a sequence .*, got \[3, 4\]", Z[0]),
    (ValueError, r"got \[0, 3, 4\]", Z[:0]),
    (ValueError, "got none", []),
    (TypeError, "got str", "logits"),
    (TypeError, "got generator", (z for z in Z)),
    (TypeError, r"`expert_logits\[1\]` to be a Tensor, got int", [Z[0], 3]),
    (TypeError, r"`expert_logits\[0\]` to be float16", Z.long()),
    (ValueError, r"`expert_logits\[0\]` to be \[N, C\] with at least one class", Z[:, :, :0]),
    (
        ValueError,
        r"`expert_logits\[1\]` to be \[N, C\] = \[3, 4\], got \[3, 3\]",
        [Z[0], Z[1, :, :3]],
    ),
    (TypeError, r"`expert_logits\[1\]` to be torch.float32 like", [Z[0], Z[1].double()]),
    (ValueError, r"`expert_logits\[1\]` to be on cpu", [Z[0], Z[1].to("meta")]),
]
BAD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (IndexError, r"`ride_loss`: expected `target` in 0\.\.3, got 5", {"target": Y + 3}),
    (IndexError, r"got -100", {"target": torch.tensor([0, -100, 1])}),
    (ValueError, r"`margin` to be \[C\] = \[4\]", {"margin": torch.ones(3)}),
    (ValueError, "`class_weight` >= 0", {"class_weight": -torch.ones(4)}),
    (ValueError, "`temperature` to be finite and > 0", {"temperature": 0.0}),
    (ValueError, r"\[N, 1\] = \[3, 1\]", {"temperature": torch.ones(3)}),
    (TypeError, "`diversity_factor` to be a number", {"diversity_factor": "-0.45"}),
    (ValueError, "`expert_reduction` to be 'sum' or 'mean'", {"expert_reduction": "none"}),
    (ValueError, "`reduction` to be", {"reduction": "batchmean"}),
]


@pytest.mark.parametrize(("error", "message", "experts"), BAD_EXPERTS)
def test_experts_that_do_not_fit(error: type[Exception], message: str, experts: Any) -> None:
    with pytest.raises(error, match=message):
        ride_loss(experts, Y)


@pytest.mark.parametrize(("error", "message", "change"), BAD)
def test_ride_errors(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        ride_loss(**{"expert_logits": Z, "target": Y, **change})


def test_diversity_errors() -> None:
    with pytest.raises(ValueError, match="`diversity_loss`: expected `expert_logits`"):
        diversity_loss(Z[0])
    with pytest.raises(TypeError, match="`t2` to be a bool or a number"):
        diversity_loss(Z, t2="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`temperature` > 0, got -1"):
        diversity_loss(Z, torch.tensor([1.0, 1, 1, -1]))
    with pytest.raises(ValueError, match="`expert_reduction`"):
        diversity_loss(Z, expert_reduction="none")  # type: ignore[arg-type]
