#!/usr/bin/env bash
# Checks and measures the CUDA backend on a machine with a GPU, a CUDA toolkit, a
# C++ compiler and make. It needs no network. Each part takes less than 9 minutes
# and may be run by itself, `build` first; `all` is in order of what they tell.
#
#   scripts/gpu_check.sh build|test|train|bench|ranks|conformance|sanitize|all
#                        [--out DIR] [--build DIR] [--minutes N] [--emulated]
#
#   build        train_gpt, the unit tests and the conformance program, by nvcc
#   test         the unit tests on the device; those of equal bits 50 times
#   train        training steps beside PyTorch's (dev/bench/gpu_compare.py), with
#                the clocks beside them; ours alone where there is no PyTorch
#   bench        train_gpt bench kernels, with the clocks beside it, bench
#                optimizer, and Newton-Schulz kernel by kernel
#   ranks        NCCL with one rank; where there are several GPUs, whether two to
#                eight ranks train as one does and repeat themselves
#   conformance  what PTX instructions compute on the device, beside the emulator
#   sanitize     the unit tests under compute-sanitizer's four tools, each for a
#                limited time
#   --out DIR    results.json and each part's logs (default build/gpu_check)
#   --minutes N  for all of it: what does not fit is cut short or left out
#   --emulated   the programs built for the emulator instead, few tests, tiny
#                shapes: tries this script
#
# Every part writes its files as it goes and results.json is made after each, so
# that what is cut short loses nothing that was measured.
#
# LMO_HEADERS=DIR   what is not installed here: nlohmann/json.hpp, CLI/CLI.hpp,
#                   xxhash.h, googletest/, cudnn_frontend.h with cudnn.h (default:
#                   build/carry, which scripts/gpu_carry.sh fills elsewhere)
# LMO_GTEST=DIR     GoogleTest's sources (default: googletest in LMO_HEADERS)
# LMO_FILTER, LMO_SANITIZE_FILTER   GoogleTest filters of test and sanitize
# LMO_TRAIN_CASES   cases of train, as gpu_compare.py takes them
# LMO_TORCH         a Python with PyTorch (default python3), or none
# LMO_COMMIT        what is measured, where git does not know
#
# Exit status: 0 all went well, 1 a test failed or there is no GPU, 2 wrong use.
set -uo pipefail

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
}
wrong() {
    echo "gpu_check.sh: $1 (--help explains)" >&2
    exit 2
}

parts=() out='' build=build emulated='' minutes=''
while [ $# -gt 0 ]; do
    case $1 in
        build | test | train | bench | ranks | conformance | sanitize) parts+=("$1") ;;
        all) parts=(build test train bench ranks conformance sanitize) ;;
        --out | --build)
            [ $# -ge 2 ] || wrong "$1 needs a folder"
            if [ "$1" = --out ]; then out=$2; else build=$2; fi
            shift
            ;;
        --minutes)
            [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || wrong "--minutes needs a whole number"
            minutes=$2
            shift
            ;;
        --emulated) emulated=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) wrong "unknown argument '$1'" ;;
    esac
    shift
