#!/usr/bin/env bash
# Installs what this project needs and the machine lacks, from the system's packages (Debian 12;
# written for Ubuntu 24.04 too, untested there). Names everything before installing it, uses sudo only
# when not root, and does nothing when nothing is missing.
#
#   scripts/setup.sh [build] [train] [test] [check] [cudnn]      default: build train test
#
# cudnn is for attention by cuDNN (model.attention): headers of cudnn-frontend, by pip, into
# build/cudnn_frontend/include. The program builds without them: where they cannot be had this says so
# and goes on.
set -euo pipefail

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(build train test)
cxx=${CXX:-g++}

has_header() { printf '#include <%s>\n' "$1" | "$cxx" -E -x c++ - >/dev/null 2>&1; }
has_openblas() { compgen -G '/usr/lib/*/openblas-openmp/libopenblas.so' >/dev/null; }
# Debian's clang finds omp.h in its own folder alone.
has_clang_omp() { compgen -G '/usr/lib/llvm-*/lib/clang/*/include/omp.h' >/dev/null; }
has_matplotlib() {
    for python in python3 /usr/bin/python3; do
        "$python" -c 'import matplotlib' 2>/dev/null && return 0
    done
    return 1
}

# The version of the package clang, installed or not: 14 on Debian 12.
clang_version() {
    apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p' | head -n 1
}

cudnn_folder=$(dirname "$0")/../build/cudnn_frontend
cudnn_version=1.32.0
cudnn_sha256=c6006556017a4d1c914c52a556c71b1267f2d6a0500f742e7b4edef539878df0

# A Python that has pip.
pip_python() {
    local python
    for python in python3 /usr/bin/python3; do
        if "$python" -m pip --version >/dev/null 2>&1; then
            echo "$python"
            return 0
        fi
    done
    return 1
}

# Its wheel for one Python, whichever is here: the headers in it are the same in all.
fetch_cudnn_frontend() {
    local python folder=$cudnn_folder wheel
    [ ! -f "$folder/include/cudnn_frontend.h" ] || return 0
    if ! python=$(pip_python); then
        echo 'setup.sh: no pip here: without the headers of cudnn-frontend (package python3-pip)' >&2
        return 0
    fi
    echo "fetching the headers of cudnn-frontend $cudnn_version with pip ..."
    rm -rf "$folder"
    mkdir -p "$folder"
    if ! "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --implementation cp --python-version 3.11 --abi cp311 --platform manylinux_2_28_x86_64 \
        --dest "$folder" "nvidia-cudnn-frontend==$cudnn_version" >"$folder/pip.log" 2>&1; then
        tail -n 3 "$folder/pip.log" >&2
        echo 'setup.sh: pip could not fetch cudnn-frontend: without its headers' >&2
        return 0
    fi
    wheel=$(compgen -G "$folder/nvidia_cudnn_frontend-*.whl" | head -n 1)
    if ! echo "$cudnn_sha256  $wheel" | sha256sum --check --status; then
        echo "setup.sh: $wheel is not the file that was expected (sha256 $cudnn_sha256): not used" >&2
        rm -f "$wheel"
        return 0
    fi
    "$python" - "$wheel" "$folder/unpacked" <<'UNPACK'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith('include/')])
UNPACK
    mv "$folder/unpacked/include" "$folder/include" # all of it or nothing
    rm -rf "$wheel" "$folder/pip.log" "$folder/unpacked"
}

fetch=: # after the packages
missing=()
need() {  # need PACKAGE TEST...
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

for part in "${parts[@]}"; do
    case $part in
        build)
            need g++ command -v "$cxx" >/dev/null
            need nlohmann-json3-dev has_header nlohmann/json.hpp
            need libcli11-dev has_header CLI/CLI.hpp
            need libxxhash-dev has_header xxhash.h
            need libopenblas-openmp-dev has_openblas
            need libdnnl-dev has_header oneapi/dnnl/dnnl.h
            ;;
        train)
            need python3 command -v python3 >/dev/null
            need python3-matplotlib has_matplotlib
            ;;
        test)
            need libgtest-dev has_header gtest/gtest.h
            need qemu-user command -v qemu-x86_64 >/dev/null
            need openmpi-bin command -v mpirun >/dev/null
            ;;
        check)
            need clang-tidy command -v clang-tidy >/dev/null
            need libomp-dev has_clang_omp
            need cppcheck command -v cppcheck >/dev/null
            need valgrind command -v valgrind >/dev/null
            # libFuzzer: its library is a package by the version of clang
            need clang command -v clang++ >/dev/null
            need "libclang-rt-$(clang_version)-dev" "$(dirname "$0")/../tests/fuzz/has_libfuzzer" clang++
            ;;
        cudnn)
            need python3 command -v python3 >/dev/null
            ! command -v apt-get >/dev/null || need python3-pip pip_python
            fetch=fetch_cudnn_frontend
            ;;
        *)
            echo "setup.sh: unknown part '$part' (expected build, train, test, check, cudnn)" >&2
            exit 2
            ;;
    esac
done

if [ ${#missing[@]} -eq 0 ]; then
    $fetch
    exit
fi
echo "missing packages: ${missing[*]}"
if ! command -v apt-get >/dev/null; then
    echo "setup.sh: no apt-get here; install the equivalents of the packages above, then try again" >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "setup.sh: not root and no sudo; ask an administrator for: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() {
    if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "$@" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        return 1
    fi
}
echo "installing them with apt-get${as_root:+ (sudo)} ..."
run apt-get update || echo "setup.sh: apt-get update failed; trying with the lists at hand" >&2
if ! run apt-get install -y --no-install-recommends "${missing[@]}"; then
    echo "setup.sh: apt-get could not install: ${missing[*]}" >&2
    exit 1
fi
echo "installed: ${missing[*]}"
$fetch
