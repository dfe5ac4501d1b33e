#!/usr/bin/env bash
# Gets llama.cpp v0.5.0 for the tests, into build/llama.cpp: its libraries, built (lib), and its converter (source). Both come as
# packages of npm, pinned by their SHA-512. What is there already is left alone.
#
# Usage: scripts/llama_cpp.sh
set -euo pipefail
cd "$(dirname "$0")/.."
folder=build/llama.cpp
version=3.22.1  # of node-llama-cpp, which has llama.cpp v0.5.0
[ -e "$folder/.node-llama-cpp-$version" ] && exit 0
if [ "$(uname -m)" != x86_64 ]; then
  echo "llama_cpp.sh: the libraries are for x86-64; the tests that need llama.cpp are skipped on $(uname -m)" >&2
  exit 0
fi
if ! command -v npm >/dev/null; then
  sudo=$([ "$(id -u)" = 0 ] && echo "" || echo sudo)
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends npm >/dev/null
fi

rm -rf "$folder"
mkdir -p "$folder/source" "$folder/package"
packed=$folder/package
npm pack --silent --pack-destination "$packed" "@node-llama-cpp/linux-x64@$version" "node-llama-cpp@$version" >/dev/null
(cd "$packed" && sha512sum --check --quiet) <<SUMS
e6e0820cda9608d7da026f1a47f533c5ba381c1a4a80d17dd640873dea4a86032057638099ab6879f6ce94c8a1b2a0a21f639ddf913f7941d00856df44126e3a  node-llama-cpp-linux-x64-$version.tgz
6e5b488a9b9699cd76dc7eed30880318a4ac4ab866865418795502e3c5d38d55bb5c624988927209d95333343f2e25a83e4183a5c2f816f883a60c3ba9f4e20f  node-llama-cpp-$version.tgz
SUMS
tar -xzf "$packed/node-llama-cpp-linux-x64-$version.tgz" -C "$packed" package/bins/linux-x64 package/LICENSE
mv "$packed/package/bins/linux-x64" "$folder/lib"
tar -xzf "$packed/node-llama-cpp-$version.tgz" -C "$packed" package/llama/gitRelease.bundle
git clone --quiet --bare "$packed/package/llama/gitRelease.bundle" "$packed/release.git" 2>/dev/null
git -C "$packed/release.git" archive HEAD LICENSE convert_hf_to_gguf.py conversion gguf-py/gguf include | tar -x -C "$folder/source"
rm -rf "$packed"
touch "$folder/.node-llama-cpp-$version"