done
[ ${#parts[@]} -gt 0 ] || wrong 'which part? build, test, train, bench, ranks, conformance, sanitize or all'

has() { command -v "$1" >/dev/null 2>&1; }
if [ -z "$emulated" ] && ! { has nvidia-smi && nvidia-smi -L 2>/dev/null | grep -q GPU; }; then
    echo 'gpu_check.sh: no GPU here (nvidia-smi lists none); --emulated tries the script without one' >&2
    exit 1
fi

# --out counts from where the script was started, --build from the repository, as make's BUILD does.
case $out in '' | /*) ;; *) out=$PWD/$out ;; esac
cd "$(dirname "$0")/.." || exit 1
case $build in /*) out=${out:-$build/gpu_check} ;; *) out=${out:-$PWD/$build/gpu_check} ;; esac
mkdir -p "$out" "$build" || exit 1
unset MAKEFLAGS MFLAGS # of a make that runs this script
PATH=$PATH:/usr/local/cuda/bin

programs=$build cuda_tests=$build/cuda/cuda_tests conformance=$build/cuda/conformance
newton_schulz=$build/cuda/newton_schulz_bench
filter=${LMO_FILTER:-*} equal_bits='*EqualBits*' repeats=50
if [ -n "$emulated" ]; then
    programs=$build/emulated/plain
    cuda_tests=$programs/cuda_tests conformance=$programs/conformance newton_schulz=$programs/newton_schulz_bench
    filter=${LMO_FILTER:-*OptimizerOps*} equal_bits='*OptimizerOps*EqualBits*' repeats=2
fi

# ---- records --------------------------------------------------------------------------------------
# One line a check in status.tsv: part, check, status, seconds, note. A part that runs again replaces
# its lines. scripts/gpu_results.py makes results.json and the table of it.
status_file=$out/status.tsv
touch "$status_file"

record() { # record CHECK STATUS SECONDS [NOTE]
    printf '%s\t%s\t%s\t%s\t%s\n' "$part" "$1" "$2" "$3" "${4:-}" >>"$status_file"
    echo "$part: $1: $2${4:+ ($4)}, $3 s"
}

# Seconds of $1 that --minutes leaves, at least 1.
within() {
    local left=$1
    if [ -n "$minutes" ] && [ $((60 * minutes - SECONDS)) -lt "$left" ]; then left=$((60 * minutes - SECONDS)); fi
    echo $((left > 1 ? left : 1))
}

# run CHECK SECONDS LOG COMMAND...: within the time; the status is ok, failed or timed out.
run() {
    local check=$1 limit log=$3 begin=$SECONDS code
    limit=$(within "$2")
    shift 3
    timeout --kill-after=10 "$limit" "$@" >"$out/$log" 2>&1
    code=$?
    case $code in
        0) record "$check" ok $((SECONDS - begin)) ;;
        124 | 137) record "$check" 'timed out' $((SECONDS - begin)) "limit $limit s, log $log" ;;
        *)
            record "$check" failed $((SECONDS - begin)) "status $code, log $log"
            tail -n 15 "$out/$log" | cut -c 1-200
            ;;
    esac
    return $code
}

need_program() { # need_program CHECK PATH
    [ -x "$2" ] && return 0
    record "$1" missing 0 "$2 is not built"
    return 1
}

# ---- parts ----------------------------------------------------------------------------------------
# Headers and GoogleTest that are not installed reach compiler and linker by their own variables.
find_headers() {
    [ -n "${LMO_HEADERS:-}" ] || return 0
    CPLUS_INCLUDE_PATH=$(realpath "$LMO_HEADERS")${CPLUS_INCLUDE_PATH:+:$CPLUS_INCLUDE_PATH}
    export CPLUS_INCLUDE_PATH
    if [ -f "$LMO_HEADERS/cudnn_frontend.h" ]; then export CUDNN_FRONTEND=${CUDNN_FRONTEND:-$LMO_HEADERS}; fi
}

# cuDNN that came with PyTorch's packages serves us too.
find_cudnn() {
    local folder
    [ -z "$emulated" ] && has "$torch" || return 0
    folder=$("$torch" -c 'import nvidia.cudnn as cudnn; print(list(cudnn.__path__)[0])' 2>/dev/null) || return 0
    [ ! -d "$folder/lib" ] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder/lib
}

build_googletest() {
    local cxx=${CXX:-g++} folder sources=''
    if echo 'int main() {}' | "$cxx" -x c++ - -lgtest -lgtest_main -pthread -o /dev/null 2>/dev/null &&
        echo '#include <gtest/gtest.h>' | "$cxx" -E -x c++ - >/dev/null 2>&1; then
        return 0
    fi
    for folder in "${LMO_GTEST:-}" "${LMO_GTEST:-}/googletest" "${LMO_HEADERS:-}/googletest" \
        "${LMO_HEADERS:-}/googletest/googletest" /usr/src/googletest/googletest; do
        if [ -f "$folder/src/gtest-all.cc" ]; then
            sources=$(realpath "$folder")
            break
        fi
    done
    if [ -z "$sources" ]; then
        record googletest missing 0 'neither installed nor sources by LMO_GTEST or LMO_HEADERS'
        return 1
    fi
    mkdir -p "$build/googletest"
    local name
    for name in gtest:gtest-all gtest_main:gtest_main; do
        [ -f "$build/googletest/lib${name%%:*}.a" ] && continue
        "$cxx" -std=c++20 -O1 -I"$sources/include" -I"$sources" -c "$sources/src/${name##*:}.cc" \
            -o "$build/googletest/${name%%:*}.o" || return 1
        ar rcs "$build/googletest/lib${name%%:*}.a" "$build/googletest/${name%%:*}.o" || return 1
    done
    export CPLUS_INCLUDE_PATH="$sources/include${CPLUS_INCLUDE_PATH:+:$CPLUS_INCLUDE_PATH}"
    export LIBRARY_PATH="$build/googletest${LIBRARY_PATH:+:$LIBRARY_PATH}"
}

part_build() {
    local wanted=("$programs/train_gpt" "$cuda_tests" "$conformance" "$newton_schulz")
    local tools=("${CXX:-g++}" make) tool
    if [ -n "$emulated" ]; then
        wanted+=("$build/emulated/nccl/libnccl.so.2")
    else
        wanted+=("$build/emulated/plain/conformance")
    fi
    [ -n "$emulated" ] || tools+=(nvcc)
    for tool in "${tools[@]}"; do
        has "$tool" || record "$tool" missing 0 'neither in PATH nor in /usr/local/cuda/bin'
    done
    find_headers
    build_googletest || record googletest failed 0 'its sources do not compile'
    # -k: what builds without the missing is built.
    run make 500 build.log make -k -j"$(nproc)" BUILD="$build" "${wanted[@]}"
    local program
    for program in "${wanted[@]}"; do
        need_program "$(basename "$(dirname "$program")")/$(basename "$program")" "$program"
    done
}

part_test() {
    need_program tests "$cuda_tests" || return
    rm -f "$out/tests.json"
    run tests 400 tests.log "$cuda_tests" --gtest_brief=1 --gtest_filter="$filter" \
        --gtest_output="json:$out/tests.json"
    run "equal bits, $repeats times" 120 equal_bits.log "$cuda_tests" --gtest_brief=1 \
        --gtest_filter="$equal_bits" --gtest_repeat="$repeats"
}

# The program itself on N GPUs, all ranks on this machine; its run folder is $out/ranks_RUN.
train_on() { # train_on RUN N
    local several=()
    [ "$2" = 1 ] || several=(--gpus "$2")
    run "train on $2 as $1" 120 "ranks_$1.log" env LMO_EMULATOR_DEVICES="$2" "$programs/train_gpt" train --device cuda \
        --config "$out/ranks.json" --resume never --set "run.dir=$out/ranks_$1" "${several[@]}"
}

# Losses of two runs, relative; the same bits where the bound is 0.
compare_losses() { # compare_losses RUN OTHER BOUND
    local check="losses of $1 and $2 within $3" worst
    if worst=$(paste <(losses "$1") <(losses "$2") | awk -v bound="$3" '
        { d = $1 / $2 - 1; if (d < 0) d = -d; if (!(d <= worst)) worst = d }
        END { printf "%.3g\n", worst; exit !(NR > 20 && worst <= bound) }'); then
        record "$check" ok 0 "$worst"
    else
        record "$check" failed 0 "$worst"
    fi
}
losses() { sed -n 's/.*"loss":\([-+.e0-9]*\)[,}].*/\1/p' "$out/ranks_$1/metrics.jsonl"; }

part_ranks() {
    local gpus=2 n
    need_program nccl "$cuda_tests" || return
    need_program ranks "$programs/train_gpt" || return
    run 'one rank of NCCL' 120 nccl.log "$cuda_tests" --gtest_filter='*Communicator*' || return
    if grep -q 'cannot load libnccl' "$out/nccl.log"; then
        record NCCL skipped 0 "$(grep -o 'cannot load libnccl.*' "$out/nccl.log" | head -n 1 | tr '\t' ' ' | cut -c 1-150)"
        return
    fi
    [ -n "$emulated" ] || gpus=$(nvidia-smi -L | grep -c '^GPU')
    if [ "$gpus" -lt 2 ]; then
        record 'several ranks' skipped 0 'there is one GPU'
        return
    fi
    if ! has python3; then
        record 'several ranks' missing 0 'python3, which prepares their text'
        return
    fi
    rm -rf "$out"/ranks_*
    python3 scripts/prepare_data.py text README.md dev/docs --out "$out/ranks_text" >"$out/ranks_text.log" 2>&1 || {
        record 'text of the ranks' failed 0 'log ranks_text.log'
        return
    }
    local model='"n_layer": 2, "n_head": 2, "d_model": 32, "d_ff": 48, "vocab_size": 256, "seq_len": 32'
    echo '{"run": {"steps": 20}, "model": {'"$model"'}, "precision": {"compute": "fp32"},
           "data": {"train": ["'"$out"'/ranks_text/train.bin"], "val": ["'"$out"'/ranks_text/val.bin"]},
           "batch": {"sequences": 8}, "optimizer": {"preset": "adamw", "lr": 0.01},
           "eval": {"batches": 1}, "log": {"peak_tflops": 1}}' >"$out/ranks.json"
    train_on one 1 || return
    for n in 2 4 8; do
        [ "$n" -le "$gpus" ] || break
        train_on "$n" "$n" && train_on "$n-again" "$n" || return
        compare_losses one "$n" 1e-5
        compare_losses "$n" "$n-again" 0
    done
}

part_sanitize() {
    local tool more
    if [ -n "$emulated" ]; then
        record compute-sanitizer skipped 0 'needs a GPU'
        return
    fi
    if ! has compute-sanitizer; then
        record compute-sanitizer missing 0 'neither in PATH nor in /usr/local/cuda/bin'
        return
    fi
    need_program compute-sanitizer "$cuda_tests" || return
    for tool in memcheck racecheck initcheck synccheck; do
        more=()
        [ $tool = memcheck ] && more=(--leak-check full)
        run $tool 125 sanitize_$tool.log compute-sanitizer --tool $tool "${more[@]}" \
            --error-exitcode 99 "$cuda_tests" --gtest_filter="${LMO_SANITIZE_FILTER:-*}"
    done
}

# The device writes what each instruction computes, the emulator computes it again.
part_conformance() {
    local judge=$build/emulated/plain/conformance
    need_program write "$conformance" || return
    rm -f "$out/conformance.bin"
    run write 240 conformance_write.log "$conformance" --write "$out/conformance.bin" || return
    need_program 'compare with the emulator' "$judge" || return
    run 'compare with the emulator' 240 conformance_compare.log "$judge" --compare "$out/conformance.bin"
}

clocks() { # clocks FILE: one line of names, one of values
    if has nvidia-smi && [ -z "$emulated" ]; then
        nvidia-smi --format=csv,nounits --query-gpu="$gpu_values" -i 0 >"$out/$1" 2>&1
    fi
}
gpu_values=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu

# What a benchmark that began at second $3 and ended with status $2 is called.
record_bench() { # record_bench NAME CODE BEGIN LOGS
    case $2 in
        0) record "$1" ok $((SECONDS - $3)) ;;
        124 | 137) record "$1" 'timed out' $((SECONDS - $3)) ;;
        *) record "$1" failed $((SECONDS - $3)) "status $2, logs $4" ;;
    esac
}

