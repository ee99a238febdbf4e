#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds, tests every backend on the device, checks the promises, measures.
#
#   bench/gpu.sh             unattended, under nine minutes, no network; first checks correctness, then measures speed
#   bench/gpu.sh --dry-run   runs every measuring function at tiny sizes on a CPU; builds and tests nothing
#
# Results are written to bench/results/gpu/, or to the folder that OUT names, as soon as they are there: steps.md (each
# step and how it ended; for tests that are cut short, how many had passed and failed), log.txt (all output), gpu.json
# and gpu.md (the measurements). Python needs torch and pytest, and to build also setuptools, pybind11 and ninja; nvcc
# compiles for this GPU alone. PYTHON names the interpreter. LIMIT is the time for all steps in seconds; a dry run has
# none unless it is given.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

OUT="${OUT:-bench/results/gpu}"
PYTHON="${PYTHON:-python3}"
if [[ ${1:-} == --dry-run ]]; then LIMIT="${LIMIT:-1000000}"; fi
LIMIT="${LIMIT:-530}"
export PYTHONPATH="$PWD:$PWD/python" PYTHONUNBUFFERED=1
# Tests switch on use_deterministic_algorithms to poison unwritten memory; torch then refuses cuBLAS without this
# setting. It is set for all steps, so that the timed configuration is the tested one.
export CUBLAS_WORKSPACE_CONFIG=:4096:8
mkdir -p "$OUT"
rm -f "$OUT"/{steps.md,log.txt,gpu.json,gpu.md}
printf '| step | | seconds |\n|---|---|---|\n' >"$OUT/steps.md"
failed=0

# step NAME SECONDS COMMAND...: runs the command for at most SECONDS, or for the time that is left. Then it is interrupted
# as by Ctrl-C, so that pytest still prints what failed.
step() {
  local name=$1 seconds=$2 began=$SECONDS status result counts lines
  shift 2
  if ((LIMIT - SECONDS < seconds)); then seconds=$((LIMIT - SECONDS)); fi
  if ((seconds < 3)); then
    result="not run: time is up"
  else
    printf '\n== %s: %s\n' "$name" "$*" | tee -a "$OUT/log.txt"
    lines=$(wc -l <"$OUT/log.txt")
    timeout --signal=INT --kill-after=10 "$seconds" "$@" 2>&1 | tee -a "$OUT/log.txt"
    status=${PIPESTATUS[0]}
    counts=$(tail -n +"$((lines + 1))" "$OUT/log.txt" | grep -oE '([0-9]+ (passed|failed|errors?)(, )?)+' | tail -n 1)
    case $status in
      0) result="passed" ;;
      124 | 137) result="cut short after $seconds s" ;;
      *) result="FAILED (exit status $status)" ;;
    esac
    [[ $result == passed || -z $counts ]] || result+=": ${counts%, }"
  fi
  [[ $result == passed ]] || failed=1
  echo "| $name | $result | $((SECONDS - began)) |" >>"$OUT/steps.md"
}

skip() { echo "| $1 | not run: $2 | 0 |" >>"$OUT/steps.md"; }

measure() { step "measure $1" "$2" "$PYTHON" bench/gpu.py --only "$1" --out "$OUT/gpu"; }

if [[ ${1:-} == --dry-run ]]; then
  export EIDETIC_BENCH_SMOKE=1 TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES=
  step "measure" "$LIMIT" "$PYTHON" bench/gpu.py --out "$OUT/gpu"
  cat "$OUT/steps.md"
  exit $failed
elif (($#)); then
  echo "usage: bench/gpu.sh [--dry-run]" >&2
  exit 2
fi

architecture=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2>/dev/null) || {
  echo "torch (of $PYTHON) finds no GPU here; bench/gpu.sh --dry-run runs anywhere." >&2
  exit 1
}
pytest=(env OMP_NUM_THREADS=1 "$PYTHON" -m pytest -q --tb=short -p no:cacheprovider)
"$PYTHON" -c 'import xdist' 2>/dev/null && pytest+=(-n 8)

step "build for sm_$architecture" 150 env EIDETIC_FORCE_CUDA=1 EIDETIC_CUDA_ARCHS="$architecture" \
  "$PYTHON" setup.py build_ext --inplace
step "backends, each beside the oracle" 60 "$PYTHON" -m eidetic_kernels
step "promises' tests on the device" 90 "${pytest[@]}" tests/promises/test_every_backend.py \
  tests/promises/test_autocast.py tests/eidetic_training/training/test_captured_step_on_gpu.py
step "kernel tests on the device" 120 "${pytest[@]}" tests/backends tests/ops \
  tests/layers/test_fused_layers.py
measure promises 60
measure product 90
measure norm 60
measure mnist 120
measure fused 45
measure conv 45
measure step 45
measure graphs 40
if command -v compute-sanitizer >/dev/null; then
  step "compute-sanitizer memcheck" 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 EIDETIC_BACKEND=cuda \
    compute-sanitizer --error-exitcode 9 "$PYTHON" -m eidetic_kernels
  step "compute-sanitizer racecheck" 60 compute-sanitizer --tool racecheck --error-exitcode 9 "$PYTHON" -m eidetic_kernels
else
  skip "compute-sanitizer" "it is not installed"
fi
step "promises' tests, all" 120 "${pytest[@]}" tests/promises

cat "$OUT/steps.md"
echo "results: $OUT"
exit $failed
