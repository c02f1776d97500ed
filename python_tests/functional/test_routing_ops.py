"""The fused router ops against their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as torch_f

import ltkernels
import strategies as draw_
from golden_vectors import Case, load_case
from ltkernels import _ops, functional, reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INF, NAN = float("inf"), float("nan")
WEIGHTS = ("w1", "b1", "w2", "b2")
INPUTS = ("logits", "feature", *WEIGHTS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_module = pytest.mark.parametrize("module", [functional, reference])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=draw_.generator(seed), dtype=torch.float64).to(dtype)


def acc(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def router(
    n: int = 3,
    c: int = 9,
    d: int = 5,
    h: int = 4,
    z: int = 3,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Any]:
    return {
        "logits": 2 * normal(n, c, seed=seed, dtype=dtype),
        "feature": normal(n, d, seed=seed + 1, dtype=dtype),
        "w1": normal(h, d, seed=seed + 2, dtype=acc(dtype)),
        "b1": normal(h, seed=seed + 3, dtype=acc(dtype)),
        "w2": normal(1, z + h, seed=seed + 4, dtype=acc(dtype)),
        "b2": normal(1, seed=seed + 5, dtype=acc(dtype)),
        "z": z,
    }


def gate_and_gradients(
    module: Any, call: dict[str, Any], upstream: Tensor, wrt: tuple[str, ...] = INPUTS
) -> dict[str, Tensor]:
    leaves = {name: call[name].detach().requires_grad_() for name in wrt}
    gate = module.topz_gate(**{**call, **leaves})
    found = torch.autograd.grad(gate, list(leaves.values()), upstream.to(gate.dtype))
    return {"gate": gate.detach(), **dict(zip(leaves, found, strict=True))}


# --- against the definition -----------------------------------------------------------------------


def sizes(call: dict[str, Any], upstream: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Every result with all terms positive, and how far each hidden unit is from its kink."""
    z, g = call["z"], upstream.abs().unsqueeze(1)
    w1, w2 = call["w1"].abs(), call["w2"].abs()
    sort = call["logits"].sort(dim=1, descending=True, stable=True)
    top = sort.values[:, :z].abs().nan_to_num(0, 0, 0)
    unit = torch_f.normalize(call["feature"], dim=1)
    pre = unit @ call["w1"].T + call["b1"]
    size = unit.abs() @ w1.T + call["b1"].abs()
    on = (pre > 0).double()
    slope = g * w2[:, z:] * on
    norm = call["feature"].norm(dim=1, keepdim=True).clamp(min=1e-12)
    of_unit = slope @ w1
    along = (unit.abs() * of_unit).sum(dim=1, keepdim=True)
    return {
        "gate": (top @ w2[:, :z].T + (on * size) @ w2[:, z:].T).squeeze(1) + call["b2"].abs(),
        "logits": (g * w2[:, :z]).amax(dim=1, keepdim=True).expand_as(call["logits"]),
        "feature": (of_unit + unit.abs() * along) / norm,
        "w1": slope.T @ unit.abs(),
        "b1": slope.sum(dim=0),
        "w2": torch.cat([g * top, g * on * size], dim=1).sum(dim=0, keepdim=True),
        "b2": g.sum().reshape(1),
    }, (pre.abs() / size.clamp(min=1e-300))


