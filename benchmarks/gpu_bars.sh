#!/usr/bin/env bash
# Everything that one GPU has to tell, in order, within half an hour: docs/gpu.md says what each part answers.
#
#     benchmarks/gpu_bars.sh [PART...]     parts: build tests operator profile steps fits sanitize compile
#
# Nothing is installed: it runs from the checkout, with the Python that PYTHON names (python3) and what that has (torch
# built for CUDA, numpy, pytest, pillow, click, psutil, filelock, ninja), a C++ compiler and nvcc.  Results go into the
# folder OUT (build/gpu), a log of each part beside them.  A part that fails or takes too long is told at the end, and
# the next one runs.
set -u
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-python3}
out=${OUT:-build/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
budget=1800 # seconds of all parts
failed=()

# part SECONDS NAME COMMAND...: run it, its output in a log and on the screen.
part() {
  local seconds=$1 name=$2 begin=$SECONDS
  shift 2
  echo "== $name"
  [ $((budget - begin)) -ge "$seconds" ] || seconds=$((budget - begin > 1 ? budget - begin : 1))
  if timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee "$out/$name.log"; [ "${PIPESTATUS[0]}" -ne 0 ]; then
    failed+=("$name")
    echo "== $name failed, or was not done after $seconds s"
  fi
  echo "== $name: $((SECONDS - begin)) s"
}

# json SECONDS NAME COMMAND...: the same for a command that prints its figures as JSON.
json() {
  local seconds=$1 name=$2
  shift 2
  part "$seconds" "$name" bash -c '"${@:2}" > "$1"' - "$out/$name.json" "$@"
}

build() {
  part 300 build "$python" -c '
from dip_fast.ops import extension
import torch
found = extension.info()
print(found.origin, found.reason, found.record)
assert torch._C._dispatch_has_kernel_for_dispatch_key("dip_fast::norm_conv2d", "CUDA"), "there are no CUDA kernels"
'
}

tests() {
  # Warnings are errors with the torch that the project names; this one may be older or newer.
  part 300 tests "$python" -m pytest -q -m gpu -W default -p no:cacheprovider -rfEs tests/test_norm_conv*.py \
    tests/test_upsample_conv*.py tests/test_masking*.py tests/test_perturbation.py tests/test_engines.py \
    tests/test_gpu.py tests/test_runs_tasks.py
}

operator() {
  for precision in tf32 bf16 fp32; do
    json 60 "operator-$precision" "$python" benchmarks/upsample_conv.py --device cuda --precision $precision \
      --channels 128 --sizes 256 --engines fused plain plain-channels-last --seconds 1 --json
  done
}

profile() {
  for precision in tf32 bf16; do
    json 90 "profile-$precision" "$python" -m dip_fast bench --device cuda --precision $precision --sizes 512 \
      --upsampling bilinear --profile --json
  done
}

steps() {
  for precision in tf32 bf16; do
    json 120 "steps-$precision" "$python" -m dip_fast bench --device cuda --precision $precision --sizes 512 \
      --engines fused plain plain-channels-last --steps 100 --json
  done
}

fits() {
  json 120 fit-tf32 "$python" benchmarks/whole_fits.py --precisions tf32 --twice --json
  json 180 fits-psnr "$python" benchmarks/whole_fits.py --preset quick --size 256 --seeds 4 \
    --precisions fp32 tf32 bf16 --json
}

# Half of the time is for compiling; what is not compiled by then is left out, and the log says so.
compile() {
  json 570 compile "$python" -m dip_fast bench --device cuda --sizes 512 --upsampling bilinear \
    --engines fused compile compile-max-autotune --seconds 540 --json
}

# Each allocation by itself, or PyTorch's allocator would hide what is read beside a tensor.
sanitize() {
  for tool in memcheck racecheck; do
    part 150 "sanitize-$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool \
      --error-exitcode 1 "$python" -m pytest -q -m gpu -x \
      -W default -p no:cacheprovider tests/test_norm_conv.py tests/test_perturbation.py \
      -k "images_stay_channels_last or each_gradient_alone or counted"
  done
}

{
  date -u +%F
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader
  nvcc --version | tail -n 2
  "$python" -c 'import platform, torch; print("python", platform.python_version(), "torch", torch.__version__)'
  git log -1 --format='commit %H' 2> /dev/null
} > "$out/machine.txt" 2>&1
cat "$out/machine.txt"
# As `make check-cuda` compiles for it.
capability=$("$python" -c 'import sys, torch
if not torch.cuda.is_available(): sys.exit(f"gpu_bars.sh: torch {torch.__version__} finds no GPU")
print(*torch.cuda.get_device_capability(), sep=".")') || exit 2
[ "$capability" != 9.0 ] || export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-9.0a}

[ $# -gt 0 ] || set -- build tests operator profile steps fits sanitize compile
for name in "$@"; do
  case $name in
    build | tests | operator | profile | steps | fits | compile | sanitize) "$name" ;;
    *) echo "no such part: $name" >&2; exit 2 ;;
  esac
done
echo "== all of it: $SECONDS s, in $out"
if [ ${#failed[@]} -gt 0 ]; then
  echo "== failed: ${failed[*]}"
  exit 1
fi
