# shellcheck shell=bash
# What the run_*.sh scripts have in common; each sets CONFIG and calls launch.
# Paths count from the repository's folder. Variables, all optional:
#
#   CONFIG=FILE      configuration
#   DATA=DIR         folder with *train*.bin and *val*.bin (default data/fineweb);
#                    FineWeb is fetched into it where it has none
#   RUN=NAME         name of the run; its folder is runs/NAME
#   STEPS=N          updates in the whole run
#   DEVICE=cpu|cuda  where to compute
#   GPUS=N           ranks to start on this machine
#   EXTRA="..."      more arguments, as after the script's name; split at blanks
#   PYTHON, TRAIN_GPT   the programs
#
# Arguments: --set key=value, as of train_gpt train; --plan, to say what would be
# done and stop; --help. The same command again continues the run. Exit status is
# that of train_gpt: 0 finished, 1 runtime error, 2 wrong use, 3 stopped by a
# signal with a checkpoint written.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "$(basename "$0"): $1" >&2
    exit 2
}

# Prints the comments at the head of the script, then those above.
usage() {
    local file
    for file in "$0" "${BASH_SOURCE[0]}"; do
        sed -n '/^#!/d;/^# shellcheck/d;/^#/!q;s/^# \{0,1\}//p' "$file"
    done
}

find_program() {
    train_gpt=${TRAIN_GPT:-build/train_gpt}
    [ -x "$train_gpt" ] || fail "$train_gpt is not built; run: make all"
}

# Arguments into `settings` (--set key=value ...) and `plan_only`.
read_arguments() {
    settings=() plan_only=
    while [ $# -gt 0 ]; do
        case $1 in
            --set)
                [ $# -ge 2 ] || fail '--set needs key=value'
                settings+=(--set "$2")
                shift
                ;;
            --set=*) settings+=(--set "${1#--set=}") ;;
            --plan) plan_only=yes ;;
            -h | --help)
                usage
                exit 0
                ;;
            *) fail "unknown argument '$1' (--help explains)" ;;
        esac
        shift
    done
}

has_tokens() { compgen -G "$1/*train*.bin" >/dev/null && compgen -G "$1/*val*.bin" >/dev/null; }

# As many tokens as the run reads, rounded up to whole millions.
prepare_data() {
    local tokens python=${PYTHON:-python3} subset=sample-10BT
    tokens=$("$train_gpt" plan --config "$CONFIG" "${settings[@]}" --peak 1 --json |
        sed -n 's/.*"tokens":\([0-9]*\)[.,}].*/\1/p')
    tokens=$((${tokens:-1000000000} / 1000000 * 1000000 + 1000000))
    if [ "$tokens" -gt 10000000000 ]; then subset=sample-100BT; fi
    set -- "$python" scripts/prepare_data.py fineweb --tokens "$tokens" --subset "$subset" --out "$DATA"
    echo "no *train*.bin and *val*.bin in $DATA; fetching FineWeb: $*"
    [ -z "$plan_only" ] || return 0
    "$@" || fail "no data. Where the network does not reach it, put token files into $DATA (scripts/prepare_data.py \
text FILE... --tokenizer gpt2 --out DIR makes them from your own text) or name another folder by DATA=DIR"
}

launch() {
    local option
    find_program
    DATA=${DATA:-data/fineweb}
    # shellcheck disable=SC2086 # EXTRA is several words
    read_arguments ${EXTRA:-} "$@"
    # What was given by name comes first: --set has the last word.
    settings=(--set "data.train=[\"$DATA/*train*.bin\"]" --set "data.val=[\"$DATA/*val*.bin\"]"
        ${RUN:+--set "run.name=\"$RUN\""} ${STEPS:+--set "run.steps=$STEPS"} "${settings[@]}")
    local device=(${DEVICE:+--device "$DEVICE"}) ranks=${GPUS:-1} gpus=()
    [ "$ranks" = 1 ] || gpus=(--gpus "$ranks")

    "$train_gpt" plan --config "$CONFIG" "${settings[@]}" "${device[@]}" --ranks "$ranks"
    case " ${settings[*]:4}" in
        *' data.train='*) ;; # the user's business
        *) has_tokens "$DATA" || prepare_data ;;
    esac
    set -- "$train_gpt" train --config "$CONFIG" "${settings[@]}" "${device[@]}" "${gpus[@]}"
    printf 'command   '
    for option; do printf ' %q' "$option"; done
    echo
    [ -z "$plan_only" ] || exit 0
    exec "$@" # signals reach it, and its status is ours
}
