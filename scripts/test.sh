#!/usr/bin/env bash
# Sets up like scripts/setup.sh and runs all tests: C++ (ctest), then Python against transformers, safetensors and llama.cpp.
#
# Usage: scripts/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
MOETRIM_SLURM=ON scripts/setup.sh
scripts/llama_cpp.sh
export MOETRIM_BUILD=$PWD/build HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
.venv/bin/ctest --test-dir build --output-on-failure
# Two test files at a time; a file stays with one process, which shares its fixtures.
.venv/bin/python -m pytest -q -x -n 2 --dist loadfile tests "$@"
