"""The definitions of collaborative_kd_loss and knowledge_balance_weight: vectors, rules, edges."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from golden_vectors import cases, load_case
from ltkernels import functional, reference
from ltkernels.reference import collaborative_kd_loss, knowledge_balance_weight
from ltkernels.reference.collaboration import balance_weight

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
INF = float("inf")
DIRECTIONS = ["as_printed", "teacher_first"]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.sum(), inputs)


# --- vectors of the paper's formulas and of NCL ---------------------------------------------------


@pytest.mark.parametrize("case_id", cases("derived", "ECL eq. 7"))
def test_logit_distillation(case_id: str) -> None:
    case = load_case("derived", case_id)
    experts = case.leaf("cls_logits")
    loss = collaborative_kd_loss(
        experts,
        case.params["tau"],
        sample_weight=case["weight"],
        direction="teacher_first" if "teacherfirst" in case_id else "as_printed",
        detach_teacher=case.params["detach_q"],
    )
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    torch.testing.assert_close(gradients(loss, experts)[0], case["grad_cls_logits"], **EXACT)


@pytest.mark.parametrize("case_id", cases("derived", "ECL eq. 8"))
def test_feature_distillation(case_id: str) -> None:
    case = load_case("derived", case_id)
    features = case.leaf("features")
    loss = collaborative_kd_loss(features, case.params["tau"], reduction=case.params["reduction"])
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    torch.testing.assert_close(gradients(loss, features)[0], case["grad"], **EXACT)


@pytest.mark.parametrize("case_id", cases("ecl_base_ncl", "NBOD")[:3])
def test_ncl_distillation_but_for_its_epsilon(case_id: str) -> None:
    """NCL sums over the experts, and adds 1e-9 inside one of the logarithms."""
    case = load_case("ecl_base_ncl", case_id)
    experts = case.leaf("logits")
    loss = case.params["factor"] * len(experts) * collaborative_kd_loss(experts)
    p = torch.softmax(experts.detach(), dim=2)
    off = sum((p[i] * 1e-9 / p[j]).sum() for i, j in permutations(range(len(p)), 2))
    off = case.params["factor"] * off / len(p[0]) / (len(p) - 1)
    assert 0 <= loss - case["loss"] <= off * (1 + 1e-6)
    torch.testing.assert_close(
        gradients(loss, experts)[0], case["grad_logits"], rtol=1e-3, atol=2 * float(off)
    )


@pytest.mark.parametrize("case_id", cases("derived", "ECL eqs. 5-6"))
def test_balance_weights(case_id: str) -> None:
    case = load_case("derived", case_id)
    unbiased = "unbiased=True" in case.params["std"]
    for ref, cls, expected in zip(
        case["ref_logits"], case["cls_logits"], case["weight"], strict=True
    ):
        heads = (ref, cls) if "rhs" in case_id else (cls, ref)
        weight = balance_weight(*heads, case["target"], unbiased=unbiased)
        torch.testing.assert_close(weight, expected, **EXACT)
        if unbiased:
            public = knowledge_balance_weight(*heads, case["target"])
            torch.testing.assert_close(public, expected, **EXACT)


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_derivatives(direction: Any) -> None:
    def loss(experts: Tensor, weight: Tensor, temperature: Tensor) -> Tensor:
        return collaborative_kd_loss(
            experts, temperature, sample_weight=weight, direction=direction, reduction="none"
        )

    temperature = draw(4, seed=2).abs() + 0.5
    inputs = [x.requires_grad_() for x in (draw(3, 2, 4), draw(3, 2, seed=1), temperature)]
    assert gradcheck(loss, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(loss, inputs)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_detached_teacher_gets_no_gradient(direction: Any) -> None:
    """With one weight that is not 0 there is one student: only its own terms train it."""
    experts = draw(3, 2, 4).requires_grad_()
    weight = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64).expand(3, 2)
    options: dict[str, Any] = {"sample_weight": weight, "direction": direction}
    both = collaborative_kd_loss(experts, 2.0, **options)
    detached = collaborative_kd_loss(experts, 2.0, detach_teacher=True, **options)
    torch.testing.assert_close(detached, both)
    of_both, of_student = (gradients(x, experts)[0] for x in (both, detached))
    torch.testing.assert_close(of_student[0], of_both[0])
    assert (of_student[1:] == 0).all()
    assert (of_both[1:] != 0).all()


def test_balance_weight_derivatives() -> None:
    target = torch.tensor([0, 3, 1])
    inputs = [draw(3, 4, seed=seed).requires_grad_() for seed in range(2)]

    def loss(ref: Tensor, cls: Tensor) -> Tensor:
        return balance_weight(ref, cls, target)

    assert gradcheck(loss, inputs, check_forward_ad=True)
    assert gradgradcheck(loss, inputs)
    assert not knowledge_balance_weight(*inputs, target).requires_grad


# --- what the formula says ------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7), st.integers(0, 10_000))
few_examples = settings(max_examples=40, deadline=None)


@few_examples
@given(sizes, st.sampled_from(DIRECTIONS), st.floats(0.05, 100))
def test_it_is_not_negative_and_zero_at_equality(
    size: tuple[int, int, int, int], direction: Any, temperature: float
) -> None:
    k, n, c, seed = size
    experts, weight = draw(k, n, c, seed=seed), draw(k, n, seed=seed + 1).abs()
    options: dict[str, Any] = {"sample_weight": weight, "direction": direction}
    loss = collaborative_kd_loss(experts, temperature, reduction="none", **options)
    assert loss.shape == (n,)
    assert (loss >= -1e-9 * temperature**2).all()
    equal = collaborative_kd_loss([experts[0]] * k, temperature, **options)
    assert abs(float(equal)) <= 1e-12 * temperature**2


@few_examples
@given(sizes, st.sampled_from(DIRECTIONS), st.randoms(use_true_random=False))
def test_order_of_experts_and_classes_and_shifts_do_not_matter(
    size: tuple[int, int, int, int], direction: Any, random: Any
) -> None:
    k, n, c, seed = size
    order, classes = random.sample(range(k), k), torch.tensor(random.sample(range(c), c))
    experts, weight = draw(k, n, c, seed=seed), draw(k, n, seed=seed + 1)
    moved = [experts[i][:, classes] + i for i in order]
    torch.testing.assert_close(
        collaborative_kd_loss(moved, 2.0, sample_weight=weight[order], direction=direction),
        collaborative_kd_loss(experts, 2.0, sample_weight=weight, direction=direction),
    )


@few_examples
@given(sizes)
def test_unweighted_both_directions_are_one(size: tuple[int, int, int, int]) -> None:
    k, n, c, seed = size
    experts = draw(k, n, c, seed=seed).requires_grad_()
    printed, reverse = (collaborative_kd_loss(experts, 1.3, direction=x) for x in DIRECTIONS)
    torch.testing.assert_close(printed, reverse)
    torch.testing.assert_close(*(gradients(x, experts)[0] for x in (printed, reverse)))


TEMPERATURES = {
    "number": 2.0,
    "scalar": torch.tensor([1.7], dtype=torch.float64),
    "class": torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64),
    "sample": torch.tensor([[0.7], [1.3], [2.5]], dtype=torch.float64),
}


@pytest.mark.parametrize("temperature", TEMPERATURES.values(), ids=TEMPERATURES.keys())
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_it_is_the_weighted_double_sum(temperature: float | Tensor, direction: Any) -> None:
    experts, weight = draw(3, 3, 4), draw(3, 3, seed=1).abs()
    p = torch.softmax(experts / temperature, dim=2)
    rows = torch.zeros(3, dtype=torch.float64)
    for k, q in permutations(range(3), 2):
        first, second = (p[k], p[q]) if direction == "as_printed" else (p[q], p[k])
        rows = rows + weight[k] * (first * (first / second).log()).sum(dim=1)
    factor = torch.as_tensor(temperature, dtype=torch.float64)
    factor = factor[:, 0] ** 2 if factor.dim() == 2 else factor.mean() ** 2
    expected = factor * rows / 6
    options: dict[str, Any] = {"sample_weight": weight, "direction": direction}
    for reduction, value in (
        ("none", expected),
        ("sum", expected.sum()),
        ("mean", expected.mean()),
    ):
        loss = collaborative_kd_loss(experts, temperature, reduction=reduction, **options)
        torch.testing.assert_close(loss, value)


@few_examples
@given(sizes, st.floats(0.1, 10), st.floats(-20, 20))
def test_balance_weight_sees_neither_scale_nor_shift(
    size: tuple[int, int, int, int], scale: float, shift: float
) -> None:
    _, n, c, seed = size
    c += 1
    ref, cls, target = draw(n, c, seed=seed), draw(n, c, seed=seed + 1), torch.arange(n) % c
    weight = knowledge_balance_weight(ref, cls, target)
    torch.testing.assert_close(knowledge_balance_weight(scale * ref + shift, cls, target), weight)
    torch.testing.assert_close(knowledge_balance_weight(ref, scale * cls - shift, target), weight)
    torch.testing.assert_close(knowledge_balance_weight(cls, ref, target), 1 / weight)
    same = knowledge_balance_weight(ref, ref, target)
    torch.testing.assert_close(same, torch.ones_like(same))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    experts = [draw(3, 4, seed=seed, dtype=dtype).requires_grad_() for seed in range(2)]
    weight = knowledge_balance_weight(*experts, torch.tensor([0, 3, 2]))
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    assert weight.dtype == arithmetic
    loss = collaborative_kd_loss(experts, 2.0, sample_weight=torch.stack([weight, weight]))
    assert loss.dtype == arithmetic
    assert all(grad.dtype == dtype for grad in gradients(loss, *experts))


# --- the edges ------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("detach_teacher", [False, True])
def test_infinite_logits(direction: Any, detach_teacher: bool) -> None:
    experts = [draw(4, 4, seed=seed) for seed in range(3)]
    for z in experts:
        z[0, 1] = -INF  # a class nobody has
    experts[0][1, 2] = -INF  # one expert 0 lacks
    experts[0][2] = -INF  # a row without a finite logit for expert 0
    leaves = [z.requires_grad_() for z in experts]
    options: dict[str, Any] = {"direction": direction, "detach_teacher": detach_teacher}
    loss = collaborative_kd_loss(leaves, 1.5, reduction="none", **options)
    assert loss[[0, 3]].isfinite().all()
    assert loss[1] == INF
    assert loss[2].isnan()
    left = torch.tensor([0, 2, 3])
    rest = collaborative_kd_loss([z[:1, left] for z in leaves], 1.5, **options)
    torch.testing.assert_close(loss[0], rest)
    for k, grad in enumerate(gradients(loss, *leaves)):
        assert grad[[0, 1, 3]].isfinite().all()
        assert grad[2].isnan().all()
        assert grad[0, 1] == 0
        if k == 0:
            assert grad[1, 2] == 0
        if detach_teacher and direction == "as_printed":
            assert (grad[1] == 0).all()  # the students are the first distributions


def test_a_weight_of_zero_drops_an_infinite_term() -> None:
    experts = draw(2, 1, 3)
    experts[0, 0, 0] = -INF
    leaf = experts.requires_grad_()
    weight = torch.tensor([[1.0], [0.0]], dtype=torch.float64, requires_grad=True)
    loss = collaborative_kd_loss(leaf, sample_weight=weight)  # KL(p^1 || p^0) is infinite
    assert loss.isfinite()
    assert all(grad.isfinite().all() for grad in gradients(loss, leaf, weight))


@pytest.mark.parametrize("temperature", [0.05, 1.0, 100.0])
@pytest.mark.parametrize("size", [1e4, 1e5])
def test_huge_logits(temperature: float, size: float) -> None:
    experts = (size * draw(3, 4, 6, dtype=torch.float32)).requires_grad_()
    weight = knowledge_balance_weight(experts[0], experts[1], torch.tensor([0, 5, 2, 3]))
    assert weight.isfinite().all()
    loss = collaborative_kd_loss(experts, temperature, sample_weight=weight.expand(3, 4))
    assert loss.isfinite()
    assert gradients(loss, experts)[0].isfinite().all()


def test_one_expert_learns_nothing() -> None:
    logits = draw(1, 3, 4)
    logits[0, 0, 1] = -INF
    leaf = logits.requires_grad_()
    loss = collaborative_kd_loss(leaf, 2.0, sample_weight=draw(1, 3), reduction="none")
    assert (loss == 0).all()
    grad = gradients(loss, leaf)[0]
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("reduction", "expected"), [("mean", float("nan")), ("sum", 0.0)])
def test_zero_rows_and_one_class(reduction: Any, expected: float) -> None:
    experts = torch.zeros(2, 0, 3, requires_grad=True)
    loss = collaborative_kd_loss(experts, reduction=reduction)
    torch.testing.assert_close(loss, torch.tensor(expected), equal_nan=True)
    assert gradients(loss, experts)[0].shape == (2, 0, 3)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert knowledge_balance_weight(experts[0], experts[1], nothing).shape == (0,)
    one = draw(2, 3, 1).requires_grad_()
    loss = collaborative_kd_loss(one, reduction=reduction)
    assert loss == 0
    assert (gradients(loss, one)[0] == 0).all()
    weight = knowledge_balance_weight(one[0], one[1], torch.zeros(3, dtype=torch.int64))
    assert (weight == 0).all()


def test_balance_weight_of_infinite_and_of_equal_logits() -> None:
    ref, cls = draw(5, 4), draw(5, 4, seed=1)
    ref[0, 1] = -INF  # takes its class out
    cls[1, 1] = -INF  # the label: its cross-entropy is infinite
    ref[2] = -INF
    ref[3] = 3.0  # no deviation: the divisor is log C
    ref[4], cls[4] = torch.tensor([1e30, 0.0, 0.0, 0.0]), 0.0
    target = torch.tensor([0, 1, 2, 3, 0])
    weight = knowledge_balance_weight(ref, cls, target)
    left = torch.tensor([0, 2, 3])
    sigma_ref, sigma_cls = ref[0, left].std(), cls[0].std()
    nll = -(ref[0, left] / sigma_ref).log_softmax(0)[0]
    torch.testing.assert_close(weight[0], -(cls[0] / sigma_cls).log_softmax(0)[0] / nll)
    assert weight[1] == INF
    assert weight[2].isnan()
    nll = -(cls[3] / cls[3].std()).log_softmax(0)[3]
    torch.testing.assert_close(weight[3], nll / torch.tensor(4.0, dtype=torch.float64).log())
    assert weight[4].isfinite()
    leaves = [x[[0, 3]].requires_grad_() for x in (ref, cls)]
    grads = gradients(balance_weight(*leaves, target[[0, 3]]), *leaves)
    assert all(grad.isfinite().all() for grad in grads)
    assert grads[0][0, 1] == 0


def test_a_small_divisor_is_clamped() -> None:
    ref = torch.tensor([[0.0, -INF]], dtype=torch.float64)  # sure of the label: CE = 0
    cls = torch.zeros(1, 2, dtype=torch.float64)
    weight = knowledge_balance_weight(ref, cls, torch.tensor([0]), eps=1e-3)
    torch.testing.assert_close(weight, torch.tensor([2.0], dtype=torch.float64).log() / 1e-3)


# --- transforms -----------------------------------------------------------------------------------


def test_vmap_and_func_grad() -> None:
    experts, weight = draw(2, 3, 2, 4), draw(2, 3, 2, seed=1)

    def loss(experts: Tensor, weight: Tensor) -> Tensor:
        return collaborative_kd_loss(experts, 2.0, sample_weight=weight)

    expected = torch.stack([loss(*x) for x in zip(experts, weight, strict=True)])
    torch.testing.assert_close(torch.vmap(loss)(experts, weight), expected)
    grads = torch.vmap(torch.func.grad(loss))(experts, weight)
    leaf = experts.clone().requires_grad_()
    one_by_one = torch.stack([loss(*x) for x in zip(leaf, weight, strict=True)])
    torch.testing.assert_close(grads, gradients(one_by_one, leaf)[0])


def test_traces_in_one_graph() -> None:
    def loss(experts: Tensor, target: Tensor) -> Tensor:
        weight = knowledge_balance_weight(experts[0], experts[1], target)
        return collaborative_kd_loss(experts, 2.0, sample_weight=weight.expand(2, 3))

    experts, target = draw(2, 3, 4).requires_grad_(), torch.tensor([0, 3, 2])
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")(experts, target)
    eager = loss(experts, target)
    torch.testing.assert_close(traced, eager)
    torch.testing.assert_close(gradients(traced, experts)[0], gradients(eager, experts)[0])


def test_functional_is_the_same_op() -> None:
    experts, target = draw(3, 3, 4), torch.tensor([0, 3, 2])
    options: dict[str, Any] = {
        "sample_weight": draw(3, 3, seed=1),
        "direction": "teacher_first",
        "detach_teacher": True,
        "reduction": "none",
    }
    torch.testing.assert_close(
        functional.collaborative_kd_loss(experts, 2.0, **options),
        collaborative_kd_loss(experts, 2.0, **options),
    )
    torch.testing.assert_close(
        functional.knowledge_balance_weight(experts[0], experts[1], target, eps=0.1),
        knowledge_balance_weight(experts[0], experts[1], target, eps=0.1),
    )
    doc = reference.collaborative_kd_loss.__doc__
    assert functional.collaborative_kd_loss.__doc__ == doc


# --- errors ---------------------------------------------------------------------------------------

Z, Y = torch.zeros(2, 3, 4), torch.tensor([0, 1, 2])
BAD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, r"`collaborative_kd_loss`: expected `expert_logits`", {"expert_logits": Z[0]}),
    (ValueError, r"`sample_weight` to be \[K, N\] = \[2, 3\]", {"sample_weight": torch.ones(3)}),
    (TypeError, "`sample_weight` to be a floating", {"sample_weight": Z[:, :, 0].long()}),
    (TypeError, "`sample_weight` to be a Tensor", {"sample_weight": [1.0, 2.0]}),
    (ValueError, "`direction` to be 'as_printed' or 'teacher_first'", {"direction": "reverse"}),
    (ValueError, "`temperature`", {"temperature": -1.0}),
    (ValueError, "`reduction`", {"reduction": "batchmean"}),
]
BAD_WEIGHT: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, r"`cls_logits` to be \[N, C\] = \[3, 4\]", {"cls_logits": Z[1, :2]}),
    (TypeError, "`ref_logits` to be a Tensor", {"ref_logits": [Z[0]]}),
    (IndexError, "`knowledge_balance_weight`: expected `target`", {"target": Y + 3}),
    (ValueError, "`eps` to be finite and > 0", {"eps": 0.0}),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD)
def test_errors(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        collaborative_kd_loss(**{"expert_logits": Z, **change})


@pytest.mark.parametrize(("error", "message", "change"), BAD_WEIGHT)
def test_weight_errors(error: type[Exception], message: str, change: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        knowledge_balance_weight(**{"ref_logits": Z[0], "cls_logits": Z[1], "target": Y, **change})
