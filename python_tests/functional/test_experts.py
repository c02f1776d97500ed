"""Fused ride_loss, diversity_loss and collaborative_kd_loss against their definitions.

How close is close enough is what the self-test measures call by call (selftest/comparison.py).
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

import ltkernels
from golden_vectors import cases, load_case
from ltkernels import _ops, functional, reference
from ltkernels.selftest import CASES, Case
from ltkernels.selftest.cases import Made, draw_case
from ltkernels.selftest.comparison import check

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INF, NAN = float("inf"), float("nan")
F64 = torch.float64
C = 2500  # three chunks of the kernels

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=random, dtype=F64)).to(dtype)


# --- random calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["ride_loss", "diversity_loss", "collaborative_kd_loss"])
@every_dtype
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32))
def test_random_calls(op: str, dtype: torch.dtype, seed: int) -> None:
    case = draw_case(Random(seed), CASES[op], dtype, "cpu")
    mismatch = check(case)
    assert mismatch is None, f"{case}\n{mismatch and mismatch.message}"


# --- calls by hand --------------------------------------------------------------------------------


def fixed(x: Tensor, *, device: str) -> Tensor:
    return x.to(device)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "ride": ("ride_loss", {}),
    "ride T 2": ("ride_loss", {"temperature": 2.0}),
    "ride T 4": ("ride_loss", {"temperature": 4.0}),
    "ride T 3": ("ride_loss", {"temperature": 3.0}),
    "ride pairwise": ("ride_loss", {"pairwise": True}),
    "ride of mean": ("ride_loss", {"collaborative": True, "temperature": 2.0}),
    "ride of mean pairwise": ("ride_loss", {"collaborative": True, "pairwise": True}),
    "ride without diversity": ("ride_loss", {"diversity_factor": 0}),
    "ride of mean alone": ("ride_loss", {"diversity_factor": 0, "collaborative": True}),
    "diversity": ("diversity_loss", {"temperature": 1.5}),
    "diversity pairwise": ("diversity_loss", {"pairwise": True}),
    "collaborative": ("collaborative_kd_loss", {}),
    "collaborative detached": ("collaborative_kd_loss", {"detach_teacher": True}),
    "collaborative reverse": (
        "collaborative_kd_loss",
        {"direction": "teacher_first", "detach_teacher": True},
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def close(
    kind: str, experts: list[Tensor], dtypes: list[torch.dtype] = DTYPES, **more: Any
) -> None:
    """Check one call on given logits, in every dtype."""
    op, options = KINDS[kind]
    rows, classes = experts[0].shape
    if op == "ride_loss":
        more = {"target": torch.arange(rows) % classes, **more}
    else:
        more.pop("target", None)
    for dtype in dtypes:
        call: dict[str, Any] = {"reduction": "none", **options, **more}
        call = {k: Made(fixed, (v,)) if isinstance(v, Tensor) else v for k, v in call.items()}
        call["expert_logits"] = [Made(fixed, (z.to(dtype),)) for z in experts]
        mismatch = check(Case(CASES[op], call, dtype, "cpu", 0))
        assert mismatch is None, f"{dtype}: {mismatch and mismatch.message}"


def three(rows: int, classes: int) -> list[Tensor]:
    return [draw(rows, classes, seed=seed) for seed in range(3)]


@each_kind
@pytest.mark.parametrize("level", [0.0, -2e4])
def test_first_finite_logit_in_a_later_chunk(kind: str, level: float) -> None:
    experts = [z + level for z in three(4, C)]
    for z in experts:
        z[0, :1100] = -INF
        z[1, :-1] = -INF
    experts[1][2, :2100] = -INF
    experts[2][3, 7] = -INF
    close(kind, experts, target=torch.tensor([1500, C - 1, 2200, 0]))


@each_kind
def test_maximum_grows_from_chunk_to_chunk(kind: str) -> None:
    ramp = torch.linspace(-1e4, 1e4, C, dtype=F64)
    experts = three(4, C)
    experts[0][0] += ramp
    experts[1][1] -= ramp
    for z in experts:
        z[2] += ramp
    experts[0][3] += ramp
    experts[2][3] -= ramp
    close(kind, experts)


@each_kind
@pytest.mark.parametrize("level", [-1e4, 3e4])
def test_common_offsets_cost_no_accuracy(kind: str, level: float) -> None:
    experts = three(2, 10)
    close(kind, [z + level for z in experts])
    close(kind, [experts[0], experts[1] + level, experts[2]])


@each_kind
def test_experts_that_disagree(kind: str) -> None:
    """Each is certain of another class: the mean's maximum is far below the mean of the maxima."""
    experts = [torch.zeros(2, 30, dtype=F64) for _ in range(3)]
    for k, z in enumerate(experts):
        z[0, k] = 3000.0
        z[1] += draw(30, seed=k)
        z[1, k] += 300.0
    close(kind, experts)


