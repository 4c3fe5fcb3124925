#!/usr/bin/env bash
# Gathers what this project takes from packages, so that a machine with a GPU, a CUDA toolkit and no network
# can build it: nlohmann/json, CLI11, xxhash, GoogleTest's sources, and where they are here the headers of
# cudnn-frontend and cuDNN. Copy the folder along with the repository; scripts/gpu_check.sh finds it.
#
#   scripts/gpu_carry.sh [FOLDER]        default build/carry
#
# Install the packages here first (scripts/setup.sh build test cudnn). Exit status 1 where one is missing;
# those of cuDNN are optional and named.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
    -h | --help)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
        exit 0
        ;;
    -*)
        echo "gpu_carry.sh: unknown argument '$1' (--help explains)" >&2
        exit 2
        ;;
esac
folder=${1:-build/carry}
cxx=${CXX:-g++}

# The file that #include <$1> reads.
find_header() {
    printf '#include <%s>\n' "$1" | $cxx -E -x c++ - 2>/dev/null | sed -n "s|^# 1 \"\(/.*/$1\)\".*|\1|p" | head -n 1
}

missing=()
carry() { # carry HEADER WHAT: the header itself, or the folder that it is in
    local found
    found=$(find_header "$1")
    if [ -z "$found" ]; then
        missing+=("$1")
    elif [ "$2" = file ]; then
        cp -L "$found" "$folder/"
    else
        cp -rL "$(dirname "$found")" "$folder/"
    fi
}

rm -rf "$folder"
mkdir -p "$folder"
carry nlohmann/json.hpp folder
carry CLI/CLI.hpp folder
carry xxhash.h file
if [ -f /usr/src/googletest/googletest/src/gtest-all.cc ]; then
    mkdir "$folder/googletest"
    cp -rL /usr/src/googletest/googletest/{include,src} "$folder/googletest/"
else
    missing+=('GoogleTest in /usr/src/googletest')
fi
frontend=${CUDNN_FRONTEND:-build/cudnn_frontend/include}
if [ -f "$frontend/cudnn_frontend.h" ]; then
    cp -rL "$frontend"/. "$folder/"
else
    echo 'gpu_carry.sh: without attention by cuDNN: no headers of cudnn-frontend (scripts/setup.sh cudnn)' >&2
fi
for header in "${CUDA_HOME:-/usr/local/cuda}"/include/cudnn*.h; do
    [ ! -f "$header" ] || cp -L "$header" "$folder/"
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "gpu_carry.sh: missing here: ${missing[*]} (scripts/setup.sh build test)" >&2
    exit 1
fi
echo "$(du -sh "$folder" | cut -f 1) in $folder"
