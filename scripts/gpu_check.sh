#!/usr/bin/env bash
# Proves a build on a machine with a GPU: the CUDA kernels, runs on the device against runs on the CPU, and timings beside
# transformers. Needs a finished build (of another machine too: with its .venv, or PYTHON=python that has torch and the
# packages of scripts/requirements.txt), and no network.
#
# Usage: scripts/gpu_check.sh [--no-timings]
#   MOETRIM_BUILD=build   where the programs are
#   PYTHON=.venv/bin/python
# Ends with 0 when all is well, 1 when something failed, 3 when there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
export MOETRIM_BUILD=${MOETRIM_BUILD:-$PWD/build} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
python=${PYTHON:-.venv/bin/python}
# A build of another place finds LibTorch where this Python has it.
libraries=$("$python" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent / "lib")') || exit 1
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
  echo "gpu_check: no CUDA device that LibTorch can use; nothing was checked" >&2
  exit 3
fi

summary=()
failed=0
check() {
  local name=$1
  shift
  printf '\n== %s\n' "$name"
  if "$@"; then summary+=("ok      $name"); else summary+=("FAILED  $name"); failed=1; fi
}

"$python" -c 'import torch; p = torch.cuda.get_device_properties(0); print(f"{p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}")'
check "kernels on the device" "$MOETRIM_BUILD/tests/forward_tests" "[cuda]"
check "logits, statistics and reverse sweep on the device" "$python" -m pytest -q tests/end_to_end/test_cuda.py
if [ "${1:-}" != --no-timings ]; then
  check "timings beside transformers" "$python" benchmarks/gpu_vs_transformers.py
fi
printf '\n'
printf '%s\n' "${summary[@]}"
exit $failed
