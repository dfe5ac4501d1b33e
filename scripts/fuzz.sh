#!/usr/bin/env bash
# Fuzzes the readers of safetensors and GGUF files with libFuzzer, under the address and undefined-behaviour sanitizers.
# Needs what scripts/setup.sh installs; clang it installs itself. Inputs that crash, hang or take too much memory are left in
# build/fuzz/FORMAT-*, and the corpus, which the next run goes on from, in build/fuzz/FORMAT.
#
# Usage: scripts/fuzz.sh [MINUTES [FORMAT...]]   10 minutes for each format, one after the other, unless told otherwise
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit ;; esac
seconds=$((${1:-10} * 60))
formats=("${@:2}")
[ ${#formats[@]} -gt 0 ] || formats=(safetensors gguf)

runtime() { compgen -G "$(clang++ -print-resource-dir)/lib/*/libclang_rt.fuzzer[.-]*"; }
if ! command -v clang++ >/dev/null || ! runtime >/dev/null; then
  sudo=$([ "$(id -u)" = 0 ] && echo "" || echo sudo)
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends clang >/dev/null
  version=$(clang++ -dumpversion | cut -d. -f1)
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "libclang-rt-$version-dev" >/dev/null
fi

torch=$(compgen -G ".venv/lib/python3*/site-packages/torch/include") || { echo "run scripts/setup.sh first" >&2; exit 1; }
flags=(-std=c++20 -O1 -g1 -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined
  -Iinclude -Isrc -isystem "$torch")
mkdir -p build/fuzz/objects
echo "compiling" >&2
command -v ccache >/dev/null && compiler=(ccache clang++) || compiler=(clang++)
printf '%s\n' src/checkpoint/*.cpp cmake/fmt.cpp tests/fuzz/fuzz_*.cpp | xargs -P "$(nproc)" -I{} \
  bash -c 'out=build/fuzz/objects/$(tr / _ <<<"$1").o; shift; "$@" -o "$out"' compile {} "${compiler[@]}" "${flags[@]}" -c {}
for format in "${formats[@]}"; do
  clang++ -fsanitize=fuzzer,address,undefined -o "build/fuzz/fuzz_$format" build/fuzz/objects/{src,cmake}_*.o \
    "build/fuzz/objects/tests_fuzz_fuzz_$format.cpp.o"
done
for format in "${formats[@]}"; do
  mkdir -p "build/fuzz/$format"
  echo "fuzzing $format for $seconds seconds; build/fuzz/$format.log tells how it goes" >&2
  status=0
  "build/fuzz/fuzz_$format" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=256 \
    -use_value_profile=1 -print_final_stats=1 -artifact_prefix="build/fuzz/$format-" \
    "build/fuzz/$format" "tests/fuzz/seeds/$format" >"build/fuzz/$format.log" 2>&1 || status=$?
  grep -E "DONE|Done|stat::|ERROR|SUMMARY|Test unit written" "build/fuzz/$format.log" || tail "build/fuzz/$format.log"
  [ "$status" = 0 ] || exit "$status"
done
