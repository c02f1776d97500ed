"""Random calls of each fused op: the registry.

A coming op is one more entry: a function that draws the arguments, and what it is called by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

from .. import _ops, functional, reference
from . import inputs

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LARGEST = 2**16  # elements of one logit tensor: the exact value takes a while


# Options of an input that a failing case may be simplified by leaving out.
DECORATIONS = ("layout", "spread", "level", "holes", "zeros", "dtype", "strided", "ignored")


class Rows(int):
    """A number of rows, which simplifying a case may lower everywhere at once."""


class Classes(int):
    """A number of classes, likewise."""


@dataclass(frozen=True)
class Made:
    """A value described by the call of a function of `inputs`, as which it is printed."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, device: str) -> Any:
        return self.function(*self.args, **self.options, device=device)

    def __repr__(self) -> str:
        given = [*map(repr, self.args), *(f"{k}={v!r}" for k, v in self.options.items())]
        return f"{self.function.__name__}({', '.join(given)}, device=device)"


# A number, a string, a description, or a list of descriptions (experts).
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Op:
    """An op, and how to call it at random.

    Attributes:
        name: in `ltkernels.functional` and `ltkernels.reference`.
        kernel: in `ltkernels._ops`. An op without a kernel is not drawn.
        draw: (random, dtype of the logits) -> arguments.
        data: the arguments whose dtype is that of the logits; the others are constants.
        differentiable: (arguments) -> the names of those with a gradient.
        parts: (built arguments) -> calls whose losses it is the sum of: each may be infinite or
            not by an underflow, which a NaN of another one hides.
    """

    name: str
    kernel: str
    draw: Callable[[Random, torch.dtype], Arguments]
    data: tuple[str, ...]
    differentiable: Callable[[Arguments], tuple[str, ...]]
    parts: Callable[[Arguments], list[Arguments]] = lambda arguments: [arguments]

    @property
    def is_fused(self) -> bool:
        return hasattr(_ops, self.kernel)

    def fused(self) -> Callable[..., Tensor]:
        function: Callable[..., Tensor] = getattr(functional, self.name)
        return function

    def definition(self) -> Callable[..., Tensor]:
        function: Callable[..., Tensor] = getattr(reference, self.name)
        return function


@dataclass(frozen=True)
class Case:
    """One call: the arguments by name, and the seed of the gradient that comes from above."""

    op: Op
    arguments: Arguments
    dtype: torch.dtype
    device: str
    seed: int

    def build(self) -> Arguments:
        return {name: _built(value, self.device) for name, value in self.arguments.items()}

    def simpler(self) -> Sequence[Case]:
        """Cases with one thing less."""
        found = [self._with(name, None) for name in self.arguments if name not in self.op.data]
        for size in (Rows, Classes):
            for smaller in (1, 2, 3, 5, 9, 17, 33, 65, 257, 1025):
                found.append(self._sized(size, smaller))
        for name, value in self.arguments.items():
            for option in getattr(value, "options", {}):
                if option in DECORATIONS:
                    rest = {k: v for k, v in value.options.items() if k != option}
                    found.append(self._with(name, replace(value, options=rest)))
        return [case for case in found if case != self]

    def _with(self, name: str, value: Any) -> Case:
        changed = {**self.arguments, name: value}
        return replace(self, arguments={k: v for k, v in changed.items() if v is not None})

    def _sized(self, size: type[int], smaller: int) -> Case:
        def fit(value: Any) -> Any:
            if isinstance(value, list):
                return [fit(x) for x in value]
            if isinstance(value, Made):
                return replace(value, args=tuple(fit(x) for x in value.args))
            return size(min(value, smaller)) if isinstance(value, size) else value

        return replace(self, arguments={k: fit(v) for k, v in self.arguments.items()})


def _built(value: Any, device: str) -> Any:
    if isinstance(value, list):
        return [_built(x, device) for x in value]
    return value.build(device) if isinstance(value, Made) else value


def draw_case(random: Random, op: Op, dtype: torch.dtype, device: str) -> Case:
    """A random call of `op`."""
    return Case(op, op.draw(random, dtype), dtype, device, _seed(random))


# --- what several ops take ------------------------------------------------------------------------


def _seed(random: Random) -> int:
    return random.randrange(2**20)


def _sometimes(random: Random, share: float = 1 / 3) -> bool:
    return random.random() < share


