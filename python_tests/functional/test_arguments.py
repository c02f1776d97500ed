"""What is refused, with which error, in which words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ltkernels import functional, reference

N, C, S = 3, 5, 2
X, T = torch.zeros(N, C), torch.zeros(N, C)
Y = torch.zeros(N, dtype=torch.int64)
META = torch.zeros(N, C, device="meta")
KD: dict[str, Any] = {"student": X, "teacher": T}
BKD: dict[str, Any] = {**KD, "target": Y}
ACE: dict[str, Any] = {"logits": X, "target": Y}
RIDE: dict[str, Any] = {"expert_logits": [X, T], "target": Y}
COLLABORATIVE: dict[str, Any] = {"expert_logits": torch.zeros(2, N, C)}
NCE: dict[str, Any] = {"query": X, "key": X, "queue": torch.zeros(4, C)}
BALANCE: dict[str, Any] = {"ref_logits": X, "cls_logits": X, "target": Y}
MIXUP: dict[str, Any] = {"target_b": Y, "lam": 0.5}


def classes(*values: int) -> Tensor:
    return torch.tensor(values)


# (op, good arguments, changes, error, argument it must name)
Case = tuple[str, dict[str, Any], dict[str, Any], type[Exception], str]
LOGITS: list[tuple[Any, type[Exception]]] = [
    (None, TypeError),
    ([[0.0]], TypeError),
    (torch.zeros(N, C, dtype=torch.int64), TypeError),
    (torch.zeros(N, C, dtype=torch.bool), TypeError),
    (torch.zeros(N, C, dtype=torch.complex64), TypeError),
    (torch.zeros(C), ValueError),
    (torch.zeros(()), ValueError),
    (torch.zeros(N, C, 1), ValueError),
    (torch.zeros(N, 0), ValueError),
]
TEACHERS: list[tuple[Any, type[Exception]]] = [
    *LOGITS,
    (torch.zeros(N, C + 1), ValueError),
    (torch.zeros(N + 1, C), ValueError),
    (torch.zeros(1, C), ValueError),
    (torch.zeros(N, 1), ValueError),
    (META, ValueError),
]
TEMPERATURES: list[tuple[Any, type[Exception]]] = [
    (0, ValueError),
    (0.0, ValueError),
    (-1.0, ValueError),
    (float("inf"), ValueError),
    (float("nan"), ValueError),
    (True, TypeError),
    ("2", TypeError),
    (None, TypeError),
    (torch.ones(C, dtype=torch.int64), TypeError),
    (torch.zeros(C), ValueError),
    (torch.full((N, 1), -1.0), ValueError),
    (torch.full((C,), float("nan")), ValueError),
    (torch.tensor(0.0), ValueError),
    (torch.ones(N), ValueError),
    (torch.ones(1, C), ValueError),
    (torch.ones(N, C), ValueError),
    (torch.ones(C, 1), ValueError),
    (torch.ones(0), ValueError),
    (torch.ones(C, device="meta"), ValueError),
]
TARGETS: list[tuple[Any, type[Exception]]] = [
    (None, TypeError),
    ([0, 1, 2], TypeError),
    (Y.int(), TypeError),
    (Y.bool(), TypeError),
    (Y[:-1], ValueError),
    (Y.reshape(N, 1), ValueError),
    (torch.tensor(0), ValueError),
    (Y + C, IndexError),
    (Y - 1, IndexError),
    (classes(0, 1, 2**40), IndexError),
    (Y.to("meta"), ValueError),
]
REDUCTIONS: list[tuple[Any, type[Exception]]] = [
    ("batchmean", ValueError),
    ("", ValueError),
    (None, ValueError),
    (1, ValueError),
]


def weights(size: int) -> list[tuple[Any, type[Exception]]]:
    return [
        (1.0, TypeError),
        ([1.0] * size, TypeError),
        (torch.ones(size, dtype=torch.int64), TypeError),
        (torch.ones(size + 1), ValueError),
        (torch.ones(size, 1), ValueError),
        (torch.ones(()), ValueError),
        (torch.ones(size, device="meta"), ValueError),
    ]


def negative(size: int) -> list[tuple[Any, type[Exception]]]:
    bad = torch.ones(size)
    bad[-1] = -1e-6
    return [(bad, ValueError), (torch.full((size,), float("nan")), ValueError)]


def numbers(*out_of_range: float) -> list[tuple[Any, type[Exception]]]:
    wrong: list[Any] = [None, "1", True, torch.ones(1)]
    return [(x, TypeError) for x in wrong] + [(x, ValueError) for x in out_of_range]


NAN, INF = float("nan"), float("inf")
EXPERTS: list[tuple[Any, type[Exception]]] = [
    (None, TypeError),
    (X, ValueError),
    ([], ValueError),
    (torch.zeros(0, N, C), ValueError),
    (torch.zeros(2, N, 0), ValueError),
    (torch.zeros(2, N, C, dtype=torch.int64), TypeError),
    ([X, torch.zeros(N, C + 1)], ValueError),
    ([X, torch.zeros(N + 1, C)], ValueError),
    ([X, X.half()], TypeError),
    ([X, META], ValueError),
    ([X, None], TypeError),
]
CHOICES: list[tuple[Any, type[Exception]]] = [("none", ValueError), (None, ValueError)]
BAD: dict[tuple[str, str], list[tuple[Any, type[Exception]]]] = {
    ("kd_loss", "student"): LOGITS,
    ("kd_loss", "teacher"): TEACHERS,
    ("kd_loss", "temperature"): TEMPERATURES,
    ("kd_loss", "sample_weight"): weights(N),
    ("kd_loss", "t2"): [("yes", TypeError), (None, TypeError), (torch.ones(1), TypeError)],
    ("kd_loss", "reduction"): REDUCTIONS,
    ("bkd_loss", "student"): LOGITS,
    ("bkd_loss", "teacher"): TEACHERS,
    ("bkd_loss", "temperature"): TEMPERATURES,
    ("bkd_loss", "target"): [
        *TARGETS,
        (torch.zeros(N), ValueError),
        (torch.zeros(N, C + 1), ValueError),
        (torch.zeros(C, N), ValueError),
        (META, ValueError),
    ],
    ("bkd_loss", "class_weight"): weights(C) + negative(C),
    ("bkd_loss", "alpha"): numbers(),
    ("bkd_loss", "reduction"): REDUCTIONS,
    ("adjusted_cross_entropy", "logits"): LOGITS,
    ("adjusted_cross_entropy", "target"): [*TARGETS, (torch.zeros(N, C), TypeError)],
    ("adjusted_cross_entropy", "scale"): numbers(0.0, -1.0, INF, NAN),
    ("adjusted_cross_entropy", "margin"): weights(C),
    ("adjusted_cross_entropy", "bias"): weights(C),
    ("adjusted_cross_entropy", "class_weight"): weights(C) + negative(C),
    ("adjusted_cross_entropy", "label_smoothing"): numbers(-0.1, 1.1, NAN),
    ("adjusted_cross_entropy", "focal_gamma"): numbers(-1.0, INF, NAN),
    ("adjusted_cross_entropy", "ignore_index"): [
        (None, TypeError),
        (0.0, TypeError),
        (True, TypeError),
    ],
    ("adjusted_cross_entropy", "reduction"): REDUCTIONS,
    ("info_nce", "query"): LOGITS,
    ("info_nce", "key"): TEACHERS,
    ("info_nce", "queue"): [*LOGITS, (torch.zeros(N, C + 1), ValueError), (META, ValueError)],
    ("info_nce", "temperature"): [
        *((t, e) for t, e in TEMPERATURES if e is ValueError or not isinstance(t, Tensor)),
        (torch.ones(1, dtype=torch.int64), TypeError),
        (torch.ones(C), ValueError),
    ],
    ("info_nce", "reduction"): REDUCTIONS,
    ("knowledge_balance_weight", "ref_logits"): LOGITS,
    ("knowledge_balance_weight", "cls_logits"): TEACHERS,
    ("knowledge_balance_weight", "target"): [*TARGETS, (torch.zeros(N, C), TypeError)],
    ("knowledge_balance_weight", "eps"): numbers(0.0, -1.0, INF, NAN),
}
BAD |= {
    ("ride_loss", "expert_logits"): EXPERTS,
    ("ride_loss", "target"): [*TARGETS, (torch.zeros(N, C), TypeError)],
    ("ride_loss", "margin"): weights(C),
    ("ride_loss", "class_weight"): weights(C) + negative(C),
    ("ride_loss", "temperature"): TEMPERATURES,
    ("ride_loss", "diversity_factor"): numbers(),
    ("ride_loss", "expert_reduction"): CHOICES,
    ("ride_loss", "reduction"): REDUCTIONS,
    ("diversity_loss", "expert_logits"): EXPERTS,
    ("diversity_loss", "temperature"): TEMPERATURES,
    ("diversity_loss", "t2"): [("yes", TypeError), (None, TypeError), (torch.ones(1), TypeError)],
    ("diversity_loss", "expert_reduction"): CHOICES,
    ("diversity_loss", "reduction"): REDUCTIONS,
    ("collaborative_kd_loss", "expert_logits"): EXPERTS,
    ("collaborative_kd_loss", "temperature"): TEMPERATURES,
    ("collaborative_kd_loss", "sample_weight"): [
        (1.0, TypeError),
        (torch.ones(2, N, dtype=torch.int64), TypeError),
        (torch.ones(N), ValueError),
        (torch.ones(N, 2), ValueError),
        (torch.ones(2, N, device="meta"), ValueError),
    ],
    ("collaborative_kd_loss", "direction"): CHOICES,
    ("collaborative_kd_loss", "reduction"): REDUCTIONS,
}
GOOD = {
    "kd_loss": KD,
    "bkd_loss": BKD,
    "adjusted_cross_entropy": ACE,
    "info_nce": NCE,
    "knowledge_balance_weight": BALANCE,
    "ride_loss": RIDE,
    "diversity_loss": {"expert_logits": [X, T]},
    "collaborative_kd_loss": COLLABORATIVE,
}
SUBSET = {"classes": classes(0, 2), "teacher": torch.zeros(N, S)}


def subset_cases() -> list[Case]:
    """Several subsets."""
    two = {
        "classes": [classes(0, 2), classes(1)],
        "teacher": [torch.zeros(N, 2), torch.zeros(N, 1)],
    }
    t, c = two["teacher"], two["classes"]
    both = "teacher` and `classes"
    found: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"teacher": t[0]}, TypeError, both),
        ({"classes": c[0]}, TypeError, both),
        ({"classes": None}, TypeError, "teacher"),
        ({"teacher": t[:1]}, ValueError, both),
        ({"teacher": [], "classes": []}, ValueError, both),
        ({"teacher": [t[0], None]}, TypeError, "teacher[1]"),
        ({"teacher": [t[0], t[0]]}, ValueError, "teacher[1]"),
        ({"teacher": [t[0], torch.zeros(N + 1, 1)]}, ValueError, "teacher[1]"),
        ({"teacher": [t[0], torch.zeros(N, 0)]}, ValueError, "teacher[1]"),
        ({"teacher": [t[0].to("meta"), t[1]]}, ValueError, "teacher[0]"),
        ({"classes": [c[0], [1]]}, TypeError, "classes[1]"),
        ({"classes": [c[0], Y[:0]]}, ValueError, "classes[1]"),
        ({"classes": [c[0].int(), c[1]]}, TypeError, "classes[0]"),
        ({"classes": [c[0], classes(C)]}, IndexError, "classes[1]"),
        ({"classes": [classes(-1, 1), c[1]]}, IndexError, "classes[0]"),
        ({"classes": [classes(3, 3), c[1]]}, ValueError, "classes[0]"),
        ({"subset_weight": 1.0}, TypeError, "subset_weight"),
        ({"subset_weight": "11"}, TypeError, "subset_weight"),
        ({"subset_weight": [1.0]}, ValueError, "subset_weight"),
        ({"subset_weight": [1.0, "1"]}, TypeError, "subset_weight[1]"),
        ({"subset_weight": [1.0, True]}, TypeError, "subset_weight[1]"),
        ({"subset_weight": torch.ones(3)}, ValueError, "subset_weight"),
        ({"subset_weight": torch.ones(2, dtype=torch.int64)}, TypeError, "subset_weight"),
        ({"subset_weight": torch.ones(2, device="meta")}, ValueError, "subset_weight"),
    ]
    return [("kd_loss", {**KD, **two}, changes, error, name) for changes, error, name in found] + [
        ("kd_loss", KD, {"subset_weight": [1.0]}, ValueError, "classes")
    ]


COMBINED: list[Case] = [
    ("kd_loss", KD, {**SUBSET, "classes": [0, 2]}, TypeError, "teacher` and `classes"),
    ("kd_loss", KD, {**SUBSET, "classes": classes(0, 2).int()}, TypeError, "classes"),
    ("kd_loss", KD, {**SUBSET, "classes": Y[:0]}, ValueError, "classes"),
    ("kd_loss", KD, {**SUBSET, "classes": classes(0, 2).reshape(1, 2)}, ValueError, "classes"),
    ("kd_loss", KD, {**SUBSET, "classes": classes(2, 2)}, ValueError, "classes"),
    ("kd_loss", KD, {**SUBSET, "classes": classes(0, C)}, IndexError, "classes"),
    ("kd_loss", KD, {**SUBSET, "classes": classes(-1, 0)}, IndexError, "classes"),
    ("kd_loss", KD, {**SUBSET, "classes": classes(0, 2).to("meta")}, ValueError, "classes"),
    ("kd_loss", KD, {**SUBSET, "teacher": T}, ValueError, "teacher"),
    *subset_cases(),
    ("kd_loss", KD, {**SUBSET, "temperature": torch.ones(S)}, ValueError, "temperature"),
    ("bkd_loss", BKD, {"target_b": Y}, ValueError, "lam"),
    ("bkd_loss", BKD, {"lam": 0.5}, ValueError, "target_b"),
    ("bkd_loss", BKD, {**MIXUP, "target": torch.zeros(N, C)}, ValueError, "target"),
    ("bkd_loss", BKD, {**MIXUP, "target_b": Y + C}, IndexError, "target_b"),
    ("bkd_loss", BKD, {**MIXUP, "target_b": Y.int()}, TypeError, "target_b"),
    ("bkd_loss", BKD, {**MIXUP, "lam": 1.1}, ValueError, "lam"),
    ("bkd_loss", BKD, {**MIXUP, "lam": -0.1}, ValueError, "lam"),
    ("bkd_loss", BKD, {**MIXUP, "lam": NAN}, ValueError, "lam"),
    ("bkd_loss", BKD, {**MIXUP, "lam": "half"}, TypeError, "lam"),
    ("bkd_loss", BKD, {**MIXUP, "lam": torch.full((N,), 1.5)}, ValueError, "lam"),
    ("bkd_loss", BKD, {**MIXUP, "lam": torch.ones(N + 1)}, ValueError, "lam"),
    ("bkd_loss", BKD, {**MIXUP, "lam": torch.ones(N, dtype=torch.int64)}, TypeError, "lam"),
    ("bkd_loss", BKD, {**MIXUP, "lam": torch.tensor(2.0)}, ValueError, "lam"),
    ("adjusted_cross_entropy", ACE, {"target": Y - 100, "ignore_index": -1}, IndexError, "target"),
    ("adjusted_cross_entropy", ACE, {"target": Y + C, "ignore_index": -1}, IndexError, "target"),
]
CASES: list[Case] = [
    (op, GOOD[op], {name: value}, error, name)
    for (op, name), values in BAD.items()
    for value, error in values
] + COMBINED


def name_of(case: Case) -> str:
    op, _, changes, error, name = case
    value = changes.get(name, "missing")
    shown = f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return f"{op}-{name}-{shown}-{error.__name__}"


@pytest.mark.parametrize("module", [functional, reference], ids=["functional", "reference"])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_refused(case: Case, module: Any) -> None:
    op, good, changes, error, name = case
    call = getattr(module, op)
    call(**good)
    with pytest.raises(error) as raised:
        call(**{**good, **changes})
    assert type(raised.value) is error
    message = str(raised.value)
    named = (f"`{op}`: expected `{name}`", f"`{op}`: expected `{name}[")  # or one of several
    assert message.startswith(named), message
    assert "got" in message or "given" in message, message


@pytest.mark.parametrize(
    ("op", "changes"),
    [
        ("kd_loss", {"temperature": 2}),
        ("kd_loss", {"temperature": torch.tensor(2.0)}),
        ("kd_loss", {"temperature": torch.full((1, 1), 2.0)}),
        ("kd_loss", {"temperature": torch.full((C,), 2.0, dtype=torch.bfloat16)}),
        ("kd_loss", {"student": X.half(), "teacher": T.bfloat16()}),
        ("kd_loss", {"t2": 0}),
        ("kd_loss", {"classes": [torch.arange(C)], "teacher": (T.half(),), "subset_weight": [2]}),
        ("bkd_loss", {"alpha": -1}),
        ("bkd_loss", {**MIXUP, "lam": torch.tensor(0.5, dtype=torch.float64)}),
        ("bkd_loss", {"target": torch.full((N, C), 0.2, dtype=torch.float16)}),
        ("adjusted_cross_entropy", {"target": Y - 1, "ignore_index": -1}),
        ("info_nce", {"queue": torch.zeros(0, C), "temperature": torch.full((N, 1), 0.1)}),
        ("info_nce", {"query": X.half(), "key": X.double(), "queue": X.bfloat16()}),
        ("knowledge_balance_weight", {"ref_logits": X.half(), "eps": 1}),
        ("adjusted_cross_entropy", {"margin": -torch.ones(C), "bias": torch.full((C,), -INF)}),
        ("ride_loss", {"expert_logits": (X, T, X), "temperature": torch.tensor(2.0)}),
        ("ride_loss", {"margin": -torch.ones(C).double(), "diversity_factor": 0}),
        ("diversity_loss", {"t2": 0, "temperature": torch.full((N, 1), 2.0)}),
        ("collaborative_kd_loss", {"sample_weight": -torch.ones(2, N).half()}),
    ],
)
def test_accepted(op: str, changes: dict[str, Any]) -> None:
    call = {**GOOD[op], **changes}
    ours, definition = getattr(functional, op)(**call), getattr(reference, op)(**call)
    assert ours.dtype == definition.dtype
    torch.testing.assert_close(ours, definition, equal_nan=True)


def test_functional_and_reference_have_the_same_signatures() -> None:
    import inspect

    for op in GOOD:
        fused, definition = getattr(functional, op), getattr(reference, op)
        assert inspect.signature(fused) == inspect.signature(definition)
        assert fused.__doc__ == definition.__doc__
