#!/usr/bin/env bash
# Runs the tests in the project's own environment.
#
#   bash tests/run.sh                 all but the slow and the cluster ones; GPU tests where there is a GPU
#   bash tests/run.sh -m slow         the slow ones; any arguments go to pytest
#   bash tests/run.sh -m cluster      sshd, pdsh, OpenMPI and Slurm on this machine; needs root, installs them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/setup_env.sh --dev
[ $# -gt 0 ] || set -- -m "not slow and not cluster"
exec .venv/bin/python -m pytest -q -ra --durations=10 "$@"
