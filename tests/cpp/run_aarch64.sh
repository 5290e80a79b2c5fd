#!/bin/sh
# Builds the core and its tests for aarch64 and runs them under emulation.
# Needs: apt-get install g++-aarch64-linux-gnu qemu-user
# Usage, from the root of the repository: tests/cpp/run_aarch64.sh [build directory] [filter]
set -e
cd "$(dirname "$0")/../.."
out=${1:-build/aarch64}
mkdir -p "$out"
for test in tests/cpp/*.cc; do
  name=$(basename "$test" .cc)
  aarch64-linux-gnu-g++ -std=c++17 -O2 -fno-math-errno -fno-trapping-math -I. -static -pthread \
    custom_ops/core/*.cc "$test" -o "$out/$name"
done
status=0
for test in tests/cpp/*.cc; do
  name=$(basename "$test" .cc)
  echo "== $name"
  qemu-aarch64 "$out/$name" ${2:+"$2"} || status=1
done
exit $status
