#!/usr/bin/env bash
# A CUDA toolkit to build `--features cuda` with:  eval "$(scripts/cuda-toolchain.sh [--check])"
#
# Prints `export` lines. An installed toolkit of 12.4 or newer (nvcc on PATH, in CUDA_HOME or in
# /usr/local/cuda) is used where there is one. Otherwise NVIDIA's wheels are fetched from the
# Python package index and unpacked into `.cuda/`, which git ignores; nothing is installed, and a
# second call finds them there. With --check only the compilers come (270 MB unpacked): enough
# for `cargo check`, `cargo clippy` and nvcc. Without it also what the linker and the program need
# (1.2 GB). Needs python3 with pip, and a C compiler.
#
# Where no GPU can be asked, it also chooses what to compile for, unless CUDA_COMPUTE_CAP is set:
# candle's kernels as PTX for 8.0, which every later GPU can run, ours for each architecture.
set -euo pipefail
cd "$(dirname "$0")/.."

compile=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)
link=(nvidia-cublas==13.1.1.3 nvidia-curand==10.4.0.35 nvidia-cuda-nvrtc==13.0.88)
folder=$PWD/.cuda
toolkit=$folder/nvidia/cu13

case "${1-}" in
    "") full=yes ;;
    --check) full= ;;
    *) echo "usage: eval \"\$(scripts/cuda-toolchain.sh [--check])\"" >&2; exit 2 ;;
esac

fail() { echo "cuda-toolchain.sh: $1" >&2; exit 1; }

# version NVCC: major and minor as one number, 1204 for 12.4
version() {
    "$1" --version 2>/dev/null |
        sed -n 's/.*release \([0-9]*\)\.\([0-9]*\).*/\1 \2/p' | { read -r major minor && echo $((major * 100 + minor)); }
}

# The folder of an installed toolkit that is new enough; empty if there is none. Ours does not
# count: it may be on PATH with only its compilers.
installed() {
    local nvcc found
    for nvcc in "$(command -v nvcc || true)" "${CUDA_HOME:-/nonexistent}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
        case "$nvcc" in "" | "$folder"/*) continue ;; esac
        [ -x "$nvcc" ] || continue
        found=$(version "$nvcc") || continue
        if [ "$found" -ge 1204 ]; then
            dirname "$(dirname "$(realpath "$nvcc")")"
            return
        fi
        echo "cuda-toolchain.sh: $nvcc is older than 12.4 and not used" >&2
    done
}

# unpack NAME==VERSION...: into .cuda/, unless this very list is there
unpack() {
    local name=$1 work log wheel
    shift
    if [ "$(cat "$folder/$name" 2>/dev/null)" = "$*" ]; then return; fi
    mkdir -p "$folder"
    work=$(mktemp -d "$folder/fetch.XXXXXX")
    log=$folder/fetch.log
    echo "cuda-toolchain.sh: fetching $*" >&2
    if ! python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$work" "$@" >"$log" 2>&1; then
        rm -rf "$work"
        fail "the wheels of CUDA cannot be downloaded ($(grep -v '^$' "$log" | tail -n 1)); check the network, or install the CUDA toolkit 12.4 or newer"
    fi
    for wheel in "$work"/*.whl; do
        python3 -m zipfile -e "$wheel" "$folder"
    done
    rm -rf "$work"
    # A zip archive as Python unpacks it has lost who may be executed.
    chmod +x "$toolkit"/bin/* "$toolkit"/nvvm/bin/*
    echo "$*" >"$folder/$name"
}

# Names without a version, as the linker looks for them, and a libcuda.so that only it uses: the
# real one comes with the driver. Every name in cuda.h is in it, so it serves any program, and one that
# cudarc knows and CUDA 13 no longer has. A call returns CUDA_ERROR_STUB_LIBRARY.
link_names() {
    local library
    for library in "$toolkit"/lib/lib*.so.*; do
        ln -sf "$(basename "$library")" "${library%%.so.*}.so"
    done
    [ -e "$toolkit/lib64" ] || ln -s lib "$toolkit/lib64"
    mkdir -p "$toolkit/lib/stubs"
    { grep -oE '\bcu[A-Z][A-Za-z0-9]*(_v[0-9]+)?\b' "$toolkit/include/cuda.h"; echo cuProfilerInitialize; } | sort -u |
        sed 's/.*/int &(void) { return 34; }/' |
        "${CC:-cc}" -x c - -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$toolkit/lib/stubs/libcuda.so" ||
        fail "the stub of libcuda.so cannot be made; is a C compiler there?"
}

home=$(installed)
if [ -z "$home" ]; then
    command -v python3 >/dev/null || fail "python3 with pip is needed, or an installed CUDA toolkit 12.4 or newer"
    home=$toolkit
    unpack compile "${compile[@]}"
    if [ -n "$full" ]; then
        unpack link "${link[@]}"
        link_names
    fi
fi

echo "export PATH=\"$home/bin:\$PATH\""
echo "export CUDA_HOME=\"$home\" CUDA_PATH=\"$home\" CUDA_ROOT=\"$home\" CUDA_TOOLKIT_ROOT_DIR=\"$home\""
if [ -n "$full" ]; then
    for lib in "$home/lib64" "$home/lib"; do
        [ -e "$lib/libcudart.so" ] || continue
        echo "export LD_LIBRARY_PATH=\"$lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\""
        break
    done
fi
if [ -z "${CUDA_COMPUTE_CAP-}" ] && ! nvidia-smi --query-gpu=compute_cap --format=csv,noheader >/dev/null 2>&1; then
    echo "export CUDA_COMPUTE_CAP=80 QUANTBENCH_CUDA_ARCHS=80,89,90"
fi
