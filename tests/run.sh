#!/usr/bin/env bash
# Runs the tests in the project's own environment.
#
#   bash tests/run.sh                              all but the slow, cluster and sweep ones; GPU tests where there is a GPU
#   bash tests/run.sh -m "slow and not sweep"      the slow ones; any arguments go to pytest
#   bash tests/run.sh -m "cluster and not sweep"   sshd, pdsh, OpenMPI and Slurm on this machine; needs root, installs them
#   bash tests/run.sh -m sweep                     long seeded sweeps: once per release of a change, never in CI
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/setup_env.sh --dev
[ $# -gt 0 ] || set -- -m "not slow and not cluster and not sweep"
exec .venv/bin/python -m pytest -q -ra --durations=10 "$@"
