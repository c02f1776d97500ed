"""A failing call as a Python program that stands on its own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from .. import _checks
from .._info import info
from . import evaluation, inputs
from .cases import Made
from .comparison import Mismatch, _tensors

HEADER = """\
# ltkernels.selftest: {op} on {device}, {message}
# {build}
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ltkernels
"""

CALL = """\
device = {device!r}


def make() -> dict[str, Any]:
    return {{
{arguments}
    }}


arguments = make()
wrt, seed = {wrt!r}, {seed}
ours = evaluate(ltkernels.functional.{op}, arguments, wrt, seed)
"""

COMPARISON = {
    "raised": "",
    "written": """\
before, after = make()[{output!r}], arguments[{output!r}]
for x, y in zip(before, after) if isinstance(before, list) else [(before, after)]:
    torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)
""",
    "repeat": """\
for _ in range(20):
    again = evaluate(ltkernels.functional.{op}, arguments, wrt, seed)
    torch.testing.assert_close(
        again[{output!r}], ours[{output!r}], rtol=0, atol=0, equal_nan=True
    )
""",
    "value": """\
wide = in_float64(arguments, {data!r}, {arithmetic})
exact = evaluate(ltkernels.reference.{op}, wide, wrt, seed)
plain = evaluate(ltkernels.reference.{op}, arguments, wrt, seed)

output, index, allowed = {output!r}, {index!r}, {allowed!r}
got, want, same_dtype = (x[output][index].item() for x in (ours, exact, plain))
print(f"{{output}}{{list(index)}}: fused {{got}}, float64 {{want}}, definition {{same_dtype}}")
same = got == want or (math.isnan(got) and math.isnan({want}))
assert same or abs(got - {want}) <= allowed, f"error {{abs(got - want)}}, allowed {{allowed}}"
""",
}


def snippet(mismatch: Mismatch) -> str:
    """The text of the program: it fails while the fault is there, and prints `agrees` without."""
    case = mismatch.case
    built = case.build()
    fields = {
        "op": case.op.name,
        "device": case.device,
        "message": mismatch.message.splitlines()[0],
        "build": ", ".join(" ".join(line.split()) for line in str(info()).splitlines()),
        "arguments": "\n".join(f"        {k!r}: {v!r}," for k, v in case.arguments.items()),
        "wrt": case.op.differentiable(case.arguments),
        "seed": case.seed,
        "data": case.op.data,
        "arithmetic": _checks.compute_dtype(*[t for k in case.op.data for t in _tensors(built[k])]),
        "output": mismatch.output,
        "index": mismatch.index,
        "allowed": mismatch.allowed,
        # An exact value that is not NaN, where the definition in the same dtype is.
        "want": "want" if not math.isnan(mismatch.expected) else "math.nan",
    }
    parts = [HEADER, *map(inspect.getsource, _functions(case.arguments)), CALL]
    text = "\n\n\n".join(
        part.format(**fields).strip() if part in (HEADER, CALL) else part.strip() for part in parts
    )
    return f"{text}\n\n{COMPARISON[mismatch.what].format(**fields)}print('agrees')\n"


def _functions(arguments: dict[str, Any]) -> list[Callable[..., Any]]:
    """What the program calls, each once, helpers first."""
    used: dict[Callable[..., Any], None] = {}

    def use(value: Any) -> None:
        if isinstance(value, list):
            for x in value:
                use(x)
        elif isinstance(value, Made):
            for helper in inputs.HELPERS.get(value.function, ()):
                used[helper] = None
            used[value.function] = None

    use(list(arguments.values()))
    return [*used, evaluation.upstream_of, evaluation.evaluate, evaluation.in_float64]
