#!/usr/bin/env bash
# Runs the tests in the project's own environment; arguments go to pytest, such as -m "not gpu" or a file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch/setup_env.sh --dev
exec .venv/bin/python -m pytest -q -ra --durations=10 "$@"
