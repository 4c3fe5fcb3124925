#!/usr/bin/env bash
# Repeats one run of the warm-up paper (configs/paper), under the published
# schedule to the letter.
#
#   PAPER=NAME       file of configs/paper, without .json (default
#                    muon-124m-bs32-64k-adaptive); a name that is not there lists
#                    them. scripts/paper_table.py compares the results
#
#   PAPER=lion-210m-bs32-64k-baseline scripts/run_warmup_paper.sh
#
. "$(dirname "$0")/launch.sh"
CONFIG=${CONFIG:-configs/paper/${PAPER:-muon-124m-bs32-64k-adaptive}.json}
[ -f "$CONFIG" ] || fail "no $CONFIG; there are: $(cd configs/paper && echo *-*.json | sed 's/\.json//g')"
launch "$@"
