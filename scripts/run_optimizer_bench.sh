#!/usr/bin/env bash
# Measures the optimizers by themselves, on a model's parameters; needs no data.
#
#   [CONFIG=FILE] scripts/run_optimizer_bench.sh [ARGUMENTS]
#
#   CONFIG=FILE      with the model (default configs/run/llama-124m-muon.json)
#   TRAIN_GPT=FILE   the program
#   ARGUMENTS        of train_gpt bench optimizer, below (default: --compare)
. "$(dirname "$0")/launch.sh"
case " $* " in *' --help '* | *' -h '*) sed -n '/^#!/d;/^#/!q;s/^# \{0,1\}//p' "$0" ;; esac
find_program
set -- "$train_gpt" bench optimizer --config "${CONFIG:-configs/run/llama-124m-muon.json}" "${@:---compare}"
echo "command    $*" >&2 # --json has standard output to itself
exec "$@"
