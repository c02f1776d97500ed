"""torch.library.opcheck on every native op, and what the ops do when they are called directly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ltkernels import _ops

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
TESTS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
N, C, S = 3, 37, 5
Overrides = dict[str, Any]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)


def acc(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def distillation(dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, ...]:
    arguments: dict[str, Any] = {
        "student": draw(N, C, dtype=dtype),
        "teacher": draw(N, C, seed=1, dtype=dtype),
        "temperature": 2.0,
        "row_temperature": None,
        "column_temperature": None,
        "class_weight": None,
        "kl_factor": 4.0,
        "row_factor": None,
        "target": None,
        "target_b": None,
        "lam": 1.0,
        "row_lam": None,
        "soft_target": None,
        "reduction": 1,
        "student_gradient": True,
        "teacher_gradient": True,
    }
    assert changes.keys() <= arguments.keys()
    return tuple({**arguments, **changes}.values())


def subsets(dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, ...]:
    arguments: dict[str, Any] = {
        "student": draw(N, C, dtype=dtype),
        "teachers": [draw(N, S, seed=1, dtype=dtype), draw(N, 2, seed=2, dtype=dtype)],
        "classes": [torch.tensor([4, 0, 36, 7, 1]), torch.tensor([2, 3])],
        "temperature": 2.0,
        "row_temperature": None,
        "column_temperature": None,
        "kl_factor": [4.0, 1.0],
        "subset_factor": None,
        "row_factor": None,
        "reduction": 1,
        "student_gradient": True,
        "teacher_gradient": True,
    }
    assert changes.keys() <= arguments.keys()
    return tuple({**arguments, **changes}.values())


def adjusted(dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, ...]:
    arguments: dict[str, Any] = {
        "logits": draw(N, C, dtype=dtype),
        "target": torch.tensor([0, 36, -100]),
        "scale": 1.0,
        "margin": None,
        "bias": None,
        "class_weight": None,
        "label_smoothing": 0.0,
        "focal_gamma": 0.0,
        "ignore_index": -100,
        "reduction": 1,
        "gradient": True,
    }
    assert changes.keys() <= arguments.keys()
    return tuple({**arguments, **changes}.values())


def experts(dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, ...]:
    arguments: dict[str, Any] = {
        "logits": [draw(N, C, seed=k, dtype=dtype) for k in range(3)],
        "target": None,
        "margin": None,
        "class_weight": None,
        "cross_entropy": _ops.NO_CROSS_ENTROPY,
        "ce_factor": 1.0,
        "divergence": _ops.FROM_MEAN,
        "temperature": 2.0,
        "row_temperature": None,
        "column_temperature": None,
        "kl_factor": 4.0,
        "row_factor": None,
        "sample_weight": None,
        "weight_of_second": False,
        "first_gradient": True,
        "second_gradient": True,
        "reduction": 1,
        "gradient": True,
    }
    assert changes.keys() <= arguments.keys()
    return tuple({**arguments, **changes}.values())


def distillation_variants(dtype: torch.dtype) -> dict[str, Overrides]:
    a, hard = acc(dtype), torch.tensor([0, 36, 7])
    return {
        "kd": {},
        "forward": {"student_gradient": False, "teacher_gradient": False},
        "teacher only": {"student_gradient": False},
        "columns": {
            "column_temperature": torch.rand(C, dtype=a) + 1,
            "row_factor": torch.rand(1, dtype=a),
            "reduction": 0,
        },
        "rows": {
            "row_temperature": torch.rand(N, dtype=a) + 1,
            "row_factor": torch.rand(N, dtype=a),
            "reduction": 2,
        },
        "hard": {"target": hard, "class_weight": torch.rand(C, dtype=a), "teacher_gradient": False},
        "mixup": {"target": hard, "target_b": hard.flip(0), "row_lam": torch.rand(N, dtype=a)},
        "soft": {"soft_target": torch.rand(N, C, dtype=a), "teacher_gradient": False},
        "strided": {
            "student": draw(C, N, dtype=dtype).t(),
            "teacher": draw(1, C, dtype=dtype).expand(N, C),
        },
        "no rows": {
            "student": draw(0, C, dtype=dtype),
            "teacher": draw(0, C, dtype=dtype),
            "reduction": 2,
        },
    }


def subsets_variants(dtype: torch.dtype) -> dict[str, Overrides]:
    a = acc(dtype)
    return {
        "plain": {},
        "forward": {"student_gradient": False, "teacher_gradient": False},
        "student only": {"teacher_gradient": False, "reduction": 2},
        "teachers only": {"student_gradient": False, "reduction": 0},
        "one": {
            "teachers": [draw(N, S, dtype=dtype)],
            "classes": [torch.arange(S)],
            "kl_factor": [1.0],
        },
        "factors": {
            "column_temperature": torch.rand(C, dtype=a) + 1,
            "subset_factor": torch.rand(2, dtype=a),
            "row_factor": torch.rand(N, dtype=a),
            "reduction": 0,
        },
        "strided, overlapping": {
            "student": draw(C, N, dtype=dtype).t(),
            "teachers": [draw(1, S, dtype=dtype).expand(N, S), draw(2, N, dtype=dtype).t()],
            "classes": [torch.arange(2 * S)[::2], torch.tensor([2, 3])],
            "row_temperature": torch.rand(N, dtype=a) + 1,
        },
        "no rows": {
            "student": draw(0, C, dtype=dtype),
            "teachers": [draw(0, S, dtype=dtype), draw(0, 2, dtype=dtype)],
            "reduction": 2,
        },
    }


def adjusted_variants(dtype: torch.dtype) -> dict[str, Overrides]:
    a = acc(dtype)
    vectors = {
        name: torch.rand(C, generator=torch.Generator().manual_seed(i), dtype=a)
        for i, name in enumerate(("margin", "bias", "class_weight"))
    }
    return {
        "plain": {},
        "forward": {"gradient": False, "reduction": 2},
        "all": {
            "scale": 30.0,
            "label_smoothing": 0.1,
            "focal_gamma": 2.0,
            "reduction": 0,
            **vectors,
        },
        "strided": {"logits": draw(C, N, dtype=dtype).t()},
        "no rows": {
            "logits": draw(0, C, dtype=dtype),
            "target": torch.zeros(0, dtype=torch.int64),
            "reduction": 2,
        },
    }


def experts_variants(dtype: torch.dtype) -> dict[str, Overrides]:
    a, target = acc(dtype), torch.tensor([0, 36, 7])
    each = {"target": target, "cross_entropy": _ops.OF_EACH}
    return {
        "diversity": {},
        "forward": {"gradient": False, "reduction": 0},
        "ride": {
            **each,
            "margin": torch.rand(C, dtype=a),
            "class_weight": torch.rand(C, dtype=a),
            "column_temperature": torch.rand(C, dtype=a) + 1,
            "row_factor": torch.rand(1, dtype=a),
        },
        "cross-entropies": {**each, "divergence": _ops.NO_DIVERGENCE, "reduction": 0},
        "of the mean": {"target": target, "cross_entropy": _ops.OF_MEAN, "reduction": 2},
        "pairwise": {
            "divergence": _ops.PAIRWISE,
            "row_temperature": torch.rand(N, dtype=a) + 1,
            "row_factor": torch.rand(N, dtype=a),
            "sample_weight": torch.rand(3, N, dtype=a),
            "weight_of_second": True,
            "first_gradient": False,
        },
        "one expert": {"logits": [draw(N, C, dtype=dtype)], "divergence": _ops.PAIRWISE},
        "strided": {"logits": [draw(C, N, dtype=dtype).t(), draw(1, C, dtype=dtype).expand(N, C)]},
        "no rows": {
            "logits": [draw(0, C, dtype=dtype), draw(0, C, dtype=dtype)],
            "reduction": 2,
        },
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", experts_variants(torch.float32))
def test_experts(variant: str, dtype: torch.dtype) -> None:
    changes = experts_variants(dtype)[variant]
    opcheck(_ops.experts, experts(dtype, **changes), test_utils=TESTS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", distillation_variants(torch.float32))
def test_distillation(variant: str, dtype: torch.dtype) -> None:
    changes = distillation_variants(dtype)[variant]
    opcheck(_ops.distillation, distillation(dtype, **changes), test_utils=TESTS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", subsets_variants(torch.float32))
def test_subset_distillation(variant: str, dtype: torch.dtype) -> None:
    changes = subsets_variants(dtype)[variant]
    opcheck(_ops.subset_distillation, subsets(dtype, **changes), test_utils=TESTS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", adjusted_variants(torch.float32))
def test_adjusted_cross_entropy(variant: str, dtype: torch.dtype) -> None:
    changes = adjusted_variants(dtype)[variant]
    opcheck(_ops.adjusted_cross_entropy, adjusted(dtype, **changes), test_utils=TESTS)


def info_nce(dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, ...]:
    arguments: dict[str, Any] = {
        "query": draw(N, C, dtype=dtype),
        "key": draw(N, C, seed=1, dtype=dtype),
        "queue": draw(70, C, seed=2, dtype=dtype),
        "temperature": 0.5,
        "row_temperature": None,
        "reduction": 1,
        "gradient": True,
    }
    assert changes.keys() <= arguments.keys()
    return tuple({**arguments, **changes}.values())


def info_nce_variants(dtype: torch.dtype) -> dict[str, Overrides]:
    return {
        "plain": {},
        "forward": {"gradient": False, "reduction": 2},
        "rows": {"row_temperature": torch.rand(N, dtype=acc(dtype)) + 0.5, "reduction": 0},
        "strided": {
            "query": draw(C, N, dtype=dtype).t(),
            "key": draw(1, C, dtype=dtype).expand(N, C),
            "queue": draw(C, 70, dtype=torch.bfloat16).t(),
        },
        "no queue": {"queue": draw(0, C, dtype=dtype)},
        "no rows": {"query": draw(0, C, dtype=dtype), "key": draw(0, C), "reduction": 2},
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", info_nce_variants(torch.float32))
def test_info_nce(variant: str, dtype: torch.dtype) -> None:
    changes = info_nce_variants(dtype)[variant]
    opcheck(_ops.info_nce, info_nce(dtype, **changes), test_utils=TESTS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_knowledge_balance_weight(dtype: torch.dtype) -> None:
    heads = draw(N, C, dtype=dtype), draw(C, N, seed=1, dtype=dtype).t()
    target = torch.tensor([0, 36, 7])
    opcheck(_ops.knowledge_balance_weight, (*heads, target, 1e-6), test_utils=TESTS)
    nothing = draw(0, C, dtype=dtype)
    opcheck(_ops.knowledge_balance_weight, (nothing, nothing, target[:0], 1.0), test_utils=TESTS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale_gradient(dtype: torch.dtype) -> None:
    a = acc(dtype)
    for upstream in (
        torch.tensor(3.0, dtype=a),
        torch.rand(N, dtype=a),
        torch.ones((), dtype=a).expand(N),
    ):
        for scale in (torch.zeros(0), torch.rand(N, dtype=a)):
            arguments = (draw(N, C, dtype=dtype), upstream, scale)
            opcheck(_ops.scale_gradient, arguments, test_utils=TESTS)
            factor = upstream.reshape(-1, 1) * (scale.reshape(-1, 1) if scale.numel() else 1)
            expected = (arguments[0].to(a) * factor).to(dtype)
            torch.testing.assert_close(_ops.scale_gradient(*arguments), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [0, N])
def test_topz_gate(dtype: torch.dtype, rows: int) -> None:
    a, z = acc(dtype), 5
    weights = (draw(4, 6, dtype=a), draw(4, dtype=a), draw(1, z + 4, dtype=a), draw(1, dtype=a))
    logits, feature = draw(C, rows, dtype=dtype).t(), draw(rows, 6, seed=1, dtype=dtype)
    for keep in (True, False):
        opcheck(_ops.topz_gate, (logits, feature, *weights, z, keep), test_utils=TESTS)
    kept = _ops.topz_gate(logits, feature, *weights, z, True)[1:]
    arguments = (draw(rows, dtype=a), feature, weights[0], weights[2], *kept)
    for wanted in ((True, True, True), (False, False, True), (False, True, False)):
        like = logits.new_empty(1).expand(rows, C) if wanted[0] else kept[0]
        opcheck(_ops.topz_gate_backward, (*arguments, like, *wanted), test_utils=TESTS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_routing(dtype: torch.dtype) -> None:
    a, z = acc(dtype), 5
    gate, flags = draw(N, dtype=dtype), torch.tensor([True, False, True])
    for needs_help in (flags, flags.to(a)):
        for reduction in (0, 1, 2):
            for gradient in (True, False):
                arguments = (gate, needs_help, 3.0, reduction, gradient)
                opcheck(_ops.routing_loss, arguments, test_utils=TESTS)
    experts = [draw(N, C, seed=i, dtype=dtype) for i in range(3)]
    opcheck(_ops.routing_target, (experts, torch.tensor([0, 36, 7])), test_utils=TESTS)
    features = [draw(N, 6, seed=i, dtype=dtype) for i in range(2)]
    for g in (1, 2):
        weights = (draw(2, 4, 6, dtype=a), draw(2, 4, dtype=a), draw(g, z + 4, dtype=a))
        arguments = (experts, features, *weights, draw(g, dtype=a), z, 0.0)
        opcheck(_ops.route_experts, arguments, test_utils=TESTS)


# --- wrong tensors --------------------------------------------------------------------------------

LONG, DOUBLE = torch.zeros(N, dtype=torch.int64), torch.rand(C).double()
WRONG_DISTILLATION: dict[str, Overrides] = {
    "student dtype": {"student": torch.zeros(N, C, dtype=torch.int64)},
    "student complex": {"student": torch.zeros(N, C, dtype=torch.complex64)},
    "student dim": {"student": torch.zeros(C)},
    "student 3d": {"student": torch.zeros(N, C, 1), "teacher": torch.zeros(N, C, 1)},
    "teacher dtype": {"teacher": torch.zeros(N, C).half()},
    "teacher rows": {"teacher": torch.zeros(N + 1, C)},
    "teacher columns": {"teacher": torch.zeros(N, C - 1)},
    "row temperature": {"row_temperature": torch.ones(N + 1)},
    "row temperature dtype": {"row_temperature": torch.ones(N).double()},
    "column temperature": {"column_temperature": torch.ones(C - 1)},
    "class weight": {"class_weight": torch.ones(1)},
    "class weight dtype": {"class_weight": DOUBLE},
    "row factor": {"row_factor": torch.ones(2)},
    "row factor dtype": {"row_factor": torch.ones(N).half()},
    "target size": {"target": LONG[:-1]},
    "target dtype": {"target": LONG.int()},
    "target strided": {"target": torch.zeros(2 * N, dtype=torch.int64)[::2]},
    "target_b size": {"target": LONG, "target_b": LONG[:1]},
    "row lam": {"target": LONG, "target_b": LONG, "row_lam": torch.ones(C)},
    "soft target": {"soft_target": torch.rand(N, C + 1)},
    "soft target strided": {"soft_target": torch.rand(C, N).t()},
    "soft target dtype": {"soft_target": torch.rand(N, C).half()},
}
FIVE, TWO = torch.tensor([4, 0, 36, 7, 1]), torch.tensor([2, 3])
WRONG_SUBSETS: dict[str, Overrides] = {
    "student dtype": {"student": torch.zeros(N, C, dtype=torch.int64)},
    "student dim": {"student": torch.zeros(C)},
    "teacher dtype": {"teachers": [torch.zeros(N, S).half(), torch.zeros(N, 2)]},
    "teacher rows": {"teachers": [torch.zeros(N, S), torch.zeros(N + 1, 2)]},
    "teacher columns": {"teachers": [torch.zeros(N, S), torch.zeros(N, 3)]},
    "no subset": {"teachers": [], "classes": [], "kl_factor": []},
    "too many subsets": {
        "teachers": [torch.zeros(N, 2)] * 17,
        "classes": [TWO] * 17,
        "kl_factor": [1.0] * 17,
    },
    "no class": {"teachers": [torch.zeros(N, S), torch.zeros(N, 0)], "classes": [FIVE, TWO[:0]]},
    "classes dtype": {"classes": [FIVE.int(), TWO]},
    "classes size": {"classes": [FIVE[:-1], TWO]},
    "classes missing": {"classes": [FIVE]},
    "classes twice": {"classes": [FIVE, torch.tensor([3, 3])]},
    "classes beyond": {"classes": [FIVE, torch.tensor([3, C])]},
    "classes negative": {"classes": [FIVE, torch.tensor([-1, 3])]},
    "factors": {"kl_factor": [1.0]},
    "column temperature": {"column_temperature": torch.ones(C - 1)},
    "subset factor": {"subset_factor": torch.ones(3)},
    "subset factor dtype": {"subset_factor": torch.ones(2).double()},
    "row factor": {"row_factor": torch.ones(1)},
}
WRONG_ADJUSTED: dict[str, Overrides] = {
    "logits dtype": {"logits": torch.zeros(N, C, dtype=torch.int64)},
    "logits dim": {"logits": torch.zeros(C)},
    "target size": {"target": LONG[:-1]},
    "target long": {"target": torch.zeros(N + 1, dtype=torch.int64)},
    "target dtype": {"target": LONG.int()},
    "target float": {"target": torch.zeros(N)},
    "margin": {"margin": torch.ones(C + 1)},
    "margin dtype": {"margin": DOUBLE},
    "bias": {"bias": torch.ones(1)},
    "bias strided": {"bias": torch.ones(2 * C)[::2]},
    "class weight": {"class_weight": torch.ones(C - 1)},
}

HARD = {"target": LONG, "cross_entropy": _ops.OF_EACH}
WRONG_EXPERTS: dict[str, Overrides] = {
    "none": {"logits": []},
    "too many": {"logits": [torch.zeros(N, C)] * 17},
    "dtype": {"logits": [torch.zeros(N, C, dtype=torch.int64)]},
    "dtypes": {"logits": [torch.zeros(N, C), torch.zeros(N, C).half()]},
    "dim": {"logits": [torch.zeros(1, N, C)]},
    "rows": {"logits": [torch.zeros(N, C), torch.zeros(N + 1, C)]},
    "columns": {"logits": [torch.zeros(N, C), torch.zeros(N, C - 1)]},
    "no target": {"cross_entropy": _ops.OF_EACH},
    "target without a cross-entropy": {"target": LONG},
    "target size": {**HARD, "target": LONG[:-1]},
    "target dtype": {**HARD, "target": LONG.int()},
    "target out of range": {**HARD, "target": LONG + C},
    "cross-entropy": {**HARD, "cross_entropy": 3},
    "divergence": {"divergence": -1},
    "margin": {**HARD, "margin": torch.ones(C + 1)},
    "class weight dtype": {**HARD, "class_weight": DOUBLE},
    "row temperature": {"row_temperature": torch.ones(N + 1)},
    "column temperature": {"column_temperature": torch.ones(C - 1)},
    "row factor": {"row_factor": torch.ones(2)},
    "sample weight": {"sample_weight": torch.ones(2, N)},
    "sample weight strided": {"sample_weight": torch.ones(N, 3).t()},
}


@pytest.mark.parametrize("what", WRONG_EXPERTS)
def test_wrong_experts_arguments(what: str) -> None:
    with pytest.raises(RuntimeError):
        _ops.experts(*experts(**WRONG_EXPERTS[what]))


@pytest.mark.parametrize("what", WRONG_DISTILLATION)
def test_wrong_distillation_arguments(what: str) -> None:
    with pytest.raises(RuntimeError):
        _ops.distillation(*distillation(**WRONG_DISTILLATION[what]))


@pytest.mark.parametrize("what", WRONG_SUBSETS)
def test_wrong_subset_distillation_arguments(what: str) -> None:
    with pytest.raises(RuntimeError):
        _ops.subset_distillation(*subsets(**WRONG_SUBSETS[what]))


@pytest.mark.parametrize("what", WRONG_ADJUSTED)
def test_wrong_adjusted_cross_entropy_arguments(what: str) -> None:
    with pytest.raises(RuntimeError):
        _ops.adjusted_cross_entropy(*adjusted(**WRONG_ADJUSTED[what]))


WRONG_INFO_NCE: dict[str, Overrides] = {
    "query dtype": {"query": torch.zeros(N, C, dtype=torch.int64)},
    "query dim": {"query": torch.zeros(C)},
    "key rows": {"key": torch.zeros(N + 1, C)},
    "key columns": {"key": torch.zeros(N, C + 1)},
    "key dtype": {"key": torch.zeros(N, C, dtype=torch.int64)},
    "queue columns": {"queue": torch.zeros(5, C - 1)},
    "queue dim": {"queue": torch.zeros(C)},
    "wider queue": {"queue": torch.zeros(5, C).double()},
    "row temperature": {"row_temperature": torch.ones(N + 1)},
    "row temperature dtype": {"row_temperature": torch.ones(N).double()},
}
WRONG_BALANCE = {
    "ref dim": (draw(C), draw(N, C), LONG),
    "ref dtype": (LONG.expand(N, N), LONG.expand(N, N), LONG),
    "cls shape": (draw(N, C), draw(N, C + 1), LONG),
    "cls dtype": (draw(N, C), draw(N, C).half(), LONG),
    "target size": (draw(N, C), draw(N, C), LONG[:-1]),
    "target dtype": (draw(N, C), draw(N, C), LONG.int()),
    "target range": (draw(N, C), draw(N, C), LONG + C),
}


@pytest.mark.parametrize("what", WRONG_INFO_NCE)
def test_wrong_info_nce_arguments(what: str) -> None:
    with pytest.raises(RuntimeError):
        _ops.info_nce(*info_nce(**WRONG_INFO_NCE[what]))


@pytest.mark.parametrize("what", WRONG_BALANCE)
def test_wrong_knowledge_balance_weight_arguments(what: str) -> None:
    with pytest.raises(RuntimeError):
        _ops.knowledge_balance_weight(*WRONG_BALANCE[what], 1e-6)


WRONG_SCALE_GRADIENT = {
    "gradient strided": (draw(C, N).t(), torch.ones(()), torch.zeros(0)),
    "gradient dim": (draw(C), torch.ones(()), torch.zeros(0)),
    "gradient dtype": (LONG.expand(2, N).contiguous(), torch.ones(()), torch.zeros(0)),
    "upstream size": (draw(N, C), torch.ones(N + 1), torch.zeros(0)),
    "upstream empty": (draw(N, C), torch.ones(0), torch.zeros(0)),
    "upstream dtype": (draw(N, C), torch.ones(()).double(), torch.zeros(0)),
    "scale size": (draw(N, C), torch.ones(()), torch.ones(N - 1)),
    "scale dtype": (draw(N, C), torch.ones(()), torch.ones(N).half()),
}


@pytest.mark.parametrize("what", WRONG_SCALE_GRADIENT)
def test_wrong_scale_gradient_arguments(what: str) -> None:
    with pytest.raises(RuntimeError):
        _ops.scale_gradient(*WRONG_SCALE_GRADIENT[what])


def gate_arguments(**changes: Any) -> tuple[Any, ...]:
    arguments: dict[str, Any] = {
        "logits": draw(N, C),
        "feature": draw(N, 6),
        "w1": draw(4, 6),
        "b1": draw(4),
        "w2": draw(1, 9),
        "b2": draw(1),
        "z": 5,
        "keep": True,
    }
    assert changes.keys() <= arguments.keys()
    return tuple({**arguments, **changes}.values())


WRONG_GATE: dict[str, Overrides] = {
    "logits dtype": {"logits": LONG.expand(N, N)},
    "feature rows": {"feature": draw(N + 1, 6)},
    "feature dtype": {"feature": draw(N, 6).double()},
    "w1 size": {"w1": draw(4, 5)},
    "w1 dtype": {"w1": draw(4, 6).double()},
    "w2 size": {"w2": draw(1, 8)},
    "b2 size": {"b2": draw(2)},
    "z of none": {"z": 0, "w2": draw(1, 4)},
    "z of more than all": {"z": C + 1, "w2": draw(1, C + 5)},
}


@pytest.mark.parametrize("what", WRONG_GATE)
def test_wrong_gate_arguments(what: str) -> None:
    _ops.topz_gate(*gate_arguments())
    with pytest.raises(RuntimeError):
        _ops.topz_gate(*gate_arguments(**WRONG_GATE[what]))


def test_wrong_routing_arguments() -> None:
    x, flags = draw(N, C), torch.zeros(N, dtype=torch.bool)
    kept = _ops.topz_gate(*gate_arguments())[1:]
    top, index, units, inverse_norm = kept
    good = (draw(N), draw(N, 6), draw(4, 6), draw(1, 9), top, index, units, inverse_norm, x)
    for at, wrong in (
        (0, draw(N + 1)),
        (2, draw(4, 5)),
        (5, index.long()),
        (5, index + C),
        (8, top[:1]),
    ):
        arguments = [wrong if i == at else value for i, value in enumerate(good)]
        with pytest.raises(RuntimeError):
            _ops.topz_gate_backward(*arguments, True, True, True)
    w1, b1 = draw(1, 4, 6), draw(1, 4)
    for call in (
        lambda: _ops.routing_loss(draw(N), flags[:2], 1.0, 1, True),
        lambda: _ops.routing_loss(draw(N, 1), flags, 1.0, 1, True),
        lambda: _ops.routing_loss(draw(N), draw(N).double(), 1.0, 1, True),
        lambda: _ops.routing_target([x, x[:2]], LONG),
        lambda: _ops.routing_target([x, x], LONG + C),
        lambda: _ops.routing_target([x] * 17, LONG),
        lambda: _ops.routing_target([], LONG),
        lambda: _ops.route_experts([x, x], [], w1, b1, draw(1, 9), draw(1), 5, 0.0),
        lambda: _ops.route_experts([x, x], [draw(N, 5)], w1, b1, draw(1, 9), draw(1), 5, 0.0),
        lambda: _ops.route_experts([x, x], [draw(N, 6)], w1, b1, draw(1, 9), draw(1), 6, 0.0),
    ):
        with pytest.raises(RuntimeError):
            call()
