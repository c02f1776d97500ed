"""Whether a fused op agrees with its definition on one call.

The fused op and the definition in the same dtype are held against the exact value, which is the
definition in float64. An element passes where

    |fused - exact| <= 2 |definition - exact| + 16 r + a few units in the last place of |exact|,

with r the root mean square of what rounding alone does to that element (`rounding.py`): where a
gradient p - q is small, it is in the order of eps (p + q).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks
from .cases import Arguments, Case
from .evaluation import evaluate, in_float64
from .rounding import MAGNIFIED, RandomRounding

SPREADS = 16
ULPS = 8
# An exponential below the smallest normal number may be taken as 0 or as that number, and is then
# multiplied by slopes as steep as (6e4 / 0.05)^2, about 2^40.
UNDERFLOW = 2.0**46
SAMPLES = (0, 2, 4, 8, 16, 32)  # more while an element seems wrong

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Mismatch:
    """Where a call went wrong.

    Attributes:
        case: the call.
        what: "value", "repeat" (two runs differ), "written" (an input changed), "raised".
        output: the name of the result or input.
        index: of the element.
        expected: the exact value of the element.
        allowed: the error it may have.
        message: one line for people.
    """

    case: Case
    what: str
    output: str
    index: tuple[int, ...]
    expected: float
    allowed: float
    message: str


def check(case: Case) -> Mismatch | None:
    """Run one call; None where all agrees."""
    arguments = case.build()
    op, wrt = case.op, case.op.differentiable(case.arguments)
    data = [x for name in op.data for x in _tensors(arguments[name])]
    arithmetic = _checks.compute_dtype(*data)
    wide = in_float64(arguments, op.data, arithmetic)
    exact = evaluate(op.definition(), wide, wrt, case.seed)
    plain = _on_cpu(evaluate(op.definition(), arguments, wrt, case.seed))

    try:
        ours = _on_cpu(evaluate(op.fused(), arguments, wrt, case.seed))
        again = _on_cpu(evaluate(op.fused(), arguments, wrt, case.seed))
    except Exception as error:  # the definition takes the call: whatever this is, it is a fault
        line = f"{type(error).__name__}: {error}"
        return Mismatch(case, "raised", "", (), 0.0, 0.0, line)
    for name, value in case.build().items():
        for before, after in zip(_tensors(value), _tensors(arguments[name]), strict=True):
            if not torch.equal(_bits(before), _bits(after)):
                message = f"the input {name} was written to"
                return Mismatch(case, "written", name, (), 0.0, 0.0, message)
    for name, value in ours.items():
        if not torch.equal(_bits(value), _bits(again[name])):
            return Mismatch(case, "repeat", name, (), 0.0, 0.0, f"two runs differ in the {name}")

    decided = _decided(case, arguments, wide)
    norms = {name: torch.zeros_like(x) for name, x in exact.items()}
    generator = torch.Generator().manual_seed(case.seed)
    done, found = 0, None
    for samples in SAMPLES:
        for _ in range(samples - done):
            with RandomRounding(arithmetic, generator):
                rounded = evaluate(op.definition(), wide, wrt, case.seed)
            for name, x in exact.items():
                moved = (rounded[name] - x).nan_to_num(0.0, 0.0, 0.0)
                norms[name] = torch.hypot(norms[name], moved / MAGNIFIED[arithmetic])
        done = samples
        spreads = {name: x / max(done, 1) ** 0.5 for name, x in norms.items()}
        found = _first_wrong(case, ours, plain, exact, spreads, decided, arithmetic)
        if found is None:
            return None
    return found


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, (list, tuple)):
        return [x for x in value if isinstance(x, Tensor)]
    return [value] if isinstance(value, Tensor) else []


def _on_cpu(results: Results) -> Results:
    return {name: x.cpu() for name, x in results.items()}


def _bits(x: Tensor) -> Tensor:
    """Something that is equal where `x` is, NaN included."""
    if not x.is_floating_point():
        return x
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}
    return x.contiguous().view(integers[x.element_size()])


def _decided(case: Case, arguments: Arguments, wide: Arguments) -> Tensor:
    """Rows that have an exact value: not those that are infinite or not by an underflow, `[N]`."""
    decided = torch.ones((), dtype=torch.bool)
    if "reduction" not in arguments:
        return decided
    definition = case.op.definition()
    for exact_part, part in zip(case.op.parts(wide), case.op.parts(arguments), strict=True):
        with torch.no_grad():
            row_loss = definition(**{**exact_part, "reduction": "none"})
            plain = definition(**{**part, "reduction": "none"}).cpu()
            # Kernels take numbers below the normal ones as 0, PyTorch does only if asked to.
            torch.set_flush_denormal(True)
            try:
                flushed = definition(**{**part, "reduction": "none"}).cpu()
            finally:
                torch.set_flush_denormal(False)
        for other in (plain, flushed):
            decided = decided & ((row_loss.isfinite() == other.isfinite()) | row_loss.isnan())
    return decided


def _first_wrong(
    case: Case,
    ours: Results,
    plain: Results,
    exact: Results,
    spreads: Results,
    decided: Tensor,
    arithmetic: torch.dtype,
) -> Mismatch | None:
    for name, value in ours.items():
        allowed = _allowed(value, plain[name], exact[name], spreads[name], arithmetic)
        gradient = name.startswith("gradient")
        bad = _wrong(value, plain[name], exact[name], allowed, rows=gradient)
        if gradient and decided.dim() == 1 and value.shape[-2:-1] == decided.shape:
            bad &= decided.unsqueeze(1)  # [N, C] or [K, N, C]
        elif value.shape == decided.shape:
            bad &= decided
        else:
            bad &= decided.all()
        if bool(bad.any()):
            index = tuple(map(int, bad.nonzero()[0]))
            got, want, limit = (x[index].item() for x in (value, exact[name], allowed))
            if want == want and plain[name][index].isnan():
                want = float("nan")
            message = (
                f"{name}{list(index) if index else ''} is {got!r}, expected {want!r}, "
                f"allowed error {limit:.3g}; {int(bad.sum())} of {bad.numel()} elements are wrong"
            )
            return Mismatch(case, "value", name, index, want, limit, message)
    return None


def _allowed(
    ours: Tensor, plain: Tensor, exact: Tensor, spread: Tensor, arithmetic: torch.dtype
) -> Tensor:
    eps, storage = torch.finfo(arithmetic).eps, torch.finfo(ours.dtype)
    size = spread / eps  # before cancellation
    if size.dim() > 1 and size.numel() > 0:
        size = size.amax(dim=-1, keepdim=True)
    plain_error = (plain.double() - exact).abs().nan_to_num(0.0, 0.0)
    units = ULPS * eps + (storage.eps if storage.bits < 64 else 0.0)
    return (
        2 * plain_error
        + SPREADS * spread
        + (units * exact.abs()).nan_to_num(0.0, 0.0)
        + UNDERFLOW * torch.finfo(arithmetic).smallest_normal * (1 + size)
        + 2 * storage.smallest_normal * storage.eps
    )


def _wrong(ours: Tensor, plain: Tensor, exact: Tensor, allowed: Tensor, *, rows: bool) -> Tensor:
    """The elements out of bounds.

    A row of a gradient that has a NaN by definition may be NaN as a whole, and no other may.
    """
    got = ours.double()
    bad = ~((got - exact).abs() <= allowed) & (got != exact)
    bad &= ~((got == plain) & got.isinf())  # what overflows the stored type overflows in both
    missing = plain.isnan() & exact.isnan()
    if rows and missing.dim() > 1:
        poisoned = (plain.isnan() | exact.isnan()).any(dim=-1, keepdim=True)
    else:
        poisoned = plain.isnan() | exact.isnan()
    return torch.where(got.isnan(), ~poisoned, bad | missing) & ~(exact.isnan() & ~missing)