def _shape(random: Random) -> tuple[Rows, Classes]:
    """No row, one, a few or thousands; one class, every remainder of a vector, thousands."""
    rows = random.choice([0, 1, 1, 2, 3, 5, 17, 64, 128, 1000, 3000])
    near = random.choice([8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]) + random.randint(-1, 1)
    classes = random.choice([1, 2, random.randint(1, 70), near, near, 100, 1000, 8142, 32000])
    return Rows(min(rows, max(1, LARGEST // classes))), Classes(classes)


def _logits(random: Random, rows: int, classes: int, dtype: torch.dtype) -> Made:
    options: dict[str, Any] = {"seed": _seed(random)}
    if _sometimes(random, 1 / 2):
        options["layout"] = random.choice(
            ["transposed", "columns", "strided", "rows", "expanded", "unaligned"]
        )
    if _sometimes(random):
        options["spread"] = random.choice([0.0, 0.01, 30.0, 1e4])
    if _sometimes(random, 1 / 6):
        options["level"] = random.choice([-500.0, 500.0, -2e4, 2e4])
    if _sometimes(random):
        options["holes"] = random.choice(["scattered", "most", "leading", "row", "nan"])
    return Made(inputs.logits, (rows, classes, dtype), options)


def _uniform(random: Random, *shape: int, **options: Any) -> Made:
    """A constant: of any dtype, at times strided."""
    if _sometimes(random):
        options["dtype"] = random.choice(DTYPES)
    if _sometimes(random):
        options["strided"] = True
    return Made(inputs.uniform, shape, {**options, "seed": _seed(random)})


def _temperature(random: Random, rows: int, classes: int) -> float | Made:
    middle = random.choice([1.0, 1.0, 2.0, 4.0, 0.05, 100.0, random.uniform(0.05, 20)])
    shape = random.choice([None, None, (1,), (classes,), (rows, 1)])
    if shape is None:
        return middle
    return _uniform(random, *shape, low=middle, high=1.5 * middle)


def _target(random: Random, rows: int, classes: int, **options: Any) -> Made:
    if _sometimes(random):
        options["strided"] = True
    return Made(inputs.class_indices, (rows, classes), {**options, "seed": _seed(random)})


def _class_subset(random: Random, size: int, classes: int) -> Made:
    options = {"order": random.choice(["random", "sorted", "neighbours"]), "seed": _seed(random)}
    return Made(inputs.class_subset, (size, classes), options)


def _class_weight(random: Random, classes: int) -> Made:
    return _uniform(random, classes, low=0.01, high=2.0, zeros=random.choice([0.0, 0.1]))


def _reduction(random: Random) -> str:
    return random.choice(["mean", "sum", "none"])


# --- the ops --------------------------------------------------------------------------------------


def _kd_loss(random: Random, dtype: torch.dtype) -> Arguments:
    rows, classes = _shape(random)
    other = random.choice([dtype, dtype, dtype, *DTYPES])
    call: Arguments = {"student": _logits(random, rows, classes, dtype)}
    kind = random.choice(["all classes", "a subset", "subsets"])
    if kind == "all classes":
        call["teacher"] = _logits(random, rows, classes, other)
    else:
        known = [random.randint(1, classes) for _ in range(random.choice([1, 2, 3, 7]))]
        call["classes"] = [_class_subset(random, size, classes) for size in known]
        call["teacher"] = [_logits(random, rows, size, other) for size in known]
        if kind == "a subset":
            call["classes"], call["teacher"] = call["classes"][0], call["teacher"][0]
        elif _sometimes(random):
            call["subset_weight"] = [random.choice([0.0, 1, -0.5, 2.0]) for _ in known]
        elif _sometimes(random):
            call["subset_weight"] = _uniform(random, len(known), low=-0.5, high=1.5)
    call["temperature"] = _temperature(random, rows, classes)
    if _sometimes(random):
        call["t2"] = random.choice([False, 3, 0.5])
    if _sometimes(random, 1 / 2):
        call["detach_teacher"] = False
    if _sometimes(random):
        call["sample_weight"] = _uniform(random, rows, low=-0.5, high=1.5, zeros=0.1)
    return {**call, "reduction": _reduction(random)}


def _each_subset(arguments: Arguments) -> list[Arguments]:
    if not isinstance(arguments["teacher"], list):
        return [arguments]
    rest = {k: v for k, v in arguments.items() if k != "subset_weight"}
    pairs = zip(arguments["teacher"], arguments["classes"], strict=True)
    return [{**rest, "teacher": teacher, "classes": classes} for teacher, classes in pairs]


def _bkd_loss(random: Random, dtype: torch.dtype) -> Arguments:
    rows, classes = _shape(random)
    other = random.choice([dtype, dtype, dtype, *DTYPES])
    call: Arguments = {
        "student": _logits(random, rows, classes, dtype),
        "teacher": _logits(random, rows, classes, other),
        "target": _target(random, rows, classes),
        "temperature": _temperature(random, rows, classes),
    }
    if _sometimes(random, 1 / 2):
        call["class_weight"] = _class_weight(random, classes)
    if _sometimes(random):
        call["alpha"] = random.choice([0.3, 5, 0, -0.5])
    labels = random.choice(["hard", "hard", "soft", "mixup"])
    if labels == "soft":
        options = {"seed": _seed(random), "hard": random.random() < 0.5}
        call["target"] = Made(inputs.probabilities, (rows, classes), options)
    elif labels == "mixup":
        call["target_b"] = _target(random, rows, classes)
        shape = random.choice([(), (rows,)])
        share = _uniform(random, *shape, zeros=0.2)
        call["lam"] = random.choice([0.0, 1, 0.3, share, share])
    return {**call, "reduction": _reduction(random)}


def _adjusted_cross_entropy(random: Random, dtype: torch.dtype) -> Arguments:
    rows, classes = _shape(random)
    ignored: dict[str, Any] = {}
    if _sometimes(random):
        ignored = {"ignore_index": random.choice([-100, -1, 0, 255, 10_000])}
    share = {"ignored": random.choice([0.3, 0.3, 1.0])} if ignored else {}
    call: Arguments = {
        "logits": _logits(random, rows, classes, dtype),
        "target": _target(random, rows, classes, **ignored, **share),
        **ignored,
    }
    if _sometimes(random):
        call["scale"] = random.choice([30.0, 0.1, 64])
    if _sometimes(random):
        call["margin"] = _uniform(random, classes, low=-0.1, high=0.5)
    if _sometimes(random):
        options = {"seed": _seed(random), "absent": random.random() < 0.5}
        call["bias"] = Made(inputs.log_prior, (classes,), options)
    if _sometimes(random):
        call["class_weight"] = _class_weight(random, classes)
    if _sometimes(random):
        call["label_smoothing"] = random.choice([0.1, 0.5, 1])
    if _sometimes(random):
        call["focal_gamma"] = random.choice([0.5, 1.0, 2, 5.0])
    return {**call, "reduction": _reduction(random)}


def _experts(random: Random, rows: int, classes: int, dtype: torch.dtype) -> list[Made]:
    """Up to five logit matrices; sometimes one of them twice."""
    count = random.choice([1, 2, 2, 3, 3, 4, 5])
    experts = [_logits(random, rows, classes, dtype) for _ in range(count)]
    if _sometimes(random, 1 / 6):
        experts[-1] = experts[0]
    return experts


def _ride_loss(random: Random, dtype: torch.dtype) -> Arguments:
    rows, classes = _shape(random)
    call: Arguments = {
        "expert_logits": _experts(random, rows, classes, dtype),
        "target": _target(random, rows, classes),
        "temperature": _temperature(random, rows, classes),
    }
    if _sometimes(random, 1 / 2):
        high = random.choice([0.5, 15.0, 200.0])
        call["margin"] = _uniform(random, classes, low=random.choice([0.0, -high]), high=high)
    if _sometimes(random, 1 / 2):
        call["class_weight"] = _class_weight(random, classes)
    if _sometimes(random):
        call["diversity_factor"] = random.choice([0, 0.3, -5.0])
    for flag in ("collaborative", "pairwise"):
        if _sometimes(random):
            call[flag] = True
    if _sometimes(random):
        call["expert_reduction"] = "mean"
    return {**call, "reduction": _reduction(random)}


def _diversity_loss(random: Random, dtype: torch.dtype) -> Arguments:
    rows, classes = _shape(random)
    call: Arguments = {
        "expert_logits": _experts(random, rows, classes, dtype),
        "temperature": _temperature(random, rows, classes),
    }
    if _sometimes(random, 1 / 2):
        call["pairwise"] = True
    if _sometimes(random):
        call["t2"] = random.choice([False, 3, 0.5, 0])
    if _sometimes(random):
        call["expert_reduction"] = "mean"
    return {**call, "reduction": _reduction(random)}


def _collaborative_kd_loss(random: Random, dtype: torch.dtype) -> Arguments:
    rows, classes = _shape(random)
    experts = _experts(random, rows, classes, dtype)
    call: Arguments = {
        "expert_logits": experts,
        "temperature": _temperature(random, rows, classes),
    }
    if _sometimes(random, 1 / 2):
        low = random.choice([0.0, -0.5])
        call["sample_weight"] = _uniform(
            random, len(experts), rows, low=low, high=1.5, zeros=random.choice([0.1, 0.5])
        )
    if _sometimes(random, 1 / 2):
        call["direction"] = "teacher_first"
    if _sometimes(random, 1 / 2):
        call["detach_teacher"] = True
    return {**call, "reduction": _reduction(random)}


def _info_nce(random: Random, dtype: torch.dtype) -> Arguments:
    # Not as large as logits: a similarity takes all columns.
    rows = Rows(random.choice([0, 1, 2, 3, 5, 17, 33, 64, 3000]))
    classes = Classes(random.choice([1, 2, random.randint(1, 70), 64, 127, 128, 129, 300]))
    queue = random.choice([0, 1, random.randint(1, 70), 63, 64, 65, 200, 1000, 32000])
    queue = min(queue, max(1, 2**20 // (max(rows, 1) * classes)))
    others = [random.choice([dtype, dtype, *DTYPES]) for _ in range(2)]
    temperature = random.choice([0.2, 0.07, 1.0, 30.0, random.uniform(0.05, 20)])
    shape = random.choice([None, None, (1,), (rows, 1)])
    return {
        "query": _logits(random, rows, classes, dtype),
        "key": _logits(random, rows, classes, others[0]),
        "queue": _logits(random, queue, classes, others[1]),
        "temperature": temperature
        if shape is None
        else _uniform(random, *shape, low=temperature, high=1.5 * temperature),
        "reduction": _reduction(random),
    }


def _knowledge_balance_weight(random: Random, dtype: torch.dtype) -> Arguments:
    rows, classes = _shape(random)
    call: Arguments = {
        "ref_logits": _logits(random, rows, classes, dtype),
        "cls_logits": _logits(random, rows, classes, random.choice([dtype, dtype, *DTYPES])),
        "target": _target(random, rows, classes),
    }
    if _sometimes(random):
        call["eps"] = random.choice([0.1, 1e-3, 2])
    return call


def _topz_gate(random: Random, dtype: torch.dtype) -> Arguments:
    rows, classes = _shape(random)
    width, hidden = random.choice([1, 3, 64, 65, 512]), random.choice([1, 4, 16, 17])
    z = random.choice([1, random.randint(1, classes), 30, 50, 64])
    z = min(z, classes, random.choice([64, 64, 200]))
    feature = _logits(random, rows, width, random.choice([dtype, dtype, *DTYPES]))
    return {
        "logits": _logits(random, rows, classes, dtype),
        "feature": replace(
            feature, options={k: v for k, v in feature.options.items() if k != "holes"}
        ),
        "w1": _uniform(random, hidden, width, low=-0.5, high=0.5),
        "b1": _uniform(random, hidden, low=-0.5, high=0.5),
        "w2": _uniform(random, 1, z + hidden, low=-0.5, high=0.5),
        "b2": _uniform(random, 1, low=-0.5, high=0.5),
        "z": z,
    }


def _routing_loss(random: Random, dtype: torch.dtype) -> Arguments:
    shape = _shape(random)
    call: Arguments = {
        "gate": _logits(random, *shape, dtype),
        "needs_help": _uniform(random, *shape, zeros=0.5),
    }
    if _sometimes(random):
        call["pos_weight"] = random.choice([1, 20.0, 0.3])
    return {**call, "reduction": _reduction(random)}


def _both_sides(arguments: Arguments) -> tuple[str, ...]:
    return ("student",) if arguments.get("detach_teacher", True) else ("student", "teacher")


CASES = {
    op.name: op
    for op in (
        Op("kd_loss", "distillation", _kd_loss, ("student", "teacher"), _both_sides, _each_subset),
        Op("bkd_loss", "distillation", _bkd_loss, ("student", "teacher"), lambda _: ("student",)),
        Op(
            "adjusted_cross_entropy",
            "adjusted_cross_entropy",
            _adjusted_cross_entropy,
            ("logits",),
            lambda _: ("logits",),
        ),
        Op("ride_loss", "experts", _ride_loss, ("expert_logits",), lambda _: ("expert_logits",)),
        Op(
            "diversity_loss",
            "experts",
            _diversity_loss,
            ("expert_logits",),
            lambda _: ("expert_logits",),
        ),
        Op(
            "collaborative_kd_loss",
            "experts",
            _collaborative_kd_loss,
            ("expert_logits",),
            lambda _: ("expert_logits",),
        ),
        Op(
            "info_nce",
            "info_nce",
            _info_nce,
            ("query", "key", "queue"),
            lambda _: ("query",),
        ),
        Op(
            "knowledge_balance_weight",
            "knowledge_balance_weight",
            _knowledge_balance_weight,
            ("ref_logits", "cls_logits"),
            lambda _: (),
        ),
        Op(
            "topz_gate",
            "topz_gate",
            _topz_gate,
            ("logits", "feature"),
            lambda _: ("logits", "feature", "w1", "b1", "w2", "b2"),
        ),
        Op("routing_loss", "routing_loss", _routing_loss, ("gate",), lambda _: ("gate",)),
    )
}