def check_gate(call: dict[str, Any], seed: int = 0) -> None:
    """Error of every result at most twice that of plain PyTorch, and roundings of its terms."""
    arithmetic = acc(call["logits"].dtype)
    upstream = normal(call["logits"].shape[0], seed=seed, dtype=arithmetic)
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in call.items()}
    size, kink = sizes(wide, upstream.double())
    assume(not (kink < 1e-5).any())  # there, rounding decides between two gradients
    before = {k: v.clone() for k, v in call.items() if isinstance(v, Tensor)}
    ours = gate_and_gradients(functional, call, upstream)
    for name, copy in before.items():
        assert torch.equal(call[name].nan_to_num(7e4), copy.nan_to_num(7e4)), name
    with torch.no_grad():
        alone = functional.topz_gate(**call)
    torch.testing.assert_close(alone, ours["gate"], rtol=0, atol=0, equal_nan=True)
    plain = gate_and_gradients(reference, call, upstream)
    exact = gate_and_gradients(reference, wide, upstream.double())
    eps = torch.finfo(arithmetic).eps
    terms = 4 + sum(call["w1"].shape) ** 0.5 + call["z"] ** 0.5 + upstream.numel() ** 0.5
    for name, got in ours.items():
        want, by_plain = exact[name], plain[name]
        assert got.dtype == by_plain.dtype, name
        assert got.shape == by_plain.shape, name
        assert torch.equal(got.isnan(), by_plain.isnan()), f"NaN in {name}"
        assert torch.equal(got.isinf(), by_plain.isinf()), f"infinity in {name}"
        error, plain_error = ((x.double() - want).abs() for x in (got, by_plain))
        stored = torch.finfo(got.dtype)
        allowed = 2 * plain_error + terms * eps * size[name] + 2 * stored.tiny * stored.eps
        allowed = allowed + (stored.eps * want.abs() if stored.bits < 64 else 0.0)
        bad = want.isfinite() & got.isfinite() & ~(error <= allowed)
        assert not bad.any(), f"{name}: {got[bad][:3]} for {want[bad][:3]}, allowed {allowed[bad]}"


@st.composite
def routers(draw: st.DrawFn, dtype: torch.dtype) -> dict[str, Any]:
    n, c, seed = draw(draw_.rows), draw(draw_.classes), draw(draw_.seeds)
    d, h = draw(st.sampled_from([1, 3, 8, 64, 65])), draw(st.sampled_from([1, 4, 16, 17]))
    z = draw(st.integers(1, min(c, 70)) | st.sampled_from([1, min(c, 30), min(c, 64), c]))
    return {
        **router(n, 1, d, h, z, dtype, seed),
        "logits": draw(draw_.logits(n, c, dtype)),
        "feature": draw(draw_.logits(n, d, dtype, holes=("none",))),
    }


@each_dtype
@settings(max_examples=settings.default.max_examples)
@given(data=st.data())
def test_gate(dtype: torch.dtype, data: st.DataObject) -> None:
    check_gate(draw_.built(data.draw(routers(dtype))), data.draw(draw_.seeds))


