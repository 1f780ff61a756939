#!/usr/bin/env bash
# From nothing to a trained sparse LLaMA: environment, corpus, tokenizer, training, resume, results.
#
#   bash launch/quickstart.sh [key=value ...]     overrides of configs/quickstart.yaml
#
# Needs Python 3.10 to 3.13 with venv, gcc, and 4 GB of disk. Uses two GPUs, or one, or two CPU processes.
# Makes the environment, then does what `smet quickstart` does anywhere (tools/quickstart.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac
for override in "$@"; do # before minutes of setting up
  case "$override" in
    *=*) ;;
    *) echo "error: '$override' is no override, expected section.key=value, such as train.steps=100" >&2; exit 2 ;;
  esac
done
launch/setup_env.sh
exec .venv/bin/python -m tools quickstart "$@"