# Samples the clocks into a file while a part measures.
sampler=''
start_sampler() {
    if has nvidia-smi && [ -z "$emulated" ]; then
        nvidia-smi --format=csv,nounits --query-gpu="$gpu_values" -i 0 -lms 200 >"$out/$1" 2>&1 &
        sampler=$!
    fi
}
stop_sampler() {
    [ -z "$sampler" ] || kill "$sampler" 2>/dev/null
    sampler=''
}

part_bench() {
    local arguments=(bench kernels --device cuda --json) begin=$SECONDS
    local updates=(bench optimizer --device cuda --json)
    need_program bench "$programs/train_gpt" || return
    if [ -n "$emulated" ]; then
        echo '{"model": {"n_layer": 1, "n_head": 2, "d_model": 128, "d_ff": 64, "vocab_size": 64,
                         "seq_len": 16}}' >"$out/tiny.json"
        arguments+=(--config "$out/tiny.json" --tokens 32 --seconds 1)
        updates+=(--shapes "16x24,24x16" --steps 1)
    else
        arguments+=(--seconds $(($(within 110) * 3 / 4)))
    fi
    clocks clocks_before.csv
    start_sampler clocks_during.csv
    timeout --kill-after=10 "$(within 420)" "$programs/train_gpt" "${arguments[@]}" >"$out/bench.jsonl" \
        2> >(tee "$out/bench.log" >&2)
    record_bench bench $? $begin 'bench.log and bench.jsonl'
    stop_sampler
    clocks clocks_after.csv
    begin=$SECONDS
    timeout --kill-after=10 "$(within 100)" "$programs/train_gpt" "${updates[@]}" >"$out/bench_optimizer.jsonl" \
        2> >(tee "$out/bench_optimizer.log" >&2)
    record_bench 'bench optimizer' $? $begin 'bench_optimizer.log and bench_optimizer.jsonl'
    bench_newton_schulz
}

