#!/bin/sh
# Builds the core, the custom op for TFLite and their tests for aarch64 and runs them under emulation.
# Needs: apt-get install g++-aarch64-linux-gnu. QEMU names the emulator: `make test-aarch64` fetches
# it (tests/mobile/qemu.py); without it that of the package qemu-user is taken.
# Usage, from the root of the repository: tests/cpp/run_aarch64.sh [build directory] [filter]
set -e
cd "$(dirname "$0")/../.."
out=${1:-build/aarch64}
mkdir -p "$out"
tests=$(echo tests/cpp/*.cc tests/tflite/*.cc)
compile="aarch64-linux-gnu-g++ -std=c++17 -O2 -fno-math-errno -fno-trapping-math -I."
core=
for source in custom_ops/core/*.cc; do
  object=$out/core_$(basename "$source" .cc).o
  $compile -c "$source" -o "$object"
  core="$core $object"
done
for test in $tests; do
  name=$(basename "$test" .cc)
  sources=$test
  case $test in tests/tflite/*) sources="$test custom_ops/tflite/*.cc" ;; esac
  $compile -static -pthread $core $sources -o "$out/$name"
done
status=0
for test in $tests; do
  name=$(basename "$test" .cc)
  echo "== $name"
  "${QEMU:-qemu-aarch64}" "$out/$name" ${2:+"$2"} || status=1
done
exit $status
