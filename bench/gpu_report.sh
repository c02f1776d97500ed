#!/usr/bin/env bash
# One report of ltkernels on this machine, within ten minutes and without a network: build, tests
# of the kernels, benchmark, compute-sanitizer, selftest, overhead, the other tests.
#
#   bench/gpu_report.sh          needs an NVIDIA GPU, torch with CUDA, nvcc
#   bench/gpu_report.sh --cpu    the same steps, small, on the CPU: shows that the script works
#
# Writes report.json, report.md and report.log into OUT (bench/results/gpu, build/report_cpu with
# --cpu), again after every step. A step that fails or uses up its time does not stop the others.
# The exit status is 1 if a step failed.
#
# Environment: OUT, PYTHON (python3), MINUTES (10), MAX_JOBS, TORCH_CUDA_ARCH_LIST.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
device=cuda
case "$*" in
  "") ;;
  --cpu) device=cpu ;;
  *) echo "usage: $0 [--cpu]" >&2; exit 2 ;;
esac
if [[ $device == cpu ]]; then out=${OUT:-$root/build/report_cpu}; else out=${OUT:-$root/bench/results/gpu}; fi
python=$(command -v "${PYTHON:-python3}") || { echo "${PYTHON:-python3} not found" >&2; exit 2; }
deadline=$((${MINUTES:-10} * 60 - 15))
jobs=${MAX_JOBS:-$(nproc)}

mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" # not the root: there Python would import the sources instead of what is built here
: >steps.tsv
: >"$out/report.log"
export PYTHONPATH=$work/lib PYTHONDONTWRITEBYTECODE=1 MAX_JOBS=$jobs
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton
# The tools that pip installed beside Python: cmake, ninja.
PATH=$(dirname "$python"):$PATH:${CUDA_HOME:-/usr/local/cuda}/bin

# ---- steps ---------------------------------------------------------------------------------------

record() { # name, outcome, seconds
  printf '%s\t%s\t%s\n' "$@" >>steps.tsv
  printf '%-13s %s, %s s\n' "$@"
  "$python" "$root/bench/report.py" "$work" "$out" || true
}

# Runs a command for at most so many seconds, and never past the deadline; its output goes to the log.
step() { # name, seconds, command...
  local name=$1 limit=$2 code outcome
  shift 2
  ((limit > deadline - SECONDS)) && limit=$((deadline - SECONDS))
  if ((limit < 5)); then
    record "$name" "skipped: no time left" 0
    return 1
  fi
  local started=$SECONDS
  timeout --kill-after=5 "$limit" "$@" >"$name.log" 2>&1
  code=$?
  case $code in
    0) outcome=passed ;;
    124 | 137) outcome="stopped after $limit s" ;;
    *) outcome="failed ($code)" ;;
  esac
  {
    printf '\n==== %s: %s\n==== %s\n' "$name" "$*" "$outcome"
    cat "$name.log"
  } | sed "s|$root|.|g; s|$work|WORK|g" >>"$out/report.log"
  record "$name" "$outcome" $((SECONDS - started))
  return "$code"
}

has() { "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)" 2>/dev/null; }

describe_machine() {
  [[ $device == cuda ]] && nvidia-smi
  command -v nvcc && nvcc --version
  command -v compute-sanitizer && compute-sanitizer --version
  "$python" - <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version

print("python", sys.version)
for name in (
    "torch triton liger-kernel numpy safetensors setuptools cmake ninja pybind11 pytest "
    "pytest-xdist hypothesis"
).split():
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print(name, "missing")
PYTHON
}

# setuptools builds where it is told to, and leaves the source tree alone but for the egg-info.
build() {
  cd "$root" || return 1
  "$python" setup.py -q build --build-base "$work/build" --build-lib "$work/lib"
}

pytests() { # arguments of pytest
  local workers=()
  has xdist && workers=(-n "$((jobs < 8 ? jobs : 8))")
  OMP_NUM_THREADS=1 "$python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -q \
    -p no:cacheprovider "${workers[@]}" "$@"
}

sanitize() { # tool, arguments of small_cases.py
  local tool=$1 wrapper=()
  shift
  [[ $device == cuda ]] &&
    wrapper=(compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20)
  # Every tensor an allocation of its own: an overrun cannot land in a neighbour.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${wrapper[@]}" "$python" "$root/bench/small_cases.py" \
    --device "$device" "$@"
}

export -f describe_machine build pytests sanitize has
export root work device python jobs

# ---- the report ----------------------------------------------------------------------------------

tests=$root/python_tests
shopt -s nullglob
if [[ $device == cuda ]]; then
  export LTKERNELS_CUDA=1
  # What runs kernels first; a folder that is empty or missing stops nothing.
  kernel_tests=("$tests"/{cuda,functional,losses}/test_*.py)
  other_tests=("$tests" --ignore="$tests/cuda" --ignore="$tests/functional" --ignore="$tests/losses")
  # All ops but variants of the same kernel; torch.compile, the slow part, for the first rows.
  table=(--device cuda --without "kd_sample,bkd_mixup,bkd_soft,focal" --budget 0.5
    --compile-limit $((deadline * 20 / 100)) --time-limit $((deadline * 33 / 100)))
  cases=(--classes 7 100 365 1203 8142 33000 --seconds 35)
else
  export LTKERNELS_CUDA=0
  kernel_tests=("$tests"/functional/test_transforms.py -k "gradcheck or upstream")
  other_tests=("$tests/test_schedules.py")
  table=(--without "kd_sample,bkd_mixup,bkd_soft,focal" --shapes "128x100,256x1000" --dtypes fp32
    --budget 0.2 --compile-limit 1 --time-limit 60)
  cases=(--classes 7 365 --dtypes fp32 --seconds 35)
fi

step machine 60 bash -c describe_machine
if step build 240 bash -c build && step import 90 "$python" -c 'import ltkernels; print(ltkernels.info())'; then
  if has pytest && has hypothesis; then
    step kernel_tests 120 bash -c 'pytests "$@"' - "${kernel_tests[@]}"
  else
    record kernel_tests "skipped: pytest or hypothesis is not installed" 0
  fi
  step benchmark $((deadline * 38 / 100)) "$python" "$root/bench/table.py" "${table[@]}" --out "$work/table"
  for tool in memcheck racecheck synccheck; do
    if [[ $device == cuda ]] && ! command -v compute-sanitizer >/dev/null; then
      record "$tool" "skipped: compute-sanitizer is not installed" 0
    else
      step "$tool" 60 bash -c 'sanitize "$@"' - "$tool" "${cases[@]}"
    fi
  done
  if has ltkernels.selftest; then
    step selftest 45 "$python" -m ltkernels.selftest --seconds 30 --device "$device"
  else
    record selftest "skipped: this version has none" 0
  fi
  step overhead 45 "$python" "$root/bench/overhead.py" --device "$device" --repeats 30 \
    --out "$work/overhead"
  if has pytest && has hypothesis; then
    step other_tests 120 bash -c 'pytests "$@"' - "${other_tests[@]}"
  else
    record other_tests "skipped: pytest or hypothesis is not installed" 0
  fi
else
  record "the rest" "skipped: nothing was built" 0
fi

echo "$out/report.md"
! grep -qP '\t(failed|stopped)' steps.tsv