@each_dtype
@pytest.mark.parametrize(("c", "z"), [(1, 1), (8, 8), (65, 65), (200, 64), (1000, 1), (500, 300)])
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "holes", "empty", "nan", "rising"])
def test_selection_is_that_of_topk(dtype: torch.dtype, c: int, z: int, kind: str) -> None:
    call = router(5, c, z=z, dtype=dtype)
    x = call["logits"]
    if kind == "ties":
        x = x.round()
    if kind == "equal":
        x.zero_()[:, ::2] = -0.0
    if kind == "holes":
        x[torch.rand(x.shape, generator=draw_.generator(3)) < 0.9] = -INF
    if kind == "empty":
        x[2] = -INF
    if kind == "nan":
        x[1, c // 2] = x[2, c - 1] = x[2, 0] = NAN
        x[3, c // 2] = INF
        x[3, c - 1] = -INF
    if kind == "rising":
        x = torch.arange(5 * c).view(5, c).to(dtype) / (5 * c)
    weights = (call[name] for name in WEIGHTS)
    _, top, index, _, _ = _ops.topz_gate(x, call["feature"], *weights, z, True)
    order = x.sort(dim=1, descending=True, stable=True)
    values, empty = x.topk(z, dim=1).values, (x == -INF).all(dim=1, keepdim=True)
    hole = values == -INF
    torch.testing.assert_close(
        top, torch.where(hole, torch.where(empty, NAN, 0.0), values).to(top), rtol=0, atol=0,
        equal_nan=True,
    )  # fmt: skip
    assert torch.equal(index.long(), torch.where(hole, -1, order.indices[:, :z]))


def test_gate_of_mixed_dtypes() -> None:
    call = router(dtype=torch.float32)
    for logits in DTYPES:
        for feature in DTYPES:
            for weight in (torch.float32, torch.float64, torch.bfloat16):
                mixed = {k: v.to(weight) if k in WEIGHTS else v for k, v in call.items()}
                mixed["logits"] = call["logits"].to(logits)
                mixed["feature"] = call["feature"].to(feature)
                results = [gate_and_gradients(m, mixed, normal(3)) for m in (functional, reference)]
                for name in results[0]:
                    ours, expected = (r[name] for r in results)
                    assert ours.dtype == expected.dtype
                    tight = {"rtol": 1e-5, "atol": 1e-5}
                    loose = {"rtol": 2e-2, "atol": 1e-3}
                    how = loose if ours.element_size() == 2 else tight
                    torch.testing.assert_close(ours, expected, **how)


def test_gate_of_zero_and_tiny_features() -> None:
    for dtype in (torch.float64, torch.float32):
        call = router(4, dtype=dtype)
        call["feature"][0] = 0
        call["feature"][1] *= 1e-14
        call["feature"][2] *= 1e-11
        check_gate(call)


# --- derivatives ----------------------------------------------------------------------------------


def test_gradcheck() -> None:
    call = router()
    inputs = [call[name].requires_grad_() for name in INPUTS]
    assert gradcheck(lambda *x: functional.topz_gate(*x, z=3), inputs, check_batched_grad=True)
    share = torch.tensor([0.0, 1.0, 0.3, 1.0], dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        for gate in (normal(4), normal(2, 2)):
            assert gradcheck(
                lambda x, r=reduction: functional.routing_loss(x, share.view(x.shape), 7.0, r),
                gate.requires_grad_(),
                check_batched_grad=True,
            )


@pytest.mark.parametrize("wrt", [("w1",), ("b2",), ("logits",), ("feature",), WEIGHTS])
def test_only_asked_gradients(wrt: tuple[str, ...]) -> None:
    call = router()
    ours, expected = (gate_and_gradients(m, call, normal(3), wrt) for m in (functional, reference))
    for name in ("gate", *wrt):
        torch.testing.assert_close(ours[name], expected[name])


def test_second_backward_is_as_the_first() -> None:
    call = router()
    w1 = call["w1"].requires_grad_()
    gate = functional.topz_gate(**call)
    loss = functional.routing_loss(gate, torch.tensor([True, False, True]), 5.0)
    first = torch.autograd.grad(loss, w1, torch.tensor(1.0).double(), retain_graph=True)[0]
    again = torch.autograd.grad(loss, w1, torch.tensor(-2.0).double(), retain_graph=True)[0]
    torch.testing.assert_close(again, -2 * first)
    assert torch.equal(first, torch.autograd.grad(loss, w1)[0])


@pytest.mark.parametrize("wrt", INPUTS)
def test_second_derivative_is_an_error(wrt: str) -> None:
    call = router()
    x = call[wrt].requires_grad_()
    gate = functional.topz_gate(**call)
    (first,) = torch.autograd.grad(gate.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"`topz_gate`: .*twice.*backend\('reference'\)"):
        first.square().sum().backward()
    y = normal(3).requires_grad_()
    loss = functional.routing_loss(y, torch.tensor([True, False, True]))
    (first,) = torch.autograd.grad(loss, y, create_graph=True)
    with pytest.raises(RuntimeError, match=r"`routing_loss`: .*twice"):
        first.sum().backward()


def test_no_grad_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    kernel = _ops.topz_gate

    def counted(*args: Any) -> Any:
        kept.append(args[-1])
        return kernel(*args)

    monkeypatch.setattr(_ops, "topz_gate", counted)
    call = router()
    call["w1"].requires_grad_()
    functional.topz_gate(**call)
    with torch.no_grad():
        assert not functional.topz_gate(**call).requires_grad
    with ltkernels.backend("reference"):
        functional.topz_gate(**call)
    assert kept == [True, False]


def test_logits_are_not_kept_for_frozen_experts() -> None:
    call = router(64, 4000, z=30)
    saved: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        saved.append(x)
        return x

    for wrt in (WEIGHTS, ("logits",)):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            gate_and_gradients(functional, call, normal(64), wrt)
        held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in saved}
        assert sum(held.values()) < 64 * (30 * 12 + 8 * 20) + 8 * 100


# --- the loss -------------------------------------------------------------------------------------


@each_dtype
@settings(max_examples=settings.default.max_examples)
@given(
    shape=st.sampled_from([(0,), (1,), (17,), (3, 5), (2, 0), (1, 1)]),
    spread=st.sampled_from([1.0, 30.0, 1e4]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    flags=st.booleans(),
    weight=st.sampled_from([100.0, 1, 0.3]),
    seed=draw_.seeds,
)
def test_loss(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    spread: float,
    reduction: str,
    flags: bool,
    weight: float,
    seed: int,
) -> None:
    gate = (spread * normal(*shape, seed=seed)).clamp(-6e4, 6e4).to(dtype)
    share = torch.rand(shape, generator=draw_.generator(seed), dtype=torch.float64)
    share = torch.where(share < 0.2, 0.0, share)
    needs_help = share > 0.5 if flags else share.to(acc(dtype))
    results = []
    for module, x in ((functional, gate), (reference, gate.double())):
        leaf = x.clone().requires_grad_()
        loss = module.routing_loss(leaf, needs_help, weight, reduction)
        upstream = normal(*loss.shape, seed=seed).to(loss.dtype)
        results.append((loss.detach(), torch.autograd.grad(loss, leaf, upstream)[0]))
    (loss, gradient), (expected, exact) = results
    assert loss.dtype == acc(dtype)
    assert gradient.dtype == dtype
    tight = 1e-12 if dtype == torch.float64 else 4e-6
    torch.testing.assert_close(loss.double(), expected, rtol=tight, atol=tight, equal_nan=True)
    stored = max(tight, torch.finfo(dtype).eps)
    size = weight * tight
    torch.testing.assert_close(
        gradient.double(), exact, rtol=stored, atol=size + 2 * torch.finfo(dtype).tiny
    )


@each_module
def test_loss_of_infinite_gates(module: Any) -> None:
    gate = torch.tensor([INF, -INF, INF, -INF, 1e5, -1e5, NAN], requires_grad=True)
    needs_help = torch.tensor([True, True, False, False, False, True, True])
    loss = module.routing_loss(gate, needs_help, 3.0, "none")
    expected = torch.tensor([0.0, INF, INF, 0.0, 1e5, 3e5, NAN])
    torch.testing.assert_close(loss, expected, equal_nan=True)
    (gradient,) = torch.autograd.grad(loss.sum(), gate)
    torch.testing.assert_close(gradient, torch.tensor([0.0, -3, 1, 0, 1, -3, NAN]), equal_nan=True)


def test_small_gradients_of_float16_gates_survive_the_scaler() -> None:
    gate = torch.full((100_000,), -9.0, dtype=torch.float16, requires_grad=True)
    loss = functional.routing_loss(gate, torch.zeros(100_000, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(loss * 65536, gate)
    exact = 65536 / 100_000 * torch.sigmoid(torch.tensor(-9.0))
    torch.testing.assert_close(gradient[0].float(), exact, rtol=1e-3, atol=0)


# --- the labels -----------------------------------------------------------------------------------


@each_dtype
@settings(max_examples=settings.default.max_examples)
@given(data=st.data())
def test_target(dtype: torch.dtype, data: st.DataObject) -> None:
    n, c, k = data.draw(draw_.rows), data.draw(draw_.classes), data.draw(st.integers(1, 6))
    seed = data.draw(draw_.seeds)
    experts = [data.draw(draw_.logits(n, c, dtype)).build() for _ in range(k)]
    if data.draw(st.booleans()):
        experts = [x.round() for x in experts]
    # Mostly what some of them predict.
    target = draw_.class_indices(n, c, seed)
    upto = data.draw(st.integers(1, k + 1))
    if upto <= k:
        target = sum(x.to(acc(dtype)) for x in experts[:upto]).argmax(dim=1)
    ours = functional.routing_target(experts, target)
    assert ours.shape == (k - 1, n)
    assert torch.equal(ours, reference.routing_target(experts, target))
    if n > 0:
        assert torch.equal(functional.routing_target(torch.stack(experts), target), ours)


def test_target_of_more_experts_than_the_kernel_takes() -> None:
    experts, target = normal(20, 5, 7), torch.arange(5)
    ours = functional.routing_target(experts, target)
    assert torch.equal(ours, reference.routing_target(experts, target))


# --- routing at test time -------------------------------------------------------------------------


def routed(
    k: int, n: int, c: int, z: int, shared: bool, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Any]:
    d, h = 6, 5
    one_each = () if shared else (k - 1,)
    return {
        "expert_logits": [2 * normal(n, c, seed=seed + i, dtype=dtype) for i in range(k)],
        "features": [normal(n, d, seed=seed + 50 + i, dtype=dtype) for i in range(k - 1)],
        "w1": normal(k - 1, h, d, seed=seed + 90, dtype=acc(dtype)),
        "b1": normal(k - 1, h, seed=seed + 91, dtype=acc(dtype)),
        "w2": normal(*one_each, 1, z + h, seed=seed + 92, dtype=acc(dtype)),
        "b2": normal(*one_each, 1, seed=seed + 93, dtype=acc(dtype)),
        "z": z,
    }


def gates_of(call: dict[str, Any]) -> Tensor:
    """Of every sample at every router, whether it comes to it or not, `[K - 1, N]`."""
    wide = {k: v.double() if isinstance(v, Tensor) else v for k, v in call.items()}
    experts = torch.stack([x.double() for x in call["expert_logits"]]).cumsum(dim=0)
    gates = []
    for i, feature in enumerate(call["features"]):
        w2, b2 = (x[i] if wide["w2"].dim() == 3 else x for x in (wide["w2"], wide["b2"]))
        mean = experts[i] / (i + 1)
        args = (mean, feature.double(), wide["w1"][i], wide["b1"][i], w2, b2, call["z"])
        gates.append(reference.topz_gate(*args))
    return torch.stack(gates) if gates else experts[:0, :, 0]


@each_dtype
@pytest.mark.parametrize("shared", [True, False])
@settings(max_examples=settings.default.max_examples)
@given(
    k=st.integers(1, 5),
    n=st.sampled_from([0, 1, 5, 33]),
    c=st.sampled_from([1, 2, 17, 100, 1030]),
    share=st.floats(0, 1),
    threshold=st.sampled_from([0.0, -1.5, 2, INF, -INF]),
    seed=draw_.seeds,
)
def test_routing(
    dtype: torch.dtype,
    shared: bool,
    k: int,
    n: int,
    c: int,
    share: float,
    threshold: float,
    seed: int,
) -> None:
    call = routed(k, n, c, 1 + int(share * (min(c, 80) - 1)), shared, dtype, seed)
    call["threshold"] = threshold
    assume(not ((gates_of(call) - threshold).abs() < 1e-4).any())
    logits, experts = functional.route_experts(**call)
    expected, used = reference.route_experts(**call)
    assert logits.dtype == acc(dtype)
    assert experts.dtype == torch.int64
    assert torch.equal(experts, used)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    # The formula itself.
    gates = gates_of(call)
    for row in range(n):
        count = 1
        while count < k and gates[count - 1, row] > threshold:
            count += 1
        assert count == used[row]
        mean = torch.stack([x[row].double() for x in call["expert_logits"][:count]]).mean(dim=0)
        torch.testing.assert_close(expected[row].double(), mean, rtol=1e-5, atol=1e-5)


@each_module
def test_samples_that_stopped_do_not_ask_on(module: Any) -> None:
    call = routed(3, 40, 9, 4, False)
    call["b2"] -= gates_of(call).median(dim=1, keepdim=True).values  # half go on
    logits, experts = module.route_experts(**call)
    assert set(experts.tolist()) == {1, 2, 3}
    for i in range(1, 3):
        call["expert_logits"][i][experts <= i] = NAN
    for i in range(2):
        call["features"][i][experts <= i] = NAN
    again, same = module.route_experts(**call)
    assert torch.equal(experts, same)
    assert torch.equal(logits, again)


@each_module
def test_forms_of_the_arguments(module: Any) -> None:
    call = routed(3, 7, 9, 4, True)
    logits, experts = module.route_experts(**call)
    stacked = {**call, "expert_logits": torch.stack(call["expert_logits"])}
    stacked["features"] = torch.stack([*call["features"], call["features"][0]])  # one too many
    stacked["w1"] = call["w1"].clone().requires_grad_()
    again, same = module.route_experts(**stacked)
    assert not again.requires_grad
    assert torch.equal(logits, again)
    assert torch.equal(experts, same)
    strided = {**call, "expert_logits": [x.t().contiguous().t() for x in call["expert_logits"]]}
    strided["features"] = [torch.stack([x, x], dim=2)[..., 0] for x in call["features"]]
    assert torch.equal(module.route_experts(**strided)[0], logits)
    stop, one = module.route_experts(**{**call, "b2": torch.full((1,), NAN).double()})
    assert torch.equal(stop, call["expert_logits"][0])
    assert (one == 1).all()


# --- official vectors -----------------------------------------------------------------------------


@pytest.fixture
def case() -> Case:
    return load_case("ride", "ea_cifar_B8_C10_n2_top5_pos20_share_f64")


EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}


def test_official_router(case: Case) -> None:
    weights = {name: case.leaf(name) for name in ("W1", "b1", "W2", "b2")}
    gate = functional.topz_gate(
        case["expert_logits"][0],
        case["expert_feature_maps"][0].mean(dim=(2, 3)),
        *(x[0] for x in weights.values()),
        z=case.params["top_choices_num"],
    )
    torch.testing.assert_close(gate.unsqueeze(1), case["pred_logits"], **EXACT)
    needs_help = functional.routing_target(case["expert_logits"], case["target"])
    loss = functional.routing_loss(gate, needs_help[0], case.params["pos_weight"])
    torch.testing.assert_close(loss, case["train_loss"][0], **EXACT)
    grads = torch.autograd.grad(loss, list(weights.values()))
    for name, grad in zip(weights, grads, strict=True):
        torch.testing.assert_close(grad, case[f"grad_{name}"], **EXACT)


@each_module
def test_official_routing(case: Case, module: Any) -> None:
    logits, experts = module.route_experts(
        case["expert_logits"],
        case["expert_feature_maps"].mean(dim=(3, 4)),
        case["W1"],
        case["b1"],
        case["W2"],
        case["b2"],
        z=case.params["top_choices_num"],
    )
    torch.testing.assert_close(logits, case["test_output"], **EXACT)
    assert torch.equal(experts, case["test_num_experts"].long().flatten())


# --- transforms, compilation, threads -------------------------------------------------------------


def training_step(module: Any, call: dict[str, Any], w1: Tensor, target: Tensor) -> Tensor:
    gate = module.topz_gate(**{**call, "w1": w1})
    needs_help = module.routing_target([call["logits"], -call["logits"]], target)
    return module.routing_loss(gate, needs_help[0])


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_to_one_graph(dynamic: bool) -> None:
    compiled = torch.compile(
        lambda call, w1, y: training_step(functional, call, w1, y), fullgraph=True, dynamic=dynamic
    )
    for n in (4, 6):
        call, target = router(n, dtype=torch.float32), torch.arange(n)
        for name in ("logits", "feature"):
            call[name].requires_grad_()
        wrt = [call["w1"].requires_grad_(), call["logits"], call["feature"]]
        ours = compiled(call, call["w1"], target)
        expected = training_step(functional, call, call["w1"], target)
        torch.testing.assert_close(ours, expected)
        for a, b in zip(
            torch.autograd.grad(ours, wrt), torch.autograd.grad(expected, wrt), strict=True
        ):
            torch.testing.assert_close(a, b)
    route = torch.compile(functional.route_experts, fullgraph=True, dynamic=dynamic)
    many = routed(3, 7, 9, 4, True)
    for a, b in zip(route(**many), functional.route_experts(**many), strict=True):
        assert torch.equal(a, b)


def test_func_transforms_take_the_definition() -> None:
    call, target = router(), torch.arange(3)

    def loss(module: Any) -> Any:
        return lambda w1: training_step(module, call, w1, target)

    grad = torch.func.grad(loss(functional))(call["w1"])
    leaf = call["w1"].clone().requires_grad_()
    torch.testing.assert_close(grad, torch.autograd.grad(loss(reference)(leaf), leaf)[0])
    batch = torch.stack([call["w1"], 2 * call["w1"]])
    each = torch.stack([loss(functional)(w1) for w1 in batch])
    torch.testing.assert_close(torch.vmap(loss(functional))(batch), each)
    assert torch.func.jvp(loss(functional), (leaf,), (leaf,))[1].isfinite()


def test_autocast_changes_nothing() -> None:
    call, many = router(dtype=torch.bfloat16), routed(3, 7, 9, 4, True, torch.bfloat16)
    upstream = normal(3, dtype=torch.float32)
    outside = gate_and_gradients(functional, call, upstream), functional.route_experts(**many)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gate_and_gradients(functional, call, upstream), functional.route_experts(**many)
    for name in outside[0]:
        assert torch.equal(inside[0][name], outside[0][name])
    assert torch.equal(inside[1][0], outside[1][0])


@each_dtype
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    call, many = router(67, 1500, 200, 16, 30, dtype), routed(3, 67, 1500, 30, True, dtype)
    target = torch.arange(67)

    def results() -> list[Tensor]:
        found = gate_and_gradients(functional, call, normal(67, dtype=acc(dtype)))
        labels = functional.routing_target(many["expert_logits"], target)
        return [*found.values(), labels, *functional.route_experts(**many)]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = results()
        for count in (2, 3):
            torch.set_num_threads(count)
            for ours, expected in zip(results(), first, strict=True):
                assert torch.equal(ours, expected)
    finally:
        torch.set_num_threads(threads)


def test_rows_far_apart() -> None:
    """Row offsets of more than 2^31 elements."""
    stride, c = 2**31 + 7, 40
    call = router(2, c, dtype=torch.bfloat16)
    x = torch.empty(stride + c, dtype=torch.bfloat16).as_strided((2, c), (stride, 1))
    x.copy_(call["logits"])
    near, far = (functional.topz_gate(**{**call, "logits": y}) for y in (call["logits"], x))
    assert torch.equal(near, far)
    labels = functional.routing_target([x, x], torch.tensor([0, 1]))
    assert torch.equal(
        labels, functional.routing_target([call["logits"]] * 2, torch.tensor([0, 1]))
    )


# --- errors ---------------------------------------------------------------------------------------

G, H = torch.zeros(3), torch.tensor([True, False, True])
BAD: list[tuple[str, type[Exception], str, dict[str, Any]]] = [
    ("topz_gate", ValueError, r"`z` in 1\.\.C = 1\.\.9, got 10", {"z": 10}),
    ("topz_gate", TypeError, "`z` to be an int, got bool", {"z": True}),
    ("topz_gate", ValueError, r"`feature` to be \[N, D\] = \[3, 5\]", {"feature": normal(2, 5)}),
    ("topz_gate", ValueError, r"`w2` to be \[1, z \+ h\] = \[1, 7\]", {"w2": normal(1, 8)}),
    ("routing_loss", ValueError, "`needs_help` to have the shape", {"needs_help": H[:2]}),
    ("routing_loss", TypeError, "`needs_help` to be bool or floating", {"needs_help": H.long()}),
    ("routing_loss", ValueError, "`pos_weight` to be finite and > 0", {"pos_weight": -1.0}),
    ("routing_target", IndexError, "`target` in 0..8, got 9", {"target": torch.tensor([0, 1, 9])}),
    ("routing_target", ValueError, "`expert_logits` to be", {"expert_logits": []}),
    ("route_experts", TypeError, "`features` to be tensors", {"features": None}),
    ("route_experts", ValueError, r"`features` to be \[K - 1, N, D\]", {"features": normal(7, 6)}),
    (
        "route_experts",
        ValueError,
        "`features` of K - 1 = 2 .*, got 1",
        {"features": [normal(7, 6)]},
    ),
    (
        "route_experts",
        ValueError,
        r"`features\[1\]` to be \[N, D\] = \[7, 6\], got \[7, 5\]",
        {"features": [normal(7, 6), normal(7, 5)]},
    ),
    (
        "route_experts",
        TypeError,
        r"`features\[1\]` to be torch.float64 like `features\[0\]`",
        {"features": [normal(7, 6), normal(7, 6).float()]},
    ),
    ("route_experts", ValueError, r"`w1` to be \[K - 1, h, D\]", {"w1": normal(3, 5, 6)}),
    ("route_experts", ValueError, r"`b1` to be \[K - 1, h\] = \[2, 5\]", {"b1": normal(2, 4)}),
    ("route_experts", ValueError, r"`w2` to be \[1, z \+ h\] = \[1, 9\] or", {"w2": normal(2, 9)}),
    ("route_experts", ValueError, "`b2` to be shared where `w2` is", {"b2": normal(2, 1)}),
    ("route_experts", TypeError, "`w1` to be a floating tensor", {"w1": normal(2, 5, 6).long()}),
    ("route_experts", ValueError, r"`z` in 1\.\.C = 1\.\.9, got 0", {"z": 0}),
    ("route_experts", ValueError, "`threshold` to be a number, got nan", {"threshold": NAN}),
    ("route_experts", TypeError, "`threshold` to be a number, got str", {"threshold": "0"}),
]


@each_module
@pytest.mark.parametrize(("op", "error", "message", "change"), BAD)
def test_errors(
    module: Any, op: str, error: type[Exception], message: str, change: dict[str, Any]
) -> None:
    good: dict[str, dict[str, Any]] = {
        "topz_gate": router(),
        "routing_loss": {"gate": G, "needs_help": H},
        "routing_target": {"expert_logits": normal(2, 3, 9), "target": torch.arange(3)},
        "route_experts": routed(3, 7, 9, 4, True),
    }
    getattr(module, op)(**good[op])
    with pytest.raises(error, match=f"`{op}`: expected {message}"):
        getattr(module, op)(**{**good[op], **change})


def test_signatures_and_documents_are_the_definitions() -> None:
    import inspect

    for op in ("topz_gate", "routing_loss", "routing_target", "route_experts"):
        fused, definition = getattr(functional, op), getattr(reference, op)
        assert inspect.signature(fused) == inspect.signature(definition)
        assert fused.__doc__ == definition.__doc__
