#!/usr/bin/env bash
# Sets everything up (see scripts/setup.sh) and runs the main job on the shipped model: calibrate on one task, keep half of
# the experts, write the smaller checkpoint, and compare it with the original and with a random half.
#
# Usage: scripts/demo.sh
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
printf '\033[1m[demo]\033[0m build/moetrim run recipes/demo.json\n'
build/moetrim run recipes/demo.json
