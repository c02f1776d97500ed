"""What ptxas says of every CUDA kernel: no warnings, no spills, few enough registers.

Compiled for each architecture the package supports; needs nvcc, but no GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
OPS = sorted(folder.name for folder in (CSRC / "ops").iterdir())
ARCHITECTURES = ["75", "80", "90", "100", "120"]
REGISTERS = 65536  # of a multiprocessor, on every architecture above
RESIDENT_ROW = re.compile(r"_residentI\S+?Li(\d+)ELi(\d+)E")


@dataclass(frozen=True)
class Kernel:
    name: str
    registers: int
    spilled_bytes: int
    threads: int

    @property
    def blocks_per_multiprocessor(self) -> int:
        """Blocks that the register file holds; a warp's registers come in units of 256."""
        per_warp = -(-self.registers * 32 // 256) * 256
        return REGISTERS // per_warp * 32 // self.threads


def nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which(
        "nvcc", path=str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin")
    )
    if found is None:
        pytest.skip("nvcc is neither on PATH nor in CUDA_HOME: the CUDA kernels are not compiled")
    return found


def threads_of(name: str) -> int:
    row = RESIDENT_ROW.search(name)
    if row:
        return max(int(row[1]), 128 if int(row[1]) <= 32 else 0)
    if "info_nce" in name:
        return 128 if "finish" in name else 256
    # Pairs of three experts, and four experts, take more registers than 512 threads can have.
    wide = re.search(r"experts_stream|experts_shared\S+?(Li4E|Li3ELNS\S+?FormE1E)", name)
    small = ("scale_gradient", "topz_gate", "routing_", "route_experts")
    return 256 if wide or any(op in name for op in small) else 512


def ptxas_report(output: str) -> list[Kernel]:
    kernels = []
    for block in output.split("Compiling entry function '")[1:]:
        name = block.partition("'")[0]
        # The functions that a kernel calls have lines of their own.
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", block)
        registers = re.search(r"Used (\d+) registers", block)
        assert registers is not None, f"ptxas names no registers of {name}"
        assert spills, f"ptxas names no spills of {name}"
        spilled = sum(map(int, spills))
        kernels.append(Kernel(name, int(registers[1]), spilled, threads_of(name)))
    return kernels


def least_blocks(kernel: Kernel) -> int:
    """Blocks a multiprocessor must hold, so that one loads while another computes."""
    if RESIDENT_ROW.search(kernel.name):
        return 2 if kernel.threads == 256 or "experts" in kernel.name else 384 // kernel.threads
    if "info_nce_partial" in kernel.name:  # wider ones hold the accumulator in their registers
        return 2 if "IfLi4ELi64E" in kernel.name or "IfLi4ELi128E" in kernel.name else 1
    if "info_nce_finish" in kernel.name:
        return 4
    if any(op in kernel.name for op in ("topz_gate", "routing_", "route_experts")):
        return 2
    return 5 if "scale_gradient" in kernel.name else 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("op", OPS)
def test_kernels_neither_warn_nor_spill(op: str, architecture: str, tmp_path: Path) -> None:
    command = [nvcc(), "-std=c++17", "-O3", "-Xptxas", "-v", "-Xcompiler", "-Wall,-Wextra"]
    command += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    command += ["-I", str(CSRC), "-c", str(CSRC / "ops" / op / f"{op}_cuda.cu")]
    command += ["-o", str(tmp_path / "kernels.o")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert "warning" not in output.lower(), output

    kernels = ptxas_report(output)
    assert len(kernels) >= 4
    spilling = [f"{k.name}: {k.spilled_bytes} bytes" for k in kernels if k.spilled_bytes]
    assert not spilling, spilling
    crowded = [
        f"{k.name}: {k.registers} registers, {k.blocks_per_multiprocessor} blocks"
        for k in kernels
        if k.blocks_per_multiprocessor < least_blocks(k)
    ]
    assert not crowded, crowded


def test_a_spill_is_seen() -> None:
    output = (
        "ptxas info    : Compiling entry function 'k' for 'sm_90'\n"
        "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
        "ptxas info    : Used 128 registers, 8 bytes cumulative stack size\n"
    )
    (kernel,) = ptxas_report(output)
    assert kernel.spilled_bytes == 16
    assert kernel.blocks_per_multiprocessor == 1
