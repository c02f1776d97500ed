#!/bin/sh
# Installs what the tests need into .venv and runs all of them: lint, types, C++ tests, Python tests.
# Where nvcc is found the CUDA kernels are built in, also beside a torch without CUDA.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
PATH="$PWD/.venv/bin:$PATH"
export PATH

step() { printf '\n== %s\n' "$*"; }

step build
if command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
  LTKERNELS_CUDA=1
  TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-8.0}"
  export LTKERNELS_CUDA TORCH_CUDA_ARCH_LIST
fi
python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
python -c 'import ltkernels; print(ltkernels.info())'

step lint
ruff check .
ruff format --check .
find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs clang-format --dry-run --Werror

step types
mypy

step 'C++ tests'
mkdir -p build
cmake -S . -B build/tests -G Ninja -DLTKERNELS_TESTS=ON -DLTKERNELS_CYCLES=ON -DCMAKE_BUILD_TYPE=Release >build/tests.log
cmake --build build/tests --parallel "${MAX_JOBS:-$(nproc)}" >>build/tests.log || { cat build/tests.log; exit 1; }
ctest --test-dir build/tests --output-on-failure --parallel "${MAX_JOBS:-$(nproc)}"

step 'Python tests'
# One thread a worker: OpenMP's spinning threads would fight over the cores.
OMP_NUM_THREADS=1 python -m pytest -n "${MAX_JOBS:-$(nproc)}" "$@"