@each_kind
def test_minus_infinity_of_all_of_one_and_of_some(kind: str) -> None:
    experts = three(5, 20)
    for z in experts:
        z[0, 4] = -INF
    experts[0][1, 4] = -INF
    experts[0][2, 5:9] = experts[1][2, 8:11] = -INF
    experts[2][3, 3] = experts[2][3, 4] = -INF  # the target
    experts[0][4, :10] = experts[1][4, 10:] = -INF  # no class in common
    close(kind, experts)


@each_kind
def test_probability_too_small_to_be_infinite_against(kind: str) -> None:
    """Beside a hole, exp(-95) is a subnormal float and makes the row infinite, exp(-110) is not."""
    experts = three(3, 6)
    for row, depth in enumerate((95.0, 110.0, 800.0)):
        experts[0][row] = torch.tensor([0.0, -depth, 0, 0, 0, 0])
        experts[1][row, 1] = -INF
        experts[2][row] = experts[0][row]
    close(kind, experts, dtypes=[F64, torch.float32])


@each_kind
@pytest.mark.parametrize("value", [-INF, NAN, INF])
def test_a_bad_row_poisons_itself_only(kind: str, value: float) -> None:
    experts = three(3, 20)
    experts[1][1, slice(None) if value == -INF else 7] = value
    close(kind, experts)
    op, options = KINDS[kind]
    more = {"target": torch.tensor([0, 1, 2])} if op == "ride_loss" else {}
    leaves = [z.requires_grad_() for z in experts]
    loss = getattr(functional, op)(leaves, reduction="none", **options, **more)
    assert loss.isnan().tolist() == [False, True, False]
    for gradient in torch.autograd.grad(loss.sum(), leaves):
        assert gradient[[0, 2]].isfinite().all()


WEIGHTS = {
    "ones and zeros": [[1.0, 0, 1], [0, 1, 1], [1, 1, 0]],
    "one alone": [[1.0, 0, 0], [0, 0, 0], [0, 1, 0]],
    "one far above": [[1.0, 1e-6, 1], [1e-6, 1, 1], [1e-6, 1, 1e-6]],
    "negative": [[-1.0, 2, 1], [0.5, -1, 1], [1, 0, -3]],
}


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("direction", ["as_printed", "teacher_first"])
@pytest.mark.parametrize("detach_teacher", [False, True])
@pytest.mark.parametrize("holes", [False, True])
def test_weights_of_samples(
    weight: list[list[float]], direction: str, detach_teacher: bool, holes: bool
) -> None:
    """A weight of 0 takes a divergence out, even an infinite one; large ones leave others alone."""
    experts = three(3, 20)
    if holes:
        experts[1][0, 4] = experts[0][2, 3] = -INF
    options = {"direction": direction, "detach_teacher": detach_teacher}
    close("collaborative", experts, sample_weight=torch.tensor(weight), **options)


@pytest.mark.parametrize("kind", [k for k in KINDS if k.startswith("ride")])
@pytest.mark.parametrize("size", [0.5, 15.0, 60.0, -60.0, 1000.0, -1000.0])
def test_margins(kind: str, size: float) -> None:
    """Larger than what float exponentials span, on targets far ahead of and far behind the rest."""
    experts = three(6, 40)
    for z in experts:
        z[0, 0] += 20
        z[1, 1] += 100
        z[2, 2] += 900
        z[3, 3] -= 900
    experts[0][4, 4] += 300
    close(kind, experts, margin=torch.full((40,), size))


@pytest.mark.parametrize("kind", ["ride", "ride T 3", "ride of mean"])
@pytest.mark.parametrize("at", [0, 1023, 1024, C - 1])
def test_margin_of_a_target_in_any_chunk(kind: str, at: int) -> None:
    experts = three(2, C)
    for z in experts:
        z[0, at] += 200
    target, margin = torch.tensor([at, at]), torch.full((C,), 150.0)
    close(kind, experts, target=target, margin=margin)


