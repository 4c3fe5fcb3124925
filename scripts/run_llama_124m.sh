#!/usr/bin/env bash
# Trains LLaMA-124M with Muon and the adaptive warm-up, 1.05G tokens of FineWeb.
#
#   [VARIABLE=... ...] scripts/run_llama_124m.sh [--plan] [--set key=value ...]
#
. "$(dirname "$0")/launch.sh"
CONFIG=${CONFIG:-configs/run/llama-124m-muon.json}
launch "$@"
