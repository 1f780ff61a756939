#!/usr/bin/env bash
# Installs what the cluster tests start: sshd, pdsh, OpenMPI, Slurm. Needs root and apt; does nothing where all is there.
#
#   bash tests/cluster/setup.sh           install
#   bash tests/cluster/setup.sh --check   exit code 1 if something is missing
set -euo pipefail

programs=(/usr/sbin/sshd pdsh ip unshare munged /usr/bin/mpirun slurmctld slurmd sbatch srun)
missing=()
for program in "${programs[@]}"; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing+=("$program")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "${1:-}" = --check ] || [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "error: ${missing[*]} not found, expected them or root and apt-get; install openssh-server pdsh munge" \
    "slurmctld slurmd slurm-client openmpi-bin iproute2" >&2
  exit 1
fi

# Packages start their daemons; the tests start their own, with their own settings.
policy=/usr/sbin/policy-rc.d
made=
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  made=1
fi
trap '[ -z "$made" ] || rm -f "$policy"' EXIT
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends openssh-server pdsh munge slurmctld slurmd slurm-client openmpi-bin \
  iproute2 >/dev/null
