#!/usr/bin/env bash
# Makes .venv with the pinned requirements and this project (.venv/bin/smet), or does nothing where that is done already.
#
#   launch/setup_env.sh          what training and the tools need
#   launch/setup_env.sh --dev    and what the tests and linters need, zsh and chromium among it (as root, with apt-get)
#
# PYTHON names the interpreter (default: python3). Exit code 2: something is missing, one line says what.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "setup_env: $*" >&2; }
die() { echo "error: $*" >&2; exit 2; }

peers=()
case "${1:-}" in
  "") kind=run files=(requirements.txt) ;;
  --dev)
    kind=dev files=(requirements.txt requirements-dev.txt)
    [ ! -f requirements-nodeps.txt ] || files=(requirements-nodeps.txt "${files[@]}")
    [ ! -f requirements-peers.txt ] || peers=(requirements-peers.txt)
    ;;
  -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) die "unknown option '$1', expected --dev or nothing" ;;
esac

python=${PYTHON:-python3}
command -v "$python" >/dev/null || die "no '$python' found, expected Python 3.10 to 3.13; install it or set PYTHON"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || die "'$python' does not run; set PYTHON"
case "$version" in
  3.10 | 3.11 | 3.12 | 3.13) ;;
  *) die "'$python' is Python $version, expected 3.10 to 3.13; set PYTHON to such an interpreter" ;;
esac

mkdir -p .venv
exec 9>.venv/.setup.lock
flock 9 # two jobs on one checkout take turns

log=.venv/.setup.log
system() { # for --dev: the programs that tests drive
  local program missing=()
  [ "$kind" = dev ] || return 0
  for program in zsh chromium; do command -v "$program" >/dev/null || missing+=("$program"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >>"$log" 2>&1 ||
      { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >>"$log" 2>&1 ||
      die "apt-get could not install ${missing[*]}; its output is in $log"
  else
    say "no ${missing[*]} found, and tests need it; apt-get install ${missing[*]}"
  fi
}
project() { # .venv/bin/smet runs this checkout; an environment that is linked here is another checkout's
  local place
  place=$(pwd; sha256sum <pyproject.toml)
  if [ -L .venv ] || [ "$(cat .venv/.setup.project 2>/dev/null)" = "$place" ]; then return 0; fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . \
    >>"$log" 2>&1 || die "pip could not install this project; its output is in $log"
  echo "$place" >.venv/.setup.project
}
fingerprint() { cat "$@" <(echo "python $version") | sha256sum | cut -d' ' -f1; }
if [ -x .venv/bin/python ] && [ "$(cat ".venv/.setup.$kind" 2>/dev/null)" = "$(fingerprint "${files[@]}" "${peers[@]}")" ]; then
  system
  project
  exit 0
fi

command -v gcc >/dev/null || die "no gcc found, expected a C compiler for the kernels; apt-get install gcc g++"
if [ -x .venv/bin/python ]; then
  has=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' || echo broken)
  [ "$has" = "$version" ] || die ".venv holds Python $has, expected $version; remove .venv or set PYTHON"
else
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "'$python' has no venv module, expected one; apt-get install python3-venv"
  say "making .venv with Python $version"
  "$python" -m venv .venv
fi

say "installing ${files[-1]} (minutes when torch is not at hand yet)"
start=$SECONDS
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r "${files[-1]}" >"$log" 2>&1 || {
  tail -n 20 "$log" >&2
  die "pip could not install ${files[-1]}; its last lines stand above, all of them in $log"
}
if [ "${files[0]}" = requirements-nodeps.txt ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-nodeps.txt >>"$log" 2>&1 ||
    die "pip could not install requirements-nodeps.txt; its output is in $log"
fi
if [ ${#peers[@]} -gt 0 ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/peers -r "${peers[0]}" \
    >>"$log" 2>&1 || die "pip could not install ${peers[0]}; its output is in $log"
fi
fingerprint requirements.txt >.venv/.setup.run # --dev brings these too
[ "$kind" = run ] || fingerprint "${files[@]}" "${peers[@]}" >".venv/.setup.$kind"
system
project
say "done in $((SECONDS - start)) s"
