"""The largest memory that training took."""

from __future__ import annotations

import sys
from typing import Literal, TypeAlias

import torch

__all__ = ["MemoryKind", "memory_kind", "peak_memory", "restart_peak"]

MemoryKind: TypeAlias = Literal["cuda_allocated", "process_rss"]


def memory_kind(device: torch.device) -> MemoryKind:
    """What :func:`peak_memory` means: tensors on the GPU, or the whole process in main memory."""
    return "cuda_allocated" if device.type == "cuda" else "process_rss"


def restart_peak(device: torch.device) -> None:
    """Count from now on. The peak of a process in main memory cannot be restarted."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Bytes of this process at the most.

    Args:
        device: where it trains.

    Returns:
        On a GPU, of tensors since :func:`restart_peak`. On a CPU the resident set, Python, torch,
        data and everything else that the process did before included; None where the system does
        not say (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
