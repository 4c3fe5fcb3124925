#!/usr/bin/env bash
# Trains LLaMA-1B (1.07G parameters) with Muon and the adaptive warm-up, 21G
# tokens of FineWeb; its rate is not tuned.
#
#   [VARIABLE=... ...] scripts/run_llama_1b.sh [--plan] [--set key=value ...]
#
. "$(dirname "$0")/launch.sh"
CONFIG=${CONFIG:-configs/run/llama-1b-muon.json}
launch "$@"
