"""ECLLoss: vectors of the paper's equations and of NCL's contrast, every open choice, the state."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as torch_f

from golden_vectors import cases, load_case
from ltkernels import functional
from ltkernels.losses import ECLLoss

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
COUNTS = [500, 100, 20, 5]
K, N, C, D, E, Q = 3, 6, 4, 5, 7, 9


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def step() -> dict[str, Any]:
    """All inputs of a training step."""
    return {
        "cls_logits": 3 * draw(K, N, C),
        "ref_logits": 3 * draw(K, N, C, seed=1),
        "target": torch.randint(C, (N,), generator=torch.Generator().manual_seed(0)),
        "features": draw(K, N, D, seed=2),
        "query": draw(K, N, E, seed=3),
        "key": draw(K, N, E, seed=4),
        "queue": torch_f.normalize(draw(K, Q, E, seed=5), dim=2),
    }


# --- vectors --------------------------------------------------------------------------------------


def test_supervision_vector() -> None:
    case = load_case("derived", "ecl_sup_eq10_B4_C10")
    cls, ref = case.leaf("cls_logits"), case.leaf("ref_logits")
    loss = ECLLoss(case["cls_num_list"], alpha=0.0)(cls, ref, case["target"])
    torch.testing.assert_close(loss, case["loss"], **EXACT)
    loss.backward()
    torch.testing.assert_close(cls.grad, case["grad_cls"], **EXACT)
    torch.testing.assert_close(ref.grad, case["grad_ref"], **EXACT)


@pytest.mark.parametrize("case_id", cases("derived", "ECL eq. 7"))
def test_logit_distillation_vectors(case_id: str) -> None:
    case = load_case("derived", case_id)
    cls = case.leaf("cls_logits")
    loss = ECLLoss(
        [1] * cls.shape[2],
        temperature=case.params["tau"],
        direction="teacher_first" if "teacherfirst" in case_id else "as_printed",
        detach_teacher=case.params["detach_q"],
    )
    ref = case.leaf("ref_logits")
    value = loss.terms(cls, ref, case["target"])["logit"]
    torch.testing.assert_close(value, case["loss"], **EXACT)
    value.backward()
    torch.testing.assert_close(cls.grad, case["grad_cls_logits"], **EXACT)
    assert ref.grad is None


@pytest.mark.parametrize("case_id", cases("derived", "ECL eq. 8"))
def test_feature_distillation_vectors(case_id: str) -> None:
    case = load_case("derived", case_id)
    features = case.leaf("features")
    heads = draw(2, 4, C)
    loss = ECLLoss(COUNTS, feature_reduction=case.params["reduction"])
    value = loss.terms(heads, heads, torch.zeros(4, dtype=torch.int64), features=features)
    torch.testing.assert_close(value["feature"], case["loss"], **EXACT)
    value["feature"].backward()
    torch.testing.assert_close(features.grad, case["grad"], **EXACT)


def test_contrast_vector() -> None:
    case = load_case("ecl_base_ncl", "moco_B4_d16_K64_n2_T0.2_f64")
    query, heads = case.leaf("q"), draw(2, 4, C)
    terms = ECLLoss(COUNTS).terms(
        heads,
        heads,
        torch.zeros(4, dtype=torch.int64),
        query=query,
        key=case["k"],
        queue=case["queue"].transpose(1, 2),
    )
    torch.testing.assert_close(terms["contrast"], case["loss_con"], **EXACT)
    terms["contrast"].backward()
    torch.testing.assert_close(query.grad, case["grad_q"], **EXACT)


@pytest.mark.parametrize("case_id", cases("derived", "ECL eqs. 5-6"))
def test_weights_vectors(case_id: str) -> None:
    """The logit term is the collaborative distillation with the stored weights."""
    case = load_case("derived", case_id)
    cls, ref, target = case["cls_logits"], case["ref_logits"], case["target"]
    loss = ECLLoss(
        [1] * cls.shape[2],
        ratio="rhs" if "rhs" in case_id else "lhs",
        unbiased="unbiased=True" in case.params["std"],
    )
    expected = functional.collaborative_kd_loss(cls, sample_weight=case["weight"])
    torch.testing.assert_close(loss.terms(cls, ref, target)["logit"], expected, **EXACT)


# --- the open choices -----------------------------------------------------------------------------


def test_total() -> None:
    call = step()
    loss = ECLLoss(COUNTS, 0.5, 2.0)
    terms = loss.terms(**call)
    assert set(terms) == {"supervision", "logit", "feature", "contrast"}
    expected = terms["supervision"] + 0.5 * (terms["logit"] + terms["feature"])
    torch.testing.assert_close(loss(**call), expected + 2.0 * terms["contrast"])
    default = ECLLoss(COUNTS)
    assert (default.alpha, default.beta) == (0.6, 1.0)
    for name in ("features", "query"):
        fewer = {k: v for k, v in call.items() if k != name}
        if name == "query":
            fewer.pop("key")
            fewer.pop("queue")
        left = loss.terms(**fewer)
        assert set(left) == set(terms) - {"feature" if name == "features" else "contrast"}
        torch.testing.assert_close(left["logit"], terms["logit"])


def logit_term(sample_weight: Tensor | None, logits: Tensor | None = None) -> Tensor:
    logits = step()["cls_logits"] if logits is None else logits
    return functional.collaborative_kd_loss(logits, sample_weight=sample_weight)


def weights(unbiased: bool = True) -> Tensor:
    call = step()

    def cross_entropy(logits: Tensor) -> Tensor:
        z = logits / logits.std(dim=2, keepdim=True, correction=int(unbiased))
        return -z.log_softmax(2).gather(2, call["target"].expand(K, N).unsqueeze(2)).squeeze(2)

    return cross_entropy(call["cls_logits"]) / cross_entropy(call["ref_logits"])


def test_choices_of_the_weights() -> None:
    call, w = step(), weights()
    bias = (torch.tensor(COUNTS) / 625).double().log()
    for options, expected in (
        ({}, logit_term(w)),
        ({"balance": False}, logit_term(None)),
        ({"ratio": "lhs"}, logit_term(1 / w)),
        ({"unbiased": False}, logit_term(weights(unbiased=False))),
        ({"normalize_mean": True}, logit_term(w / w.mean(dim=1, keepdim=True))),
        ({"kd_logits": "adjusted"}, logit_term(w, call["cls_logits"] + bias)),
        ({"kd_logits": "adjusted", "tau": 0.0}, logit_term(w)),
    ):
        loss = ECLLoss(COUNTS, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(loss.terms(**call)["logit"], expected)


def test_weights_with_a_gradient() -> None:
    call = step()
    ref = call["ref_logits"].requires_grad_()
    for detach in (True, False):
        term = ECLLoss(COUNTS, detach=detach).terms(**call)["logit"]
        grad = torch.autograd.grad(term, ref, allow_unused=True) if term.requires_grad else (None,)
        assert (grad[0] is None) == detach


def test_other_choices() -> None:
    call = step()

    def terms(**options: Any) -> dict[str, Tensor]:
        return ECLLoss(COUNTS, **options).terms(**call)

    plain = terms()
    for name, options, factor in (
        ("supervision", {"expert_reduction": "sum"}, K),
        ("feature", {"feature_reduction": "sum"}, N),
        ("contrast", {"contrast_reduction": "sum"}, N),
        ("contrast", {"contrast_expert_reduction": "mean"}, 1 / K),
    ):
        torch.testing.assert_close(terms(**options)[name], factor * plain[name])
    for options in ({"direction": "teacher_first"}, {"temperature": 2.0}, {"eps": 10.0}):
        assert not torch.isclose(terms(**options)["logit"], plain["logit"])
    unscaled = {**call, "query": 2 * call["query"], "key": 3 * call["key"]}
    torch.testing.assert_close(ECLLoss(COUNTS).terms(**unscaled), plain)
    as_given = ECLLoss(COUNTS, normalize=False).terms(**unscaled)["contrast"]
    similarity = torch.stack(
        [
            functional.info_nce(q, k, u)
            for q, k, u in zip(unscaled["query"], unscaled["key"], call["queue"], strict=True)
        ]
    )
    torch.testing.assert_close(as_given, similarity.sum())
    warm = terms(contrast_temperature=0.5)["contrast"]
    assert not torch.isclose(warm, plain["contrast"])


def test_detached_teacher_reaches_features_too() -> None:
    call = step()
    features = call["features"].requires_grad_()
    both, student = (
        torch.autograd.grad(
            ECLLoss(COUNTS, detach_teacher=detach).terms(**call)["feature"], features
        )[0]
        for detach in (False, True)
    )
    assert not torch.allclose(both, student)


def test_supervision_is_of_adjusted_logits() -> None:
    call = step()
    bias = 0.5 * (torch.tensor(COUNTS) / 625).double().log()
    heads = torch.cat([call["cls_logits"], call["ref_logits"]]) + bias
    expected = torch.stack([torch_f.cross_entropy(z, call["target"]) for z in heads]).sum() / K
    term = ECLLoss(COUNTS, tau=0.5).terms(**call)["supervision"]
    torch.testing.assert_close(term, expected)


def test_reductions() -> None:
    call = step()
    mean = ECLLoss(COUNTS)(**call)
    torch.testing.assert_close(ECLLoss(COUNTS, reduction="sum")(**call), N * mean)
    rows = ECLLoss(COUNTS, reduction="none")(**call)
    assert rows.shape == (N,)
    torch.testing.assert_close(rows.mean(), mean)


def test_one_expert_has_no_distillation() -> None:
    call = {name: x if name == "target" else x[:1] for name, x in step().items()}
    terms = ECLLoss(COUNTS).terms(**call)
    assert terms["logit"] == 0
    assert terms["feature"] == 0


def test_infinite_logits() -> None:
    call = step()
    hole = (call["target"][0] + 1) % C
    call["cls_logits"][:, 0, hole] = float("-inf")
    call["ref_logits"][:, 1, (call["target"][1] + 1) % C] = float("-inf")
    leaves = [call[name].requires_grad_() for name in ("cls_logits", "ref_logits")]
    for options in ({}, {"detach": False}, {"kd_logits": "adjusted"}):
        loss = ECLLoss(COUNTS, **options)(**call)  # type: ignore[arg-type]
        assert loss.isfinite()
        grads = torch.autograd.grad(loss, leaves)
        assert all(grad.isfinite().all() for grad in grads)
        assert (grads[0][:, 0, hole] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_float32_arithmetic(dtype: torch.dtype) -> None:
    call = {k: v.to(dtype) if v.is_floating_point() else v for k, v in step().items()}
    for kd_logits in ("raw", "adjusted"):
        loss = ECLLoss(COUNTS, kd_logits=kd_logits)  # type: ignore[arg-type]
        assert all(term.dtype == torch.float32 for term in loss.terms(**call).values())


# --- state ----------------------------------------------------------------------------------------


def test_state_travels() -> None:
    call = step()
    loss = ECLLoss(COUNTS)
    loss.on_epoch_start(3)
    expected = loss(**call)
    fresh = ECLLoss([9, 9, 9, 8])
    fresh.load_state_dict(loss.state_dict())
    for other in (fresh, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(other(**call), expected, rtol=0, atol=0)
    assert all(x.dtype == torch.float64 for x in loss.half().buffers())
    torch.testing.assert_close(ECLLoss(cls_num_list=COUNTS)(**call), expected)


def test_traces_in_one_graph() -> None:
    call = step()
    loss = ECLLoss(COUNTS)
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(**call), loss(**call))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ECLLoss(), TypeError, "`ECLLoss`: expected `class_counts`"),
        (lambda: ECLLoss(COUNTS, temperature=0.0), ValueError, "`temperature`"),
        (lambda: ECLLoss(COUNTS, contrast_temperature=0.0), ValueError, "`contrast_temperature`"),
        (lambda: ECLLoss(COUNTS, ratio="both"), ValueError, "`ratio` to be 'rhs' or 'lhs'"),  # type: ignore[arg-type]
        (lambda: ECLLoss(COUNTS, kd_logits="z"), ValueError, "`kd_logits`"),  # type: ignore[arg-type]
        (lambda: ECLLoss(COUNTS, direction="z"), ValueError, "`direction`"),  # type: ignore[arg-type]
        (lambda: ECLLoss(COUNTS, feature_reduction="none"), ValueError, "`feature_reduction`"),  # type: ignore[arg-type]
        (lambda: ECLLoss(COUNTS, eps=0.0), ValueError, "`eps`"),
        (lambda: ECLLoss(COUNTS, alpha="1"), TypeError, "`alpha`"),  # type: ignore[arg-type]
        (
            lambda: ECLLoss(COUNTS)(**{**step(), "ref_logits": step()["ref_logits"][:2]}),
            ValueError,
            "`ref_logits` of K = 3 experts like `cls_logits`, got 2",
        ),
        (
            lambda: ECLLoss(COUNTS)(**{**step(), "queue": step()["queue"][0]}),
            ValueError,
            r"`queue` to be \[K, Q, E\] or a sequence",
        ),
        (
            lambda: ECLLoss(COUNTS)(**{**step(), "key": None}),
            ValueError,
            "expected `key` where `query` is given",
        ),
        (
            lambda: ECLLoss(COUNTS)(**{**step(), "query": None}),
            ValueError,
            "expected `query` where `key` or `queue` is given",
        ),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
