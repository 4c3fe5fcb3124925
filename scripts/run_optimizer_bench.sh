#!/usr/bin/env bash
# Measures the optimizers by themselves, on the parameters of a model; needs no data.
#
#   [CONFIG=FILE] scripts/run_optimizer_bench.sh [arguments of train_gpt bench optimizer; --compare if none]
#
#   CONFIG=FILE      whose model and optimizer (default configs/run/llama-124m-muon.json)
#   TRAIN_GPT=FILE   the program
. "$(dirname "$0")/launch.sh"
case " $* " in *' --help '* | *' -h '*) sed -n '/^#!/d;/^#/!q;s/^# \{0,1\}//p' "$0" ;; esac
find_program
set -- "$train_gpt" bench optimizer --config "${CONFIG:-configs/run/llama-124m-muon.json}" "${@:---compare}"
echo "command    $*" >&2 # --json has standard output to itself
exec "$@"
