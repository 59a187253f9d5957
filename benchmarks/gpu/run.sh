#!/usr/bin/env bash
# Builds the kernels for this machine's GPU, checks them on it, and times layers and nets against cuDNN.
#
#   benchmarks/gpu/run.sh [--out FOLDER] [--parts a,b] [--minutes N] [--list] [--device cuda|emulated]
#
# Needs the checkout, nvcc, CMake and a Python with torch for CUDA; nothing is installed. Results go to gpu.json in the
# folder (default: $OUT, else out/gpu), which is written as it goes: run it again and it goes on where it
# stopped. Exit status: 0 all asked for is done and right, 1 something failed, 2 bad usage, 3 no GPU, 4 more is left.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-python3}
build=build/gpu
say() { echo "run.sh: $*" >&2; }
fail() { say "$2"; exit "$1"; }

command -v "$python" >/dev/null || fail 2 "no $python: install Python 3.11 or later, or name one with PYTHON="

# Options that build or measure nothing go straight to Python, and so does a run on the emulator.
case " $* " in
*" --list "* | *" --help "* | *" -h "* | *" --device emulated "* | *" --device=emulated "*)
    exec "$python" -m benchmarks.gpu "$@" ;;
esac

command -v nvcc >/dev/null || fail 1 "no nvcc: install the CUDA toolkit (12.6 to 13.x) or put its bin folder on PATH"
if command -v cmake >/dev/null; then cmake=(cmake); else cmake=("$python" -m cmake); fi
"${cmake[@]}" --version >/dev/null 2>&1 || fail 1 "no cmake: install CMake 3.24 or later, for example with pip"

capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. ' || true)
architectures=${TRTKP_CUDA_ARCHITECTURES:-${capability:-80}}
[[ -n $capability ]] || say "no GPU found; building for sm_${architectures} to see that it builds"
say "building for sm_${architectures} with $(nvcc --version | sed -n 's/.*release \([0-9.]*\).*/CUDA \1/p')"
mkdir -p build
started=$SECONDS
"${cmake[@]}" -S . -B "$build" -DTRTKP_CUDA_ARCHITECTURES="$architectures" >"$build.log" 2>&1 ||
    { tail -n 20 "$build.log" >&2; fail 1 "configuring failed, the log is $build.log"; }
"${cmake[@]}" --build "$build" --parallel "$(nproc)" >>"$build.log" 2>&1 ||
    { tail -n 20 "$build.log" >&2; fail 1 "compiling failed, the log is $build.log"; }
say "built $build/plugins/libtrtkp.so in $((SECONDS - started)) s"

[[ -n $capability ]] || fail 3 "no GPU on this machine (nvidia-smi lists none): the kernels are built, nothing was run"
export TRTKP_LIBRARY=${TRTKP_LIBRARY:-$PWD/$build/plugins/libtrtkp.so}
# 75: a kernel's fault has cost the process its device. What it did is recorded; a fresh process does the rest.
for _ in $(seq 50); do
    status=0
    "$python" -m benchmarks.gpu "$@" || status=$?
    [[ $status -eq 75 ]] || exit "$status"
done
fail 1 "50 faults on the device: giving up"
