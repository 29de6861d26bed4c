#!/usr/bin/env bash
# Everything that needs a Hopper GPU, in one command on a bare machine without a network, most telling first:
#   bash benchmarks/hopper.sh BUNDLE RESULTS [STEP ...]
# BUNDLE comes from benchmarks/hopper_bundle.sh. STEP: tests kernels layer parity; all of them if none is named. About 12
# minutes on one H200 (a guess: none has been measured). Each step's output lands in RESULTS/STEP.log; a failed step does not stop the
# next, and the exit code counts the failed ones.
set -uo pipefail
bundle=$(realpath "${1:?usage: bash benchmarks/hopper.sh BUNDLE RESULTS [STEP ...]}")
results=$(mkdir -p "${2:?usage: bash benchmarks/hopper.sh BUNDLE RESULTS [STEP ...]}" && realpath "$2")
shift 2
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$bundle"/wheels/*.whl || exit 2
export PYTHONPATH=$site:$PWD OMP_NUM_THREADS=4 PYTHONUNBUFFERED=1
if [ -e "$bundle/transformer_engine.tar.xz" ]; then
  "$python" -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])" "$bundle/transformer_engine.tar.xz" "$site" || exit 2
  libraries=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/nvidia
  export LD_LIBRARY_PATH=$libraries/cu13/lib:$libraries/cudnn/lib:$libraries/nccl/lib:${LD_LIBRARY_PATH:-}
  export NVTE_CUDA_INCLUDE_DIR=$libraries/cu13/include   # where wheels for CUDA 13 keep the headers that it compiles with
fi

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "error: no CUDA GPU here" >&2; exit 2; }

run_step() {
  case $1 in
    tests)    timeout 300 "$python" -m pytest -q -p no:cacheprovider tests/gpu ;;
    kernels)  timeout 180 "$python" tools/benchmark_kernels.py --json "$results/kernels.json" ;;
    layer)    timeout 300 "$python" tools/benchmark_layer.py --tokens 4096 8192 --json "$results/layer.json" ;;
    parity)   timeout 500 "$python" benchmarks/fp8_parity.py --wide ;;
    *)        echo "error: no step $1; there are: tests kernels layer parity"; return 2 ;;
  esac
}

[ $# -gt 0 ] || set -- tests kernels layer parity
failed=0
for step; do
  begin=$SECONDS
  run_step "$step" > "$results/$step.log" 2>&1
  code=$?
  [ "$code" -eq 0 ] || failed=$((failed + 1))
  echo "$step: exit code $code after $((SECONDS - begin)) s"
  tail -n 40 "$results/$step.log"
done
exit "$failed"
