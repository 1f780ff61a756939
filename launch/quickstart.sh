#!/usr/bin/env bash
# From nothing to a trained sparse LLaMA: environment, corpus, tokenizer, training, resume, results.
#
#   bash launch/quickstart.sh [key=value ...]     overrides of configs/quickstart.yaml
#
# Needs Python 3.10 to 3.12 with venv, gcc, and 4 GB of disk. Uses two GPUs, or one, or two CPU processes.
# What is there already is used again; to start anew, remove data/quickstart and runs/quickstart.
# QUICKSTART_TEXT names another folder of Python files to learn from (default: the standard library).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in -h | --help) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;; esac

data=data/quickstart
run=runs/quickstart
half=150 # the first of two processes stops here; the second resumes from its checkpoint
for override in "$@"; do
  case "$override" in
    train.output_dir=*) run=${override#*=} ;;
    train.stop_at=*) half=${override#*=} ;;
    *=*) ;;
    *) echo "error: '$override' is no override, expected section.key=value, such as train.steps=100" >&2; exit 2 ;;
  esac
done
say() { printf '\n== %s\n' "$*"; }

say "1/5 environment"
launch/setup_env.sh
python=.venv/bin/python

sources=${QUICKSTART_TEXT:-$($python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')}
say "2/5 corpus and tokenizer: the Python sources in $sources"
text=(--input "$sources" --include '*.py' --exclude '*-packages/*' --exclude '*/test/*' --exclude '*/tests/*')
if [ -f "$data/tokenizer.model" ]; then
  echo "using $data/tokenizer.model"
else
  $python -m tools.train_tokenizer "${text[@]}" --vocab-size 4096 --output "$data/tokenizer"
fi
if [ -f "$data/python_train.idx" ] && [ -f "$data/python_validation.idx" ]; then
  echo "using $data/python_train.bin and $data/python_validation.bin"
else
  $python -m tools.preprocess "${text[@]}" --tokenizer "$data/tokenizer.model" --validation-fraction 0.05 --output "$data/python"
fi

gpus=$($python -c 'import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)')
ranks=$((gpus == 1 ? 1 : 2))
port=$($python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + ranks - 1) / ranks))}
chatter='^\[.*\] \[\(INFO\|WARNING\)\] \[\(launch\|runner\|real_accelerator\).py\|^\[W.*socket'
train() { # with pipefail, its status is deepspeed's: a failed training ends the script
  .venv/bin/deepspeed --num_gpus "$ranks" --master_port "$port" --module pretrain configs/quickstart.yaml "$@" 2>&1 |
    { grep --line-buffered -v -e "$chatter" || true; }
}

say "3/5 training on $ranks processes until step $half"
train "$@" train.stop_at="$half"

say "4/5 resuming from the checkpoint, to the end"
train "$@" train.stop_at=0

say "5/5 results"
$python -m tools.plot_run "$run"