def test_cross_entropy_near_zero_keeps_its_digits() -> None:
    z = torch.zeros(1, 2)
    z[0, 0] = 30.0
    y = torch.tensor([0])
    loss = functional.ride_loss([z], y, margin=torch.tensor([2.0, 0.0]), diversity_factor=0)
    exact = torch.log1p(torch.exp(torch.tensor(-28.0, dtype=F64)))
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("experts", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("kind", ["ride", "ride pairwise", "ride of mean", "collaborative"])
def test_numbers_of_experts(kind: str, experts: int) -> None:
    close(kind, [draw(2, 37, seed=seed) for seed in range(experts)])
    if experts == 1 and kind == "collaborative":
        assert functional.collaborative_kd_loss([draw(2, 37)]) == 0


@every_dtype
@pytest.mark.parametrize("experts", [1, 2, 3, 7])
def test_equal_experts_have_no_divergence(dtype: torch.dtype, experts: int) -> None:
    z = draw(4, C, dtype=dtype)
    for temperature in (1.0, 1.3, torch.rand(C) + 0.5):
        x = [z] * experts
        assert functional.diversity_loss(x, temperature, pairwise=True) == 0
        assert functional.collaborative_kd_loss(x, temperature) == 0
        rounding = (1e-6 if dtype != F64 else 1e-14) * experts  # of their mean
        assert functional.diversity_loss(x, temperature, reduction="none").abs().max() < rounding


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_no_rows(reduction: str, weighted: bool) -> None:
    x = torch.zeros(3, 0, 5, requires_grad=True)
    y = torch.zeros(0, dtype=torch.int64)
    more = {"class_weight": torch.ones(5)} if weighted else {}
    for loss in (
        functional.ride_loss(x, y, reduction=reduction, **more),
        functional.ride_loss(x, y, temperature=torch.ones(0, 1), reduction=reduction, **more),
        functional.diversity_loss(x, pairwise=True, reduction=reduction),
        functional.collaborative_kd_loss(x, reduction=reduction),
    ):
        if reduction == "none":
            assert loss.shape == (0,)
        else:
            assert loss.isnan() if reduction == "mean" else loss == 0
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        assert gradient.shape == (3, 0, 5)


def test_classes_without_weight() -> None:
    experts, target = three(3, 4), torch.tensor([0, 1, 1])
    experts[0][0, 0] = -INF  # an impossible target that does not count
    weight = torch.tensor([0.0, 1.0, 1.0, 1.0])
    for reduction in ("mean", "sum", "none"):
        close("ride", experts, target=target, class_weight=weight, reduction=reduction)
    loss = functional.ride_loss(experts, target * 0, class_weight=weight, diversity_factor=0)
    assert loss.isnan()
    for kind in ("ride", "ride of mean"):
        close(kind, experts, target=target * 0, class_weight=weight, reduction="mean")


def test_float16_gradients_keep_their_digits() -> None:
    """Far below and far above float16's range in one tensor: a scale for each row and expert."""
    experts = [torch.tensor([[0.0, z], [0.0, 1.0]], dtype=F64) for z in (2e4, 100.0, 0.0)]
    for kind in ("collaborative", "collaborative detached", "ride pairwise"):
        close(kind, experts)
        close(kind, experts, reduction="mean", temperature=0.05)
    x = draw(3, 4096, 10, dtype=torch.float16).requires_grad_()
    y = torch.arange(4096) % 10
    for scale in (1.0, 65536.0):
        (ours,) = torch.autograd.grad(functional.ride_loss(x, y) * scale, x)
        wide = x.detach().double().requires_grad_()
        (exact,) = torch.autograd.grad(reference.ride_loss(wide, y) * scale, wide)
        tolerance = 2.0**-24 + 2e-3 * exact.abs() + 2e-6 * scale / 4096
        assert ((ours.double() - exact).abs() <= tolerance).all()


# --- forms of the input ---------------------------------------------------------------------------


def peak_bytes(call: Any) -> int:
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = call()
    del kept
    events = seen.profiler.kineto_results.events()
    sizes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    assert sizes
    in_use = peak = 0
    for _, size in sizes:
        in_use += size
        peak = max(peak, in_use)
    return peak


@every_dtype
@pytest.mark.parametrize("kind", ["ride", "ride pairwise", "ride of mean", "collaborative"])
@pytest.mark.parametrize("stacked", [False, True])
def test_memory(dtype: torch.dtype, kind: str, stacked: bool) -> None:
    """The gradient of all experts is the only large tensor, for either form of the logits."""
    experts = draw(3, 256, 2048, dtype=dtype)
    size = experts.nelement() * experts.element_size()
    op, options = KINDS[kind]
    more = {"target": torch.arange(256)} if op == "ride_loss" else {}
    leaves = [experts] if stacked else [z.clone() for z in experts]
    leaves = [z.requires_grad_() for z in leaves]
    logits = leaves[0] if stacked else leaves

    def loss() -> Tensor:
        value: Tensor = getattr(functional, op)(logits, **options, **more)
        return value

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(), leaves)

    assert peak_bytes(loss) <= 1.05 * size
    scaled = dtype == torch.float16  # the stored gradient must be multiplied
    assert peak_bytes(step) <= (2.05 if scaled else 1.05) * size
    with torch.no_grad():
        assert peak_bytes(loss) < 100_000

    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    assert sum(s.nelement() * s.element_size() for s in saved) <= size + 8 * 3 * 256
    inputs = {z.untyped_storage().data_ptr() for z in leaves}
    assert not any(s.untyped_storage().data_ptr() in inputs for s in saved)


