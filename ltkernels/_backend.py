"""Which implementation a call takes: the fused kernel of its device, or the definition."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _ops

_CHOICES = ("auto", "reference")


def _is_reference(name: str, source: str) -> bool:
    if name not in _CHOICES:
        raise ValueError(f"{source}: expected 'auto' or 'reference', got {name!r}")
    return name == "reference"


_forced_reference = _is_reference(
    os.environ.get("LTKERNELS_BACKEND", "auto"), "environment variable LTKERNELS_BACKEND"
)
_warned: set[str] = set()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Choose the implementation of every op called inside a `with` block.

    The choice holds for the whole process, as `torch.backends` flags do.

    Args:
        name: "reference" for the plain PyTorch definition (any device, any order of derivative),
            "auto" for the fused kernel wherever there is one.

    Raises:
        ValueError: for another name.
    """
    global _forced_reference
    before = _forced_reference
    _forced_reference = _is_reference(name, "`backend`")
    try:
        yield
    finally:
        _forced_reference = before


def is_reference_forced() -> bool:
    """Whether every call takes the definition."""
    return _forced_reference


def use_fused(op: str, logits: Tensor, *constants: object, unless: str | None = None) -> bool:
    """Whether a call of `op` on `logits` takes the fused kernel.

    It takes the definition where it is told to, on devices without kernels, under forward-mode AD
    and torch.func transforms (where the definition's own derivatives serve to any order), and where
    one of `constants` (inputs the kernels have no gradient for) requires one, or for the op's own
    reason `unless`.
    """
    if _forced_reference:
        return False
    reason = _why_not_fused(logits, constants) or unless
    if reason is None:
        return True
    if logits.device.type == "cuda" and not torch.compiler.is_compiling():
        _warn_once(op, reason)
    return False


def _why_not_fused(logits: Tensor, constants: tuple[object, ...]) -> str | None:
    if not (logits.is_cpu or (logits.is_cuda and _ops.built_for_cuda)):
        return "ltkernels was built without CUDA kernels" if logits.is_cuda else "no kernels"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func transforms and forward-mode AD take the definition"
    for x in constants:
        if isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled():
            return "the fused kernel has a gradient for logits only"
    return None


def _warn_once(op: str, reason: str) -> None:
    key = f"{op}: {reason}"
    if key not in _warned:
        _warned.add(key)
        warnings.warn(f"`{op}` runs its plain PyTorch definition: {reason}", stacklevel=4)
