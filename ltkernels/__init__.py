"""Fused losses and reference trainers for long-tailed recognition with experts and distillation."""

from . import functional, losses, metrics, reference, schedules
from ._backend import backend
from ._info import Info, check_instruction_set, info
from ._version import __version__

check_instruction_set()

__all__ = [
    "Info",
    "__version__",
    "backend",
    "functional",
    "info",
    "losses",
    "metrics",
    "reference",
    "schedules",
]
