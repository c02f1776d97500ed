"""How far rounding alone may move a result: measured, for any definition.

The definition runs in float64 while the result of each of its steps is moved at random by about
one unit in the last place (Monte Carlo arithmetic; Parker, 1997). The spread of such runs is what
rounding does, relative to the size before cancellation, with no formula of an op's own. Results
that happen to be exact are moved as well: another order of the steps would have rounded there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten
# How many units in the last place of float64 a step is moved, to see above its own rounding.
MAGNIFIED = {torch.float32: 1.0, torch.float64: 64.0}
SUMS = (aten.sum, aten.mean, aten.mm, aten.addmm, aten.bmm, aten.cumsum)
# Steps that move numbers about and round nothing.
EXACT = (
    *("where", "gather", "index", "scatter", "select", "slice", "cat", "stack", "clone", "topk"),
    *("_to_copy", "neg", "abs", "amax", "amin", "max", "min", "sort", "flip", "masked", "clamp"),
    *("full", "ones", "zeros", "empty", "new_", "scalar_tensor", "arange", "relu", "threshold"),
)


class RandomRounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Moves the result of every step by a random share of one unit, up or down.

    Args:
        arithmetic: the dtype whose rounding is imitated, in float64.
        generator: of the shares.
    """

    def __init__(self, arithmetic: torch.dtype, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unit = torch.finfo(arithmetic).eps * MAGNIFIED[arithmetic]
        self.arithmetic, self.generator = arithmetic, generator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is aten._log_softmax.default:
            return self._log_softmax(args[0], args[1])
        if func is aten._log_softmax_backward_data.default:
            return self._log_softmax_backward(*args[:3])
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable or any(x.alias_info for x in func._schema.returns):
            return result
        if func.overloadpacket.__name__.startswith(EXACT):
            return result
        if func.overloadpacket in SUMS:
            if result.dtype != torch.float64:
                return result
            # Terms may cancel: what is rounded is as large as their sum without signs.
            size = func(*tree_map_only(Tensor, torch.abs, args), **(kwargs or {}))
            moved = self._move_sum(size, args) - size
            return result + moved.nan_to_num(0.0, 0.0, 0.0)  # infinite terms are not rounded
        return tree_map_only(Tensor, self._move, result)

    def _move(self, x: Tensor, units: float = 1.0) -> Tensor:
        if x.dtype != torch.float64:
            return x
        share = torch.rand(x.shape, generator=self.generator, dtype=torch.float64)
        return x * (1 + units * self.unit * (2 * share - 1))

    def _move_sum(self, x: Tensor, terms: Any) -> Tensor:
        """A sum has a few roundings; in float64 those of the exact value's own sums, one by one."""
        units = 4.0
        if self.arithmetic == torch.float64:
            most = max(each.numel() for each in terms if isinstance(each, Tensor))
            units = max(units, (most / max(x.numel(), 1)) ** 0.5)
        return self._move(x, units)

    # One step to PyTorch, several with a cancellation among them to the arithmetic.
    def _log_softmax(self, x: Tensor, dim: int) -> Tensor:
        shifted = self._move(x - x.amax(dim=dim, keepdim=True))
        total = self._move_sum(self._move(shifted.exp()).sum(dim=dim, keepdim=True), (x,))
        return self._move(shifted - self._move(total.log()))

    def _log_softmax_backward(self, upstream: Tensor, output: Tensor, dim: int) -> Tensor:
        total = self._move_sum(upstream.sum(dim=dim, keepdim=True), (upstream,))
        return self._move(upstream - self._move(self._move(output.exp()) * total))


def warm_up() -> None:
    """Let PyTorch import what a mode takes at its first step: seconds, not to be counted."""
    with RandomRounding(torch.float32, torch.Generator()):
        torch.zeros(1).add(1)