@pytest.mark.parametrize("layout", ["stacked", "transposed", "columns", "expanded"])
def test_one_tensor_or_several(layout: str) -> None:
    wide = draw(3, 5, 40)
    experts = {
        "stacked": wide,
        "transposed": draw(5, 3, 40).transpose(0, 1),
        "columns": wide[:, :, ::2],
        "expanded": wide[:1].expand(3, 5, 40),
    }[layout]
    target = torch.arange(5)
    one = experts.detach().requires_grad_()
    several = [z.clone().requires_grad_() for z in experts]
    results = [functional.ride_loss(x, target, pairwise=True) for x in (one, several)]
    assert torch.equal(*results)
    (gradient,) = torch.autograd.grad(results[0], one)
    assert torch.equal(gradient, torch.stack(torch.autograd.grad(results[1], several)))


def test_experts_without_gradient_and_one_expert_twice() -> None:
    a, b, c = (z.requires_grad_(k != 1) for k, z in enumerate(three(3, 8)))
    y = torch.tensor([0, 1, 2])
    for experts in ([a, b, c], [a, a, b], [b, b, a]):
        leaves = [z for z in (a, c) if any(z is x for x in experts)]
        ours, expected = (
            torch.autograd.grad(module.ride_loss(experts, y, pairwise=True), leaves)
            for module in (functional, reference)
        )
        torch.testing.assert_close(ours, expected)
    assert not functional.ride_loss([b, b.clone()], y).requires_grad


@pytest.mark.parametrize("stacked", [False, True])
def test_accumulating_into_grad_leaves_the_graph_alone(stacked: bool) -> None:
    experts = draw(3, 4, 7)
    leaves = [experts] if stacked else list(experts.clone())
    leaves = [z.detach().requires_grad_() for z in leaves]
    value = functional.ride_loss(leaves[0] if stacked else leaves, torch.arange(4))
    once = torch.autograd.grad(value, leaves, retain_graph=True)
    for times in (1, 2, 3):
        value.backward(retain_graph=True)
        for leaf, gradient in zip(leaves, once, strict=True):
            torch.testing.assert_close(leaf.grad, times * gradient)
    for leaf in leaves:
        assert leaf.grad is not None
        leaf.grad.zero_()
    value.backward()
    for leaf, gradient in zip(leaves, once, strict=True):
        assert torch.equal(leaf.grad, gradient)


