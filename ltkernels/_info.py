"""What was built, and what a call will use."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch

from . import _C, _backend, _ops
from ._version import __version__


@dataclass(frozen=True)
class Info:
    """Build facts and the backend of each device. `print(ltkernels.info())` shows them."""

    version: str
    torch: str
    built_for_torch: str
    compiler: str
    cpu_instruction_sets: tuple[str, ...]
    cpu_instruction_set: str
    cuda_compiler: str | None
    cuda_architectures: tuple[str, ...]
    cuda_device: str | None
    backend: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        cuda = "not built"
        if self.cuda_compiler is not None:
            cuda = f"{self.cuda_compiler} for sm {' '.join(self.cuda_architectures)}"
        rows = {
            "ltkernels": self.version,
            "torch": f"{self.torch} (built beside {self.built_for_torch})",
            "compiler": self.compiler,
            "CPU kernels": f"{self.cpu_instruction_set} of {' '.join(self.cpu_instruction_sets)}",
            "CUDA kernels": cuda,
            "CUDA device": self.cuda_device or "none",
            "backend": ", ".join(f"{device}: {name}" for device, name in self.backend.items()),
        }
        return "\n".join(f"{name:<13} {value}" for name, value in rows.items())


def info() -> Info:
    """Build facts, and which backend a call takes on each device."""
    fused = "reference" if _backend.is_reference_forced() else "fused"
    has_cuda = torch.cuda.is_available()
    backend = {"cpu": fused}
    if has_cuda:
        backend["cuda"] = fused if _ops.built_for_cuda else "reference"
    return Info(
        version=__version__,
        torch=torch.__version__,
        built_for_torch=_C.built_for_torch,
        compiler=_C.compiler,
        cpu_instruction_sets=tuple(_C.cpu_instruction_sets.split()),
        cpu_instruction_set=_C.cpu_instruction_set,
        cuda_compiler=_C.cuda_compiler or None,
        cuda_architectures=tuple(_C.cuda_architectures.split()),
        cuda_device=torch.cuda.get_device_name() if has_cuda else None,
        backend=backend,
    )


def check_instruction_set() -> None:
    """A clear error for an LTKERNELS_CPU_ISA that this build or processor does not have."""
    wanted = os.environ.get("LTKERNELS_CPU_ISA")
    if wanted is not None and wanted != _C.cpu_instruction_set:
        raise ValueError(
            f"environment variable LTKERNELS_CPU_ISA: expected one of {_C.cpu_instruction_sets!r} "
            f"that this processor runs, got {wanted!r}"
        )
