#!/usr/bin/env bash
# Sets up everything from nothing and builds: system packages, .venv with LibTorch and the CUDA compiler, Rust, build/moetrim.
# Run it as often as you like; what is there already is left alone.
#
# Usage: scripts/setup.sh [--no-build]
#   MOETRIM_CUDA=OFF   build without CUDA kernels and without the CUDA compiler
#   MOETRIM_SLURM=ON   also install Slurm, which only the tests of the batch scripts need
set -euo pipefail
cd "$(dirname "$0")/.."
cuda=${MOETRIM_CUDA:-ON}
step() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }

packages=(g++ ccache mold git ca-certificates python3 python3-venv catch2 libcli11-dev nlohmann-json3-dev libxxhash-dev liburing-dev libeigen3-dev)
[ "${MOETRIM_SLURM:-OFF}" = ON ] && packages+=(munge slurmctld slurmd slurm-client)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if ! command -v cargo >/dev/null && [ ! -x "$HOME/.cargo/bin/cargo" ]; then missing+=(cargo); fi
if [ ${#missing[@]} -gt 0 ]; then
  step "installing ${missing[*]}"
  sudo=$([ "$(id -u)" = 0 ] && echo "" || echo sudo)
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
export PATH="$HOME/.cargo/bin:$PATH"

# The tokenizer library needs nothing but Rust: it is built while the Python packages come. What fails here fails again, and is
# shown, in the build below.
tokenizer=
if [ "${1:-}" != --no-build ] && [ ! -e build/hf_text/release/libhf_text.a ]; then
  cargo build --release --locked --quiet --manifest-path src/text/hf_text/Cargo.toml --target-dir build/hf_text 2>/dev/null &
  tokenizer=$!
fi

if [ ! -x .venv/bin/python ]; then
  step "creating .venv"
  python3 -m venv .venv
fi
requirements=(-r scripts/requirements.txt)
[ "$cuda" = ON ] && requirements+=(-r scripts/requirements-cuda.txt)
stamp=.venv/.requirements-$(cat scripts/requirements*.txt <(echo "$cuda") | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
  step "installing LibTorch and the Python packages (about 5 GB)"
  # Python compiles what it imports; pip would compile ten thousand files first.
  .venv/bin/pip install --quiet --disable-pip-version-check --no-compile "${requirements[@]}"
  touch "$stamp"
fi
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')

# PyPI's CUDA toolkit has versioned libraries only, and no lib64: the linker and CMake look for the plain names.
toolkit=$site/nvidia/cu13
if [ "$cuda" = ON ] && [ -d "$toolkit/lib" ]; then
  [ -e "$toolkit/lib64" ] || ln -s lib "$toolkit/lib64"
  for library in "$toolkit"/lib/*.so.*; do
    plain=${library%%.so.*}.so
    [ -e "$plain" ] || ln -s "$(basename "$library")" "$plain"
  done
fi

[ "${1:-}" = --no-build ] && exit 0
step "building"
[ -z "$tokenizer" ] || wait "$tokenizer" || true
.venv/bin/cmake -S . -B build -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_PREFIX_PATH="$site/torch" -DMOETRIM_CUDA="$cuda" >build-configure.log 2>&1 || { cat build-configure.log; exit 1; }
rm -f build-configure.log
.venv/bin/cmake --build build
step "done: build/moetrim"