# --- which implementation -------------------------------------------------------------------------


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many experts each call of the native op had."""
    calls: list[int] = []
    kernel = _ops.experts

    def counted(logits: Any, *rest: Any) -> Any:
        calls.append(len(logits))
        return kernel(logits, *rest)

    monkeypatch.setattr(_ops, "experts", counted)
    return calls


def test_one_kernel_a_call_up_to_sixteen_experts(kernel_calls: list[int]) -> None:
    y = torch.arange(2)
    for count in (1, 3, 16, 17):
        experts = draw(count, 2, 5)
        for module in (functional, reference):
            module.ride_loss(experts, y)
            module.diversity_loss(list(experts))
            module.collaborative_kd_loss(experts)
        torch.testing.assert_close(
            functional.ride_loss(experts, y), reference.ride_loss(experts, y)
        )
    assert kernel_calls == [1] * 4 + [3] * 4 + [16] * 4


@pytest.mark.parametrize("which", ["temperature", "margin", "sample_weight"])
def test_gradients_that_only_the_definition_has(which: str, kernel_calls: list[int]) -> None:
    shape = (3, 4) if which == "sample_weight" else (7,)
    v = (draw(*shape).abs() + 0.5).requires_grad_()

    def loss(module: Any) -> Tensor:
        if which == "sample_weight":
            return module.collaborative_kd_loss(draw(3, 4, 7, seed=1), sample_weight=v)
        return module.ride_loss(draw(3, 4, 7, seed=1), torch.arange(4), **{which: v})

    ours, expected = (torch.autograd.grad(loss(m), v)[0] for m in (functional, reference))
    assert torch.equal(ours, expected)
    assert kernel_calls == []
    with torch.no_grad():
        loss(functional)
    assert kernel_calls == [3]


# --- official vectors -----------------------------------------------------------------------------

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def matches(loss: Tensor, expected: Tensor, leaf: Tensor, gradient: Tensor) -> None:
    torch.testing.assert_close(loss, expected, **EXACT)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], gradient, **EXACT)


@pytest.mark.parametrize("case_id", cases("ride", "RIDELoss.forward"))
def test_official_ride(case_id: str, kernel_calls: list[int]) -> None:
    case = load_case("ride", case_id)
    experts = case.leaf("expert_logits")
    reweighted = case.params["epoch_passed_to_hook"] > case.params["reweight_epoch"]
    loss = functional.ride_loss(
        experts,
        case["target"],
        margin=30 * case["m_list"],
        class_weight=case["per_cls_weights_enabled"] if reweighted else None,
        temperature=case["diversity_temperature_weights"] if reweighted else 1.0,
        diversity_factor=case.params["additional_diversity_factor"],
    )
    matches(loss, case["loss"], experts, case["grad_expert_logits"])
    assert kernel_calls == [len(experts)]


def test_total_of_the_paper() -> None:
    case = load_case("derived", "ride_total_eq4_B4_C10_n2_scalar")
    experts, factor = case.leaf("expert_logits"), case.params["lam"]
    diversity = functional.diversity_loss(experts, case["T"], pairwise=True, t2=False)
    torch.testing.assert_close(-factor * diversity, case["diversity"], **EXACT)
    loss = functional.ride_loss(
        experts, case["target"], diversity_factor=0, expert_reduction="mean"
    )
    matches(loss - factor * diversity / 2, case["loss"], experts, case["grad"])


@pytest.mark.parametrize("case_id", cases("derived", "ECL eq. 7"))
def test_logit_distillation_of_the_paper(case_id: str, kernel_calls: list[int]) -> None:
    case = load_case("derived", case_id)
    experts = case.leaf("cls_logits")
    loss = functional.collaborative_kd_loss(
        experts,
        case.params["tau"],
        sample_weight=case["weight"],
        direction="teacher_first" if "teacherfirst" in case_id else "as_printed",
        detach_teacher=case.params["detach_q"],
    )
    matches(loss, case["loss"], experts, case["grad_cls_logits"])
    assert kernel_calls == [len(experts)]


@pytest.mark.parametrize("case_id", cases("derived", "ECL eq. 8"))
def test_feature_distillation_of_the_paper(case_id: str) -> None:
    case = load_case("derived", case_id)
    features, tau = case.leaf("features"), case.params["tau"]
    loss = functional.collaborative_kd_loss(features, tau, reduction=case.params["reduction"])
    matches(loss, case["loss"], features, case["grad"])


@pytest.mark.parametrize("case_id", cases("ecl_base_ncl", "NBOD")[:3])
def test_ncl_distillation_but_for_its_epsilon(case_id: str) -> None:
    case = load_case("ecl_base_ncl", case_id)
    experts, factor = case.leaf("logits"), case.params["factor"]
    loss = factor * len(experts) * functional.collaborative_kd_loss(experts)
    torch.testing.assert_close(loss, case["loss"], rtol=1e-5, atol=1e-6)
    gradient = torch.autograd.grad(loss, experts)[0]
    torch.testing.assert_close(gradient, case["grad_logits"], rtol=1e-3, atol=1e-6)


# --- the comparison can fail ----------------------------------------------------------------------


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16], ids=str)
def test_an_error_in_one_element_is_found(
    monkeypatch: pytest.MonkeyPatch, output: int, dtype: torch.dtype
) -> None:
    kernel = ltkernels._ops.experts
    relative = {F64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 3e-2}[dtype]
    if output == 0 and dtype != F64:
        relative = 1e-4

    def perturbed(*args: Any) -> tuple[Tensor, ...]:
        outputs = tuple(x.clone() for x in kernel(*args))
        if outputs[output].numel() > 0:
            flat = outputs[output].view(-1)
            flat[flat.abs().argmax()] *= 1 + relative
        return outputs

    close("ride pairwise", three(3, 11), dtypes=[dtype])
    monkeypatch.setattr(ltkernels._ops, "experts", perturbed)
    with pytest.raises(AssertionError):
        close("ride pairwise", three(3, 11), dtypes=[dtype])