# Kernel by kernel, and the distance from the polynomial: what symmetric_choice.cpp needs.
bench_newton_schulz() {
    local begin=$SECONDS arguments=(--json "$out/newton_schulz.jsonl" --errors --stages 2,3,4,5,6)
    need_program 'newton_schulz' "$newton_schulz" || return
    [ -z "$emulated" ] || arguments+=(--shapes 24x40 --windows 1)
    timeout --kill-after=10 "$(within 120)" "$newton_schulz" "${arguments[@]}" >"$out/newton_schulz.log" 2>&1
    record_bench 'newton_schulz' $? $begin 'newton_schulz.log and newton_schulz.jsonl'
}

part_train() {
    local arguments=(--binary "$programs/train_gpt" --python "$torch" --out "$out/train.jsonl") begin=$SECONDS limit
    limit=$(within 510)
    # Something is to be left for what follows.
    if [ -n "$minutes" ] && [ "${parts[-1]}" != train ] && [ "$limit" -gt $(((60 * minutes - SECONDS) * 6 / 10)) ]; then
        limit=$(((60 * minutes - SECONDS) * 6 / 10))
    fi
    need_program train "$programs/train_gpt" || return
    if ! has python3; then
        record train missing 0 'python3 starts it'
        return
    fi
    if [ -n "$emulated" ]; then
        echo '{"model": {"n_layer": 1, "n_head": 2, "d_model": 128, "d_ff": 64, "vocab_size": 64, "seq_len": 16}}' \
            >"$out/tiny.json"
        arguments+=(--cases "$out/tiny.json:2x16:muon" "$out/tiny.json:2x16:adamw" --rounds 1 --steps 1 --warmup 1)
    else
        arguments+=(--seconds $((limit > 50 ? limit - 40 : 10)))
        # shellcheck disable=SC2206 # words are cases
        [ -z "${LMO_TRAIN_CASES:-}" ] || arguments+=(--cases $LMO_TRAIN_CASES)
    fi
    start_sampler clocks_train.csv
    timeout --kill-after=10 "$limit" python3 dev/bench/gpu_compare.py "${arguments[@]}" 2>"$out/train.log"
    record_bench train $? $begin 'train.log and train.jsonl'
    stop_sampler
}

