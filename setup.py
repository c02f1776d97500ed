"""Builds ltkernels._C: finds torch and the compilers, then drives CMake with ninja.

Environment: MAX_JOBS (parallel compilers), LTKERNELS_CUDA (0 or 1 instead of asking torch and
looking for nvcc), TORCH_CUDA_ARCH_LIST (as for torch's extensions), CXX, CUDACXX.
Metadata stands in pyproject.toml, the native build in CMakeLists.txt.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Built where neither TORCH_CUDA_ARCH_LIST nor a GPU says what is wanted, as far as nvcc knows them.
DEFAULT_CUDA_ARCHITECTURES = ("7.5", "8.0", "8.6", "9.0", "10.0", "12.0")


def stop(sentence: str) -> NoReturn:
    sys.exit(f"ltkernels: {sentence}")


def find_torch() -> tuple[Path, str, str | None]:
    """Folder, version and CUDA version of the installed torch, read without importing it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        stop("torch is needed to build; first run: pip install torch==2.13.0")
    folder = Path(spec.origin).parent
    text = (folder / "version.py").read_text()
    version = re.search(r"^__version__ = '([^']+)'", text, re.M)
    cuda = re.search(r"^cuda(?:: [^=]+)? = '([^']+)'", text, re.M)
    if version is None:
        stop(f"cannot read torch's version from {folder / 'version.py'}")
    release = tuple(int(part) for part in version[1].split("+")[0].split(".")[:2])
    if release < (2, 10):
        stop(f"torch 2.10 or newer is needed, found {version[1]}; run: pip install -U torch")
    return folder, version[1], cuda[1] if cuda else None


def find_nvcc() -> str | None:
    candidates = [shutil.which(os.environ.get("CUDACXX", "nvcc"))]
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home:
            candidates.append(str(Path(home) / "bin" / "nvcc"))
    return next((path for path in candidates if path and Path(path).exists()), None)


def wants_cuda(torch_cuda: str | None, nvcc: str | None) -> bool:
    asked = os.environ.get("LTKERNELS_CUDA")
    if asked not in (None, "0", "1"):
        stop(f"LTKERNELS_CUDA must be 0 or 1, got {asked!r}")
    if asked == "1" and nvcc is None:
        stop("LTKERNELS_CUDA=1 needs nvcc on PATH or in CUDA_HOME; install the CUDA toolkit")
    if asked is not None:
        return asked == "1"
    if torch_cuda is not None and nvcc is None:
        print(
            f"ltkernels: torch has CUDA {torch_cuda} but nvcc was not found: building CPU kernels "
            "only; install the CUDA toolkit (or set CUDA_HOME) and reinstall for CUDA kernels"
        )
    return torch_cuda is not None and nvcc is not None


def cuda_architectures(nvcc: str) -> str:
    """CMake's list from TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX"), the visible GPUs, or the default."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";").strip(";")
    if listed:
        return ";".join(_cmake_architecture(entry) for entry in listed.split(";") if entry)
    answer = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    known = {f"{n[:-1]}.{n[-1]}" for n in re.findall(r"^compute_(\d+)$", answer.stdout, re.M)}
    # A GPU that nvcc does not know runs the PTX of the newest one it knows.
    seen = [gpu for gpu in sorted(set(visible_gpus())) if gpu in known]
    if seen:
        return ";".join(_cmake_architecture(entry) for entry in seen)
    *older, newest = [entry for entry in DEFAULT_CUDA_ARCHITECTURES if entry in known]
    return ";".join(_cmake_architecture(entry) for entry in (*older, f"{newest}+PTX"))


def _cmake_architecture(entry: str) -> str:
    match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", entry)
    if match is None:
        stop(f"TORCH_CUDA_ARCH_LIST: expected entries like 8.0 or 9.0+PTX, got {entry!r}")
    name = match[1] + match[2] + match[3]
    return name if match[4] else f"{name}-real"


def visible_gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return re.findall(r"^\d+\.\d+$", answer.stdout, re.M) if answer.returncode == 0 else []


def check_tools() -> None:
    """Everything the build starts or includes, each missing one with what to run."""
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            stop(f"{tool} is needed to build; run: pip install {tool}")
    if find_spec("pybind11") is None:
        stop("pybind11 is needed to build; run: pip install pybind11")
    compiler = os.environ.get("CXX")
    if compiler and shutil.which(compiler.split()[0]) is None:
        stop(f"the compiler that CXX names, {compiler!r}, was not found; install it or unset CXX")
    if not compiler and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        stop("a C++17 compiler is needed to build; on Debian run: apt-get install g++")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        stop("Python's headers are needed to build; on Debian run: apt-get install python3-dev")


class CMakeBuild(build_ext):
    """Configures and builds the module, then puts it where setuptools wants it."""

    def run(self) -> None:
        torch_folder, torch_version, torch_cuda = find_torch()
        check_tools()
        import pybind11

        nvcc = find_nvcc()
        cuda = wants_cuda(torch_cuda, nvcc)
        (extension,) = self.extensions
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        version = re.search(r'"(\d[^"]*)"', (ROOT / "ltkernels/_version.py").read_text())
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            # Named, as an earlier build's ninja may have been pip's and gone with its environment.
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja"),
            "LTKERNELS_VERSION": version[1] if version else "",
            "LTKERNELS_TORCH": torch_folder,
            "LTKERNELS_TORCH_VERSION": torch_version,
            "LTKERNELS_PYTHON_INCLUDE": sysconfig.get_path("include"),
            "LTKERNELS_PYBIND11_INCLUDE": pybind11.get_include(),
            "LTKERNELS_MODULE_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
            "LTKERNELS_CUDA": "ON" if cuda else "OFF",
        }
        if cuda:
            options["CMAKE_CUDA_COMPILER"] = nvcc
            options["CMAKE_CUDA_ARCHITECTURES"] = cuda_architectures(nvcc)
        settings = [f"-D{name}={value}" for name, value in options.items()]
        # Compilers are looked for anew; what they made is kept where their commands did not change.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        subprocess.check_call(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *settings])
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.check_call(["cmake", "--build", build, "--target", "_C", "--parallel", jobs])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / target.name, target)


setup(ext_modules=[Extension("ltkernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