# ---- the run --------------------------------------------------------------------------------------
commit=${LMO_COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
[ -z "$(git status --porcelain 2>/dev/null)" ] || commit="$commit with changes"
nvcc=$(nvcc --version 2>/dev/null | grep -o 'V[0-9.]*$' || echo none)
collect() { # results.json of what there is, and a table
    python3 scripts/gpu_results.py "$out" --commit "$commit" --nvcc "$nvcc" ${emulated:+--emulated} ||
        echo "results.json could not be made; the parts' own files are in $out"
}

torch=${LMO_TORCH:-python3}
LMO_HEADERS=${LMO_HEADERS:-$([ ! -d build/carry ] || echo build/carry)}
find_cudnn
clocks gpu.csv
for part in "${parts[@]}"; do
    grep -v "^$part	" "$status_file" >"$status_file.new"
    mv "$status_file.new" "$status_file"
    if [ "$(within 20)" -lt 20 ]; then
        record "$part" 'left out' 0 "--minutes $minutes are over"
        continue
    fi
    "part_$part"
    ! has python3 || collect >"$out/table.txt"
done

if has python3; then
    collect
else
    echo "python3 is missing: no results.json; the parts' own files are in $out"
    cat "$status_file"
fi
# A sanitizer that is missing or takes too long was named; all else has to be there and go well.
names="|$(IFS='|' && echo "${parts[*]}")|"
awk -F '\t' -v parts="$names" 'index(parts, "|" $1 "|") && ($3 == "failed" ||
    ($1 != "sanitize" && ($3 == "missing" || $3 == "timed out"))) { bad = 1 } END { exit bad }' "$status_file"
